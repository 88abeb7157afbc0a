"""The cache of a language model's layers, in the order of generation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ..lm.cache import KeyValues


class PrefixLayer(KeyValues, CacheLayerMixin):
    """One layer's keys and values, as ``transformers`` wants them.

    Args:
        capacity: see :class:`~smalti.lm.cache.KeyValues`.
    """

    is_croppable = True

    def __init__(self, capacity: int) -> None:
        CacheLayerMixin.__init__(self)
        KeyValues.__init__(self, capacity)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: buffers are made when the first steps come."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add those of T new steps, ``[B, H, T, D]``; all that is filled then, as views."""
        return self.append(key_states, value_states)

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
        """Forget the last ``-max_length`` steps.

        Raises:
            ValueError: a positive number, which transformers once took as the steps to keep.
        """
        if max_length > 0:
            raise ValueError(f"a cache forgets a negative number of steps, got {max_length}; count from its end")
        self.forget(-max_length)


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
            layer.forget(count)

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` sequences alone."""
        for layer in self.layers:
            layer.keep(count)
