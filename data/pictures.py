"""An image source and a crop as a map-style data set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .base import ImageSource
from .decoding import BrokenImageError
from .order import Draw
from .transforms import Crop, from_uint8

OnError = Literal["skip", "raise"]


class Item(TypedDict):
    """One picture."""

    images: Tensor  #: [3, H, W] float32 in [-1, 1]
    text: str  #: its caption; empty where there is none
    index: int  #: of the picture shown, which is not the one asked for where that was skipped
    skipped: list[int]  #: unreadable pictures passed over to find this one


class Batch(TypedDict):
    """B pictures."""

    images: Tensor  #: [B, 3, H, W] float32 in [-1, 1]
    text: list[str]
    index: Tensor  #: [B] int64
    skipped: list[int]  #: of all B, in order


class Pictures(Dataset[Item]):
    """Pictures of a source, cropped, as tensors.

    What is random about an item is drawn from ``(seed, epoch, index)`` alone, so that neither the number of workers nor
    the order of reading changes it. The epoch is the one an index brings along (`smalti.data.order.Draw`), else the
    one of `set_epoch`.

    Args:
        source: the pictures.
        crop: to one size.
        on_error: ``skip`` shows the next readable picture in place of a broken one and names the broken one in
            ``skipped``; ``raise`` stops.
        seed: >= 0.
        cache: keep every cropped picture in memory as uint8, ``3 H W`` bytes each (once per worker).

    Raises:
        ValueError: an unknown ``on_error``, a negative seed, or a cache for a crop that changes every time.
    """

    def __init__(
        self, source: ImageSource, crop: Crop, on_error: OnError = "skip", seed: int = 0, cache: bool = False
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"expected on_error of {', '.join(get_args(OnError))}, got {on_error!r}; choose one")
        if seed < 0:
            raise ValueError(f"expected a seed >= 0, got {seed}; choose another")
        if cache and not crop.deterministic:
            raise ValueError(
                f"expected a crop without chance for cache=True, got mode {crop.mode!r} with flip={crop.flip}; "
                "use mode center without flip, or cache=False"
            )
        self.source, self.crop, self.on_error, self.seed, self.epoch = source, crop, on_error, seed, 0
        self._kept: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        """Draw as in ``epoch`` from now on, for plain indices; reaches only workers that start later."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        """The picture at ``index`` in ``[0, len)``, or the next readable one, around the end.

        Raises:
            BrokenImageError: it is broken and ``on_error`` is ``raise``.
            IndexError: there is no such index.
            ValueError: every picture is broken.
        """
        count = len(self)
        if not 0 <= index < count:
            raise IndexError(f"expected an index in [0, {count}), got {int(index)}; stay inside the data set")
        epoch = index.epoch if isinstance(index, Draw) else self.epoch
        skipped: list[int] = []
        for shown in ((index + step) % count for step in range(count)):
            try:
                levels = self._levels(shown, epoch)
            except BrokenImageError:
                if self.on_error == "raise":
                    raise
                skipped.append(shown)
                continue
            text = self.source.caption(shown) or ""
            return Item(images=from_uint8(levels), text=text, index=shown, skipped=skipped)
        raise ValueError(f"expected at least one readable picture, got {count} broken ones; check the image source")

    def _levels(self, index: int, epoch: int) -> Tensor:
        """``[3, H, W]`` uint8."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        generator = None if self.crop.deterministic else np.random.default_rng((self.seed, epoch, index))
        levels = _planes(self.crop(self.source.picture(index), generator))
        if self._kept is not None:
            self._kept[index] = levels
        return levels


def _planes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def collate(items: Sequence[Item]) -> Batch:
    """Items of one size to a batch."""
    return Batch(
        images=torch.stack([item["images"] for item in items]),
        text=[item["text"] for item in items],
        index=torch.tensor([item["index"] for item in items], dtype=torch.int64),
        skipped=[index for item in items for index in item["skipped"]],
    )
