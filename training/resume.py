"""A Lightning data module whose order survives an interruption in the middle of an epoch.

Lightning restores how many batches were trained on, but leaves it to the loader to skip them. A loader that counts what
it hands out counts too far, because workers read ahead. So nothing is counted here: each pass over the data begins at
the batch that the trainer's own progress names, which is the same number in a resumed and in an uninterrupted run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate

from ..data.order import ResumableOrder


class ResumableLoader:
    """Batches of one pass at a time, from wherever training has got to.

    Not a `DataLoader` itself: Lightning would replace its sampler in distributed runs and set that sampler's epoch to
    its own count, which differs after a run that ``max_steps`` ended in mid-epoch.

    Args:
        loader: reads by ``order``.
        order: its sampler.
        position: number of batches trained on since the first of epoch 0.
    """

    def __init__(self, loader: DataLoader[Any], order: ResumableOrder, position: Callable[[], int]) -> None:
        self.loader, self.order, self.position = loader, order, position

    def __len__(self) -> int:
        return self.order.batches

    def __iter__(self) -> Iterator[Any]:
        # Read with the first batch, not before: where Lightning has to count the batches of an epoch, it makes this
        # iterator before it restores how far it had got.
        self.order.start = self.position()
        yield from self.loader

    @property
    def _iterator(self) -> Any:
        # Lightning looks for this name on a loader to end its workers with the fit. Left to the garbage collector, each
        # of them is waited for five seconds: its queue is finalized before the message to stop is sent.
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the trainer's. Lightning warns of an inexact resume where the method is missing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class ResumableData(LightningDataModule, ABC):
    """Loaders of map-style data sets with exact resume; subclasses say which data sets.

    Training drops the incomplete last batch of an epoch, validation keeps it. A checkpoint records the epoch, the
    batches of it that were trained on, and what the order depends on; resuming with another order is an error.

    Args:
        batch_size: items per process.
        workers: processes that read; 0 reads in the training process.
        seed: of the order, >= 0.
        shuffle: a new permutation every epoch; False trains in index order.

    Raises:
        ValueError: a negative number of workers.
    """

    def __init__(self, batch_size: int = 32, workers: int = 0, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        if workers < 0:
            raise ValueError(f"expected workers >= 0, got {workers}; 0 reads in the training process")
        self.batch_size, self.workers, self.seed, self.shuffle = batch_size, workers, seed, shuffle
        self._order: ResumableOrder | None = None
        self._restored: dict[str, Any] | None = None

    @abstractmethod
    def train_set(self) -> Dataset[Any]:
        """The data to train on: sized, by index in ``[0, len)``."""

    @abstractmethod
    def validation_set(self) -> Dataset[Any] | None:
        """The data to validate on, or None."""

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Items to a batch; a static method, so that workers are sent no trainer."""
        return default_collate(items)

    def train_dataloader(self) -> ResumableLoader:
        """One pass of the training data from the trainer's position on.

        Raises:
            ValueError: the checkpoint to resume was written with another order.
        """
        data = self.train_set()
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = ResumableOrder(_length(data), self.seed, self.shuffle, rank, world, batch_size=self.batch_size)
        self._check_restored(order)
        self._order = order
        return ResumableLoader(self._loader(data, order, drop_last=True), order, self.position)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation data in index order; no loader where there is none."""
        data = self.validation_set()
        return [] if data is None else self._loader(data, None, drop_last=False)

    def position(self) -> int:
        """Batches trained on since the first of epoch 0, on each process; 0 without a trainer or when overfitting."""
        # Both attributes exist on every trainer; Lightning declares neither.
        if self.trainer is None or self.trainer.overfit_batches > 0:  # pyright: ignore[reportAttributeAccessIssue]
            return 0
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed  # pyright: ignore[reportAttributeAccessIssue]

    def state_dict(self) -> dict[str, Any]:
        """``epoch``, ``batch`` (batches of it trained on), and what the order depends on; empty before training."""
        if self._order is None:
            return {}
        epoch, batch = self._order.locate(self.position())
        return {"epoch": epoch, "batch": batch, "order": _describe(self._order)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint says, for `train_dataloader` to check."""
        self._restored = state_dict

    def _check_restored(self, order: ResumableOrder) -> None:
        if self._restored is None:
            return
        before, now = self._restored["order"], _describe(order)
        for name, value in before.items():
            if now[name] != value:
                raise ValueError(
                    f"expected {name} {value} as in the checkpoint, got {now[name]}; "
                    "resume with the same data, or load the weights alone and start a new run"
                )
        self._restored = None

    def _loader(self, data: Dataset[Any], order: ResumableOrder | None, drop_last: bool) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.workers,
            collate_fn=self.collate,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
        )


def _describe(order: ResumableOrder) -> dict[str, Any]:
    """What decides which batch comes when, as the checkpoint names it; the split among processes does not."""
    return {
        "items": order.length,
        "global batch size": order.batch_size * order.world,
        "seed": order.seed,
        "shuffle": order.shuffle,
    }


def _length(data: Dataset[Any]) -> int:
    """Raise TypeError where a data set has no length."""
    try:
        return len(data)  # pyright: ignore[reportArgumentType] - torch leaves __len__ out of Dataset on purpose
    except TypeError as error:
        raise TypeError(
            f"expected a map-style data set with a length, got {type(data).__name__}; define __len__"
        ) from error
