"""From an image source to a token store: every picture coded once, before the language model is trained.

Batches never reach over the end of a shard, so that a shard depends on nothing but its own pictures: not on which
process makes it, nor on where a run was cut off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.base import ImageSource
from ..data.decoding import BrokenImageError
from ..data.pictures import OnError
from ..data.store_plan import StorePlan
from ..data.store_shards import Row, TokenRecord
from ..data.store_writer import StoreWriter
from ..data.transforms import Crop, from_uint8
from ..tokenizers.base import VisualTokenizer
from .encode import record_of
from .resume import end_with

#: Names and captions of the source that the plan keeps hashes of, spread evenly.
_NAMES = 1000

Dtype = Literal["float32", "bfloat16", "float16"]

_Place = tuple[int, int]  # picture and crop


@dataclass(frozen=True)
class TokenizeSettings:
    """How a source is tokenized.

    Args:
        crop: to the tokenizer's size.
        crops: rows of every picture, each with a draw of its own.
        batch_size: rows coded together.
        shard_size: pictures of a shard.
        workers: processes that read; 0 reads in this one.
        seed: of the crops, >= 0.
        on_error: ``skip`` leaves broken pictures out and names them in the shard, ``raise`` stops at the first.
        dtype: of the tokenizer's arithmetic, by autocast; quantizers stay in float32.

    Raises:
        ValueError: several crops of a picture that would all be the same, or a number out of range.
    """

    crop: Crop
    crops: int = 1
    batch_size: int = 64
    shard_size: int = 10_000
    workers: int = 0
    seed: int = 0
    on_error: OnError = "raise"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.crops > 1 and self.crop.deterministic:
            raise ValueError(
                f"{self.crops} crops of a picture differ where the crop is drawn, got mode {self.crop.mode!r} without "
                "flip; choose the mode random or a flip"
            )
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"expected workers and seed >= 0, got {self.workers} and {self.seed}; choose others")


@dataclass(frozen=True)
class Tokenized:
    """What one call did."""

    pictures: int  #: that it read
    left_out: int  #: of them, broken
    seconds: float
    waited: float  #: of the seconds, for pictures
    index: dict[str, Any] | None  #: of the finished store; None where shards are missing that others make, or made


def plan_store(tokenizer: VisualTokenizer, source: ImageSource, name: str, settings: TokenizeSettings) -> StorePlan:
    """What a store of a source will be.

    Args:
        tokenizer: in float32.
        source: of the pictures.
        name: what they are called.
        settings: how they are tokenized.
    """
    spread = np.linspace(0, len(source) - 1, min(_NAMES, len(source))).astype(int).tolist()
    names = sha256("\n".join(source.name(index) for index in spread).encode()).hexdigest()[:16]
    captions = sha256(json.dumps([source.caption(index) for index in spread]).encode()).hexdigest()[:16]
    return StorePlan(
        tokenizer.identity(),
        {"name": name, "pictures": len(source), "names": names, "captions": captions},
        settings.crop.describe() | ({} if settings.crop.deterministic else {"seed": settings.seed}),
        settings.dtype,
        settings.crops,
        settings.batch_size,
        settings.shard_size,
    )


@torch.inference_mode()
def tokenize_source(
    tokenizer: VisualTokenizer,
    source: ImageSource,
    folder: str | Path,
    name: str,
    settings: TokenizeSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Tokenized:
    """Make what is missing of a token store.

    Any number of processes may do so at once, and any may die: see ``store_writer``.

    Args:
        tokenizer: in eval mode, in float32, on its device.
        source: pictures and captions; scenes bring questions too.
        folder: of the store, new or begun alike.
        name: what the pictures are called.
        settings: how they are tokenized.
        progress: called with (pictures of finished shards and of this process's, pictures in all) after every batch.

    Raises:
        BrokenImageError: a broken picture, where those are not skipped; the shards made so far stay.
        ValueError: a folder of something else, or a damaged shard in it.
        DiskFullError: no space left; the shards made so far stay.
    """
    plan = plan_store(tokenizer, source, name, settings)
    begun = time.perf_counter()
    with StoreWriter(folder, plan) as writer:
        views = _Views(source, settings)
        batches = _Batches(writer, settings)
        loader = DataLoader(
            views,
            batch_sampler=batches,
            num_workers=settings.workers,
            collate_fn=_Batch.of,
            worker_init_fn=partial(end_with, os.getpid()),
        )
        there = len(source) - sum(len(plan.pictures(number)) for number in writer.missing())
        work = _Work(tokenizer, writer, getattr(torch, settings.dtype))
        waited, last = 0.0, time.perf_counter()
        for batch in loader:
            waited += time.perf_counter() - last
            work.take(batch)
            if progress is not None:
                progress(there + work.pictures, len(source))
            last = time.perf_counter()
        index = writer.finish()
    return Tokenized(work.pictures, work.left_out, time.perf_counter() - begun, waited, index)


@dataclass(frozen=True)
class _View:
    """One crop of one picture, or that it is broken."""

    place: _Place
    key: str
    levels: Tensor | None = None  # [3, H, W] uint8; None of a broken picture
    digest: int = 0
    record: TokenRecord = field(default_factory=TokenRecord)


@dataclass(frozen=True)
class _Batch:
    """Views as a worker sends them: all pictures in one piece of memory."""

    places: list[_Place]
    left_out: list[str]  # names of broken pictures
    whole: list[_View]  # without their pictures
    levels: Tensor  # [B, 3, H, W] uint8, theirs

    @classmethod
    def of(cls, views: list[_View]) -> _Batch:
        whole = [view for view in views if view.levels is not None]
        levels = [view.levels for view in whole if view.levels is not None]
        return cls(
            [view.place for view in views],
            [view.key for view in views if view.levels is None and view.place[1] == 0],
            [replace(view, levels=None) for view in whole],
            torch.stack(levels) if levels else torch.empty(0),
        )


class _Views(Dataset[_View]):
    """Crops by picture and number, each drawn from seed, crop and picture alone."""

    def __init__(self, source: ImageSource, settings: TokenizeSettings) -> None:
        self.source, self.settings = source, settings

    def __getitem__(self, place: _Place) -> _View:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, crop = place
        name = self.source.name(index)
        generator = None
        if not self.settings.crop.deterministic:
            generator = np.random.default_rng((self.settings.seed, crop, index))
        try:
            picture = self.settings.crop(self.source.picture(index), generator)
        except BrokenImageError:
            if self.settings.on_error == "raise":
                raise
            return _View(place, name)
        levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        content = sha256(f"{index}/{crop}/{list(levels.shape)}".encode() + levels.numpy().tobytes())
        return _View(place, name, levels, int.from_bytes(content.digest(), "big"), record_of(self.source, index))


class _Batches(Sampler[list[_Place]]):
    """Batches of the shards that this process gets, shard after shard."""

    def __init__(self, writer: StoreWriter, settings: TokenizeSettings) -> None:
        self.writer, self.settings = writer, settings

    def __iter__(self) -> Iterator[list[_Place]]:
        for shard in self.writer.claims():
            places = [(i, crop) for i in self.writer.plan.pictures(shard) for crop in range(self.settings.crops)]
            for start in range(0, len(places), self.settings.batch_size):
                yield places[start : start + self.settings.batch_size]


class _Work:
    """Codes batches and writes a shard with its last one."""

    def __init__(self, tokenizer: VisualTokenizer, writer: StoreWriter, dtype: torch.dtype) -> None:
        self.tokenizer, self.writer, self.dtype = tokenizer, writer, dtype
        self.pictures = self.left_out = 0
        self._rows = list[Row]()
        self._left_out = list[str]()
        self._digest = 0

    def take(self, batch: _Batch) -> None:
        """Code a batch; where it is the last of its shard, write that."""
        if batch.whole:
            self._rows += self._coded(batch)
        self._digest = (self._digest + sum(view.digest for view in batch.whole)) % 2**256
        self._left_out += batch.left_out
        self.pictures += sum(crop == 0 for _, crop in batch.places)
        last, plan = batch.places[-1], self.writer.plan
        shard = last[0] // plan.shard_size
        if last == (plan.pictures(shard)[-1], plan.crops - 1):
            self.writer.write(shard, self._rows, f"{self._digest:064x}", self._left_out)
            self.left_out += len(self._left_out)
            self._rows, self._left_out, self._digest = [], [], 0

    def _coded(self, batch: _Batch) -> list[Row]:
        device = self.tokenizer.device
        with torch.autocast(device.type, self.dtype, self.dtype != torch.float32):
            ids = self.tokenizer.encode(from_uint8(batch.levels.to(device))).ids.cpu().numpy()
        told = zip(ids, batch.whole, strict=True)
        return [Row(own, view.record, view.key, *view.place) for own, view in told]
