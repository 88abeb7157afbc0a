"""Keys and values in the order in which they were made, in a buffer of which the first steps are filled."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValues:
    """Keys and values of one layer: what is filled is read without a copy. They belong to one call of decoding.

    Args:
        capacity: steps that the buffer is made for when the first come; it grows by half where that is not enough.
    """

    keys: Tensor | None  #: [B, H, capacity, D], of which the first steps are filled
    values: Tensor | None  #: likewise

    def __init__(self, capacity: int) -> None:
        self.keys, self.values = None, None
        self.capacity, self.filled = capacity, 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T new steps, ``[B, H, T, D]``; all that is filled then, as views."""
        start, end = self.filled, self.filled + keys.shape[2]
        self.capacity = self.capacity if end <= self.capacity else max(end, self.capacity + self.capacity // 2)
        self.keys = _written(self.keys, keys, start, self.capacity)
        self.values = _written(self.values, values, start, self.capacity)
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def forget(self, count: int) -> None:
        """Forget the last ``count`` steps."""
        self.filled -= count

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:count], self.values[:count]

    def join(self, other: KeyValues, sequences: int) -> None:
        """Add sequences of another one, whose steps stand beside the last of this one's, if any.

        Args:
            other: of the sequences; with no more steps than this one.
            sequences: how many.
        """
        start = self.filled - other.filled
        for name in ("keys", "values"):
            own, read = getattr(self, name), getattr(other, name)
            if own is not None:
                more = own.new_zeros(sequences, *own.shape[1:])
                if read is not None:
                    more[:, :, start : self.filled] = read[:, :, : other.filled]
                setattr(self, name, torch.cat([own, more]))


def _written(buffer: Tensor | None, new: Tensor, start: int, capacity: int) -> Tensor:
    """A buffer of some capacity with new steps from ``start`` on; the same one, where it is large enough."""
    found = buffer
    if found is None or found.shape[2] < capacity:
        batch, heads, _, width = new.shape
        found = new.new_empty(batch, heads, capacity, width)
        if buffer is not None:
            found[:, :, :start] = buffer[:, :, :start]
    found[:, :, start : start + new.shape[2]] = new
    return found
