"""A Lightning data module whose order survives an interruption in the middle of an epoch.

Lightning restores how many batches were trained on, but leaves it to the loader to skip them. A loader that counts what
it hands out counts too far, because workers read ahead. So nothing is counted here: each pass over the data begins at
the batch that the trainer's own progress names, which is the same number in a resumed and in an uninterrupted run.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, default_collate

from ..data.order import ResumableOrder

#: What comes after the last batch.
_END = object()


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
        self.waited = 0.0  #: seconds that training has stood still for its batches

    def __len__(self) -> int:
        return self.order.batches

    def __iter__(self) -> Iterator[Any]:
        # Read with the first batch, not before: where Lightning has to count the batches of an epoch, it makes this
        # iterator before it restores how far it had got.
        self.order.start = self.position()
        batches = iter(self.loader)
        while True:
            begun = time.monotonic()
            batch = next(batches, _END)
            self.waited += time.monotonic() - begun
            if batch is _END:
                return
            yield batch

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


class DealtOrder(DistributedSampler[Any]):
    """Every item once, in index order, one to each process in turn: process r reads items r, r + world, ...

    Processes may read different numbers of items. Not torch's own, which makes them equal by repeating items, and which
    Lightning would put in the place of any other kind.

    Args:
        data: sized.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, data: Dataset[Any], rank: int = 0, world: int = 1) -> None:
        super().__init__(data, world, rank, shuffle=False)
        self._numbers = range(rank, _length(data), world)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class ResumableData(LightningDataModule, ABC):
    """Loaders of map-style data sets with exact resume; subclasses say which data sets.

    Training drops the incomplete last batch of an epoch, validation keeps it and shows every item once, on one of the
    processes. A checkpoint records the epoch, the batches of it that were trained on, and what the order depends on;
    resuming with another order is an error.

    Args:
        batch_size: items per process.
        workers: processes that read; 0 reads in the training process.
        seed: of the order, >= 0.
        shuffle: a new permutation every epoch; False trains in index order.

    Raises:
        ValueError: a negative number of workers, or batches of nothing.
    """

    def __init__(self, batch_size: int = 32, workers: int = 0, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        if workers < 0:
            raise ValueError(f"expected workers >= 0, got {workers}; 0 reads in the training process")
        if batch_size < 1:
            raise ValueError(f"expected a batch size >= 1, got {batch_size}; choose another")
        self.batch_size, self.workers, self.seed, self.shuffle = batch_size, workers, seed, shuffle
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have nothing to validate
        self._order: ResumableOrder | None = None
        self._loaders: list[ResumableLoader] = []
        self._restored: dict[str, Any] | None = None

    @abstractmethod
    def train_set(self) -> Dataset[Any]:
        """The data to train on: sized, by index in ``[0, len)``."""

    @abstractmethod
    def validation_set(self) -> Dataset[Any] | None:
        """The data to validate on, or None."""

    def near_rows(self) -> dict[str, Any]:
        """``groups`` and ``near`` of `ResumableOrder`, where rows are best read near others."""
        return {}

    def describe_data(self) -> dict[str, Any]:
        """What else a resumed run must find as it was, as plain values by name."""
        return {}

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Items to a batch; a static method, so that workers are sent no trainer."""
        return default_collate(items)

    def check_order(self, world: int) -> None:
        """Look at the training data before a run writes anything.

        Args:
            world: number of processes.

        Raises:
            ValueError: too few items for a batch of every process, or a negative seed.
        """
        length, size = _length(self.train_set()), self.batch_size
        ResumableOrder(length, self.seed, self.shuffle, 0, world, batch_size=size, **self.near_rows())

    def train_dataloader(self) -> ResumableLoader:
        """One pass of the training data from the trainer's position on.

        Raises:
            ValueError: the checkpoint to resume was written with another order.
        """
        data = self.train_set()
        rank, world = self._seat()
        options: dict[str, Any] = {"batch_size": self.batch_size, **self.near_rows()}
        order = ResumableOrder(_length(data), self.seed, self.shuffle, rank, world, **options)
        self._check_restored(order)
        self._order = order
        self._loaders.append(ResumableLoader(self._loader(data, order, drop_last=True), order, self.position))
        return self._loaders[-1]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """This process's items of the validation data, in index order; no loader where there is none."""
        data = self.validation_set()
        return [] if data is None else self._loader(data, DealtOrder(data, *self._seat()), drop_last=False)

    @property
    def waited(self) -> float:
        """Seconds that training has stood still for its batches, in this process."""
        return sum(loader.waited for loader in self._loaders)

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
        return {"epoch": epoch, "batch": batch, "order": self.describe_data() | _describe(self._order)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint says, for `train_dataloader` to check."""
        self._restored = state_dict

    def _seat(self) -> tuple[int, int]:
        """Rank, and number of processes; those of one process without a trainer."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _check_restored(self, order: ResumableOrder) -> None:
        if self._restored is None:
            return
        before, now = self._restored["order"], self.describe_data() | _describe(order)
        for name in before | now:
            if now.get(name) != before.get(name):
                raise ValueError(
                    f"expected {name} {before.get(name)} as in the checkpoint, got {now.get(name)}; "
                    "resume with the same data, or load the weights alone and start a new run"
                )
        self._restored = None

    def _loader(self, data: Dataset[Any], order: Sampler[int], drop_last: bool) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.workers,
            collate_fn=self.collate,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=partial(end_with, os.getpid()),
        )


def end_with(parent: int, worker: int) -> None:
    """End a worker whose parent is gone before it could look after it: torch would wait for that one for ever."""
    if os.getppid() != parent:
        os._exit(1)


def _describe(order: ResumableOrder) -> dict[str, Any]:
    """What decides which batch comes when, as the checkpoint names it; the split among processes does not."""
    near = {} if order.groups is None else {"groups near each other": order.near}
    return near | {
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
