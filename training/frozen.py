"""A network that is looked at, not trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.held import Shared


class Frozen(Shared):
    """Keeps a network out of the module tree: no gradients, no part of checkpoints, shared by copies of its owner.

    Args:
        module: called in evaluation mode, on the device of its input.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.eval().requires_grad_(False))

    def __call__(self, images: Tensor) -> Any:
        """The network's answer, without gradients."""
        with torch.no_grad():
            return self.network.to(images.device)(images)
