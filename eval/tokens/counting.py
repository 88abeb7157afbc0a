"""Counting what occurs together, by sorting: the arithmetic below every statistic of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = "npt.NDArray[np.int64]"
Floats: TypeAlias = "npt.NDArray[np.float64]"

_ROOM = 1 << 62  #: keys stay below, so that one bit more still fits


def combined(columns: Sequence[Ids]) -> Ids:
    """One key per row, equal where the rows are equal.

    Args:
        columns: at least one, of one length, non-negative.

    Returns:
        ``[T]`` keys below 2^62.
    """
    key, bound = columns[0], _bound(columns[0])
    for column in columns[1:]:
        width = _bound(column)
        if bound * width > _ROOM:
            key = labels(key)
            bound = _bound(key)
        key, bound = key * width + column, bound * width
    return key


def labels(keys: Ids) -> Ids:
    """Keys renumbered from 0 without gaps, in their order."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def tally(keys: Ids) -> Ids:
    """How often each distinct key occurs, in the order of the keys."""
    if not len(keys):
        return keys
    if _bound(keys) <= 4 * len(keys):
        counts = np.bincount(keys)
        return counts[counts > 0]
    ordered = np.sort(keys)
    return _lengths(np.flatnonzero(np.diff(ordered)) + 1, len(ordered))


def tally_halves(first: Ids, second: Ids) -> tuple[Ids, Ids]:
    """How often each key that occurs in either of two samples occurs in each: two arrays, one entry per key."""
    ordered = np.sort(np.concatenate([first * 2, second * 2 + 1]))
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered >> 1)) + 1])
    in_second = np.add.reduceat(ordered & 1, starts)
    return np.diff(np.append(starts, len(ordered))) - in_second, in_second


@dataclass(frozen=True)
class Table:
    """Distinct keys, sorted, with how often each occurs."""

    keys: Ids
    counts: Ids

    @classmethod
    def of(cls, keys: Ids) -> Table:
        """Count keys."""
        return cls(*np.unique(keys, return_counts=True))

    def look_up(self, keys: Ids) -> Ids:
        """The count of each key, 0 for those that do not occur."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0)


def _bound(column: Ids) -> int:
    return int(column.max()) + 1 if len(column) else 1


def _lengths(breaks: Ids, total: int) -> Ids:
    return np.diff(np.concatenate([[0], breaks, [total]]))
