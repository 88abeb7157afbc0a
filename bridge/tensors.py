"""Shapes and losses as the references state them, for replaying their outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tokenizers.quantizers import Quantizer

_WEIGHTS = ("codebook", "commitment", "entropy")


def of_map(features: Tensor) -> Tensor:
    """``[B, C, h, w]`` to ``[B, h * w, C]``."""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """``[B, h * w, C]`` to ``[B, C, h, w]``."""
    return tokens.transpose(1, 2).unflatten(2, tuple(shape))


def term(quantizer: Quantizer, latents: Tensor, **weights: float) -> Tensor:
    """The training loss with only these of its weights; the others are zero."""
    alone = copy.deepcopy(quantizer).train()
    for module in alone.modules():
        for name in _WEIGHTS:
            if hasattr(module, name):
                setattr(module, name, weights.get(name, 0.0))
    return alone(latents).loss


def gradients(loss: Tensor, *wanted: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
    """Gradients of a scalar; ``keep`` allows another scalar of the same graph."""
    return torch.autograd.grad(loss, wanted, retain_graph=keep)
