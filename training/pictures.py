"""Pictures and what is said about them: to train on both together, before there are codes to store."""

from __future__ import annotations

import logging
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.base import ImageSource
from ..data.pictures import OnError, Pictures
from ..data.transforms import Crop
from .encode import Pages
from .resume import ResumableData

_log = logging.getLogger(__name__)


class PictureText(TypedDict):
    """One picture and its texts; those of stored codes have ``ids`` in place of ``images``."""

    images: Tensor  #: [3, H, W] float32 in [-1, 1]
    caption: str | None
    questions: tuple[tuple[str, str], ...]  #: pairs of question and answer


class PictureTexts(Dataset[PictureText]):
    """Pages as one mapping each.

    Args:
        pages: pictures with what is known about them.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self._warned = False

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> PictureText:
        """The picture at ``index`` in ``[0, len)``, or the next readable one; errors are those of `Pictures`."""
        item, record = self.pages[index]
        if item["skipped"] and not self._warned:
            self._warned = True
            _log.warning(
                "%s cannot be read, it and others like it are replaced by the next readable picture; "
                "pass on_error='raise' to stop at the first",
                self.pages.pictures.source.name(item["skipped"][0]),
            )
        return PictureText(images=item["images"], caption=record.caption, questions=record.questions)


class PictureTextData(ResumableData):
    """Pictures of one size with captions and questions, for a language model that tunes its tokenizer (ETT,
    https://arxiv.org/abs/2505.10562).

    Batches are lists of `PictureText`. Pictures are cropped at the center and never mirrored: captions say left and
    right. The first picture that cannot be read is named in a warning (of each worker).

    Args:
        train: pictures to train on; scenes bring questions too.
        size: side of the square crop, in pixels: that of the tokenizer.
        validation: pictures to validate on.
        batch_size: pictures per process.
        workers: processes that decode; 0 decodes in the training process.
        seed: of the order, >= 0.
        cache: keep cropped pictures in memory as uint8, in each worker.
        on_error: ``skip`` shows the next readable picture in place of a broken one; ``raise`` stops.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        train: ImageSource,
        size: int,
        validation: ImageSource | None = None,
        batch_size: int = 32,
        workers: int = 0,
        *,
        seed: int = 0,
        cache: bool = False,
        on_error: OnError = "skip",
    ) -> None:
        super().__init__(batch_size, workers, seed)
        options = (Crop(size, "center"), on_error, seed, cache)
        self.train = PictureTexts(Pages(Pictures(train, *options)))
        self.validation = None if validation is None else PictureTexts(Pages(Pictures(validation, *options)))

    def train_set(self) -> PictureTexts:
        """The pictures to train on."""
        return self.train

    def validation_set(self) -> PictureTexts | None:
        """The pictures to validate on, or None."""
        return self.validation

    @staticmethod
    def collate(items: list[PictureText]) -> list[PictureText]:
        """A batch stays a list of pictures: sequences are built where the vocabulary is."""
        return items

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures stay where they are, beside their texts, until they are encoded."""
        return batch
