"""In which order a data set is read, so that a run that was cut off goes on with exactly the batch it would have seen.

Whole batches are counted from the first one of epoch 0 on; the count alone tells which indices come next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class Draw(int):
    """An index that knows its epoch, so that a data set can draw anew each epoch and needs no state for it."""

    epoch: int

    def __new__(cls, index: int, epoch: int) -> Draw:
        draw = super().__new__(cls, index)
        draw.epoch = epoch
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        return Draw, (int(self), self.epoch)


class ResumableOrder(Sampler[int]):
    """Indices of one pass, starting at any batch.

    Every epoch is a new permutation drawn from ``(seed, epoch)``. It is cut into batches of ``batch_size * world``;
    rank r takes the r-th ``batch_size`` of each, so that all ranks read equally many batches, and one process with
    batch size 8 reads what two read with 4. What is left over is dropped, another part in each epoch.

    Where rows lie in groups that are read as a whole, ``groups`` keeps those of a group near each other: groups come in
    a new order every epoch, and rows change places among ``near`` groups that follow each other there.

    Iterating yields one epoch's number of indices from batch ``start`` on, over the end of an epoch where ``start`` is
    not its beginning. ``start`` is read when an iteration begins.

    Args:
        length: number of items in the data set.
        seed: >= 0.
        shuffle: False reads in index order.
        rank: of this process, in ``[0, world)``.
        world: number of processes.
        batch_size: per process.
        groups: where groups begin, ascending from 0, and ``length``; None shuffles all rows alike.
        near: groups whose rows are shuffled together, >= 1.

    Raises:
        ValueError: a number out of range, fewer items than one batch, or groups that do not span the data.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        *,
        batch_size: int = 1,
        groups: Sequence[int] | None = None,
        near: int = 16,
    ) -> None:
        if seed < 0:
            raise ValueError(f"expected a seed >= 0, got {seed}; choose another")
        if not 0 <= rank < world:
            raise ValueError(f"expected a rank in [0, {world}), got {rank}; check rank and world")
        if batch_size < 1:
            raise ValueError(f"expected a batch size >= 1, got {batch_size}; choose another")
        if length < batch_size * world:
            raise ValueError(
                f"expected at least one batch of {batch_size} x {world} processes, got {length} items; "
                "lower the batch size or add data"
            )
        if near < 1 or (groups is not None and (groups[0], groups[-1]) != (0, length)):
            ends = "no groups" if groups is None else f"groups from {groups[0]} to {groups[-1]}"
            raise ValueError(f"expected near >= 1 and groups from 0 to {length}, got {near} and {ends}; correct them")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.groups, self.near = groups, near
        self.rank, self.world, self.batch_size = rank, world, batch_size
        self.start = 0  #: batch the next iteration begins with, counted from the first of epoch 0

    @property
    def batches(self) -> int:
        """Batches of one epoch, on each process."""
        return self.length // (self.batch_size * self.world)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return self._draws(self.start)

    def locate(self, start: int) -> tuple[int, int]:
        """Epoch of batch ``start``, and how many batches of that epoch come before it."""
        return divmod(start, self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at the first batch of ``epoch``; for loops that count epochs."""
        self.start = epoch * self.batches

    def _draws(self, start: int) -> Iterator[int]:
        (epoch, first), left = self.locate(start), self.batches
        while left > 0:
            for batch in self._epoch(epoch)[first : first + left]:
                yield from (Draw(index, epoch) for index in batch.tolist())
            left -= self.batches - first
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """``[batches, batch_size]``: this rank's indices."""
        order = self._shuffled(np.random.default_rng((self.seed, epoch))) if self.shuffle else np.arange(self.length)
        whole = order[: self.batches * self.batch_size * self.world]
        return whole.reshape(self.batches, self.world, self.batch_size)[:, self.rank]

    def _shuffled(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        if self.groups is None:
            return generator.permutation(np.arange(self.length, dtype=np.int64))
        drawn = generator.permutation(len(self.groups) - 1)
        parts = list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]()
        for start in range(0, len(drawn), self.near):
            rows = [np.arange(self.groups[g], self.groups[g + 1]) for g in drawn[start : start + self.near]]
            parts.append(generator.permutation(np.concatenate(rows)))
        return np.concatenate(parts)
