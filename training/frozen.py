"""A network that is looked at, not trained."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen:
    """Keeps a network out of the module tree: no gradients, no part of checkpoints, shared by copies of its owner.

    Args:
        module: called in evaluation mode, on the device of its input.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Any:
        """The network's answer, without gradients."""
        with torch.no_grad():
            return self.module.to(images.device)(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
