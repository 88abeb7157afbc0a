"""Frozen networks that another module looks through: not trained, saved or cast with it. Knows no kind of network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class Held(nn.Module):
    """Keeps a frozen network outside the tree of modules.

    The network follows moves between devices, but ``parameters()``, ``state_dict()``, ``train()`` and casts do not see
    it. A module that owns one therefore never trains it, never writes it into a checkpoint, and loads its checkpoints
    strictly. Gradients still flow through the network to what it reads.

    Args:
        network: made float32, frozen and put in eval mode in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._outside = (network.float().eval().requires_grad_(requires_grad=False),)

    @property
    def network(self) -> Any:
        """The frozen network."""
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(keeping_dtype(fn))
        return super()._apply(fn, recurse)


class Shared:
    """Keeps a network out of the tree of modules and as it is: copies of its owner share it.

    Args:
        network: of any kind, or None.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` without its casts: what changes the device still does, what changes the dtype does not."""

    def move(tensor: Tensor) -> Tensor:
        after = fn(tensor)
        return after if after.dtype == tensor.dtype else tensor.to(after.device)

    return move
