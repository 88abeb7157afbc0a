"""Weights laid out for products with few rows, on CPUs: what sampling is made of.

A product of a few rows with a matrix that lies row by row runs at a fraction of the speed at which memory can be read.
oneDNN keeps matrices in blocks for it; frozen graphs of ``torch.compile`` do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An affine map whose matrix lies in oneDNN's blocks. It cannot be trained or moved; its state is a plain matrix's.

    Args:
        linear: what it replaces, on a CPU in float32 or bfloat16; it is not changed.

    Raises:
        ValueError: a matrix on another device or of another type.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"weights are packed on a CPU in float32 or bfloat16, got {weight.dtype} on {weight.device}; move the "
                "model there first"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias: Any = linear.bias  # typed as always there
        self.bias: Tensor | None = None if bias is None else bias.detach()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a copy that lies row by row."""
        return self._packed.to_dense()

    def forward(self, states: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        probe = fn(torch.empty(0, dtype=self._packed.dtype))
        if probe.device.type != "cpu" or probe.dtype != self._packed.dtype:
            raise RuntimeError(
                f"packed weights stay on the CPU in {self._packed.dtype}, got {probe.dtype} on {probe.device}; load "
                "the model again, move it and pack it then"
            )
        return self


def pack(module: nn.Module) -> int:
    """Replace every plain linear layer within a module, one by one, so that no two copies of all are kept.

    Args:
        module: in evaluation mode, on a CPU.

    Returns:
        How many were replaced; 0 where torch was built without oneDNN.

    Raises:
        ValueError: weights on another device or of another type.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
                replaced += 1
    return replaced
