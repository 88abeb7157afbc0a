"""Pictures for training: an image source, cropped and batched, with exact resume."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..data.base import ImageSource, Part
from ..data.pictures import Batch, Item, OnError, Pictures, collate
from ..data.transforms import Crop, CropMode, Filter
from .resume import ResumableData

_log = logging.getLogger(__name__)


class ImageData(ResumableData):
    """Pictures of one size to train on, and others to validate on.

    Batches are `smalti.data.pictures.Batch`. Validation pictures are always cropped at the center and never mirrored.
    The pictures that could not be read are counted over the run, logged as ``data/skipped`` at the end of every epoch,
    and named in one warning after the first.

    Args:
        train: pictures to train on.
        size: side of the square crop, in pixels.
        validation: pictures to validate on.
        batch_size: pictures per process.
        workers: processes that decode; 0 decodes in the training process.
        crop: of the training pictures; random draws place and scale anew each epoch.
        filter: of the resize.
        flip: mirror every second training picture, by chance.
        on_error: ``skip`` shows the next readable picture in place of a broken one; ``raise`` stops.
        seed: of the order and the crops, >= 0.
        cache: keep cropped pictures in memory as uint8; for crops without chance.
        held_out: validate on the last so many pictures of ``train`` and do not train on them.

    Raises:
        ValueError: a negative ``held_out``, or one beside ``validation``; in `train_set`, one that leaves nothing.
    """

    def __init__(
        self,
        train: ImageSource,
        size: int,
        validation: ImageSource | None = None,
        batch_size: int = 32,
        workers: int = 0,
        *,
        crop: CropMode = "center",
        filter: Filter = "lanczos",  # noqa: A002 - Pillow's word
        flip: bool = False,
        on_error: OnError = "skip",
        seed: int = 0,
        cache: bool = False,
        held_out: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if held_out < 0:
            raise ValueError(f"expected held_out >= 0, got {held_out}; give the number of pictures to validate on")
        if held_out and validation is not None:
            raise ValueError(f"expected validation or held_out, got both (held_out={held_out}); drop one of them")
        self.train, self.validation, self.held_out = train, validation, held_out
        self.on_error: OnError = on_error
        self.cache = cache
        self.train_crop = Crop(size, crop, filter, flip)
        self.validation_crop = Crop(size, "center", filter)
        self._train_set: Pictures | None = None
        self._validation_set: Pictures | None = None
        self._skipped: set[int] = set()
        self._warned = False

    def train_set(self) -> Pictures:
        """The training pictures, without those held out."""
        if self._train_set is None:
            source = self.train if self.held_out == 0 else Part(self.train, 0, self._kept())
            self._train_set = Pictures(source, self.train_crop, self.on_error, self.seed, self.cache)
        return self._train_set

    def validation_set(self) -> Pictures | None:
        """The validation pictures, or those held out, or None."""
        if self._validation_set is None:
            source = self.validation
            if self.held_out:
                source = Part(self.train, self._kept(), len(self.train))
            if source is None:
                return None
            self._validation_set = Pictures(source, self.validation_crop, self.on_error, self.seed, self.cache)
        return self._validation_set

    def first(self) -> Item:
        """The first readable training picture, to try a model on; the validation pictures are looked for too.

        Raises:
            ValueError: nothing to train on.
        """
        self.validation_set()
        return self.train_set()[0]

    @staticmethod
    def collate(items: list[Item]) -> Batch:
        """Items to a batch."""
        return collate(items)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the pictures a training batch had to do without, and report them with the last batch of an epoch."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            self._skipped.update(batch["skipped"])
            if trainer.is_last_batch:
                self._report()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """That of `ResumableData`, and the pictures skipped so far."""
        state = super().state_dict()
        return state | {"skipped": sorted(self._skipped)} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting skipped pictures where the checkpoint stopped."""
        super().load_state_dict(state_dict)
        self._skipped = set(state_dict["skipped"])

    def _kept(self) -> int:
        total = len(self.train)
        if self.held_out >= total:
            raise ValueError(f"expected held_out < {total} pictures, got {self.held_out}; leave some to train on")
        return total - self.held_out

    def _report(self) -> None:
        trainer = self.trainer
        if trainer is None:
            return
        seen = trainer.strategy.reduce(self._seen(trainer.strategy.root_device), reduce_op="max")
        found: list[int] = torch.as_tensor(seen).nonzero().flatten().tolist()
        for logger in trainer.loggers:
            logger.log_metrics({"data/skipped": float(len(found))}, step=trainer.global_step)
        if found and not self._warned and trainer.is_global_zero:
            names = ", ".join(self.train_set().source.name(index) for index in found[:3])
            _log.warning(
                "%d of %d training pictures cannot be read and are replaced by the next readable one: %s%s; "
                "pass on_error='raise' to stop at the first",
                len(found), len(self.train_set()), names, ", ..." if len(found) > 3 else "",
            )  # fmt: skip
        self._warned = True

    def _seen(self, device: torch.device) -> Tensor:
        """``[N]`` int64, 1 where a picture was skipped on this process: ranks skip different ones, and may overlap."""
        seen = torch.zeros(len(self.train_set()), dtype=torch.int64, device=device)
        seen[sorted(self._skipped)] = 1
        return seen
