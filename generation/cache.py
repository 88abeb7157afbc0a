"""Keys and values in the order of generation, in buffers made once: what is filled is read without a copy or a mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class PrefixLayer(CacheLayerMixin):
    """One layer's keys and values: a buffer, of which the first steps are filled.

    Args:
        capacity: steps that the buffer is made for; it grows by half where that is not enough.
    """

    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, ``[B, H, capacity, D]``."""
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.capacity, width)
        self.values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add those of T new steps, ``[B, H, T, D]``; all that is filled then, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.filled, self.filled + key_states.shape[2]
        if end > self.capacity:
            self._grow(end)
        keys, values = self._buffers()
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.filled = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self) -> int:
        """Steps that are filled."""
        return self.filled

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Steps that a mask covers, and where it begins."""
        return self.filled + query_length, 0

    def crop(self, max_length: int) -> None:
        """Forget the last ``-max_length`` steps."""
        self.filled += max_length

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        keys, values = self._buffers()
        self.keys, self.values = keys[:count], values[:count]

    def _buffers(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _grow(self, needed: int) -> None:
        keys, values = self._buffers()
        self.capacity = max(needed, self.capacity + self.capacity // 2)
        self.lazy_initialization(keys, values)
        self._buffers()[0][:, :, : self.filled] = keys[:, :, : self.filled]
        self._buffers()[1][:, :, : self.filled] = values[:, :, : self.filled]


class PrefixCache(Cache):
    """A :class:`PrefixLayer` for every layer of a model.

    Args:
        layers: of the model.
        capacity: steps.
    """

    layers: list[PrefixLayer]  # pyright: ignore[reportIncompatibleVariableOverride]: of one kind

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[PrefixLayer(capacity) for _ in range(layers)])

    def forget(self, count: int) -> None:
        """Forget the last ``count`` steps."""
        for layer in self.layers:
            layer.crop(-count)

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        for layer in self.layers:
            layer.keep(count)
