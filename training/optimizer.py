"""AdamW, its parameter groups and its learning-rate schedule, without Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: Modules whose weights are not matrices of a linear map.
_NOT_DECAYED = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class OptimizerSettings:
    """How every model is optimized.

    Args:
        learning_rate: peak of AdamW (https://arxiv.org/abs/1711.05101).
        betas: its decay rates, each in [0, 1).
        weight_decay: on weight matrices only, never on biases, norms, embeddings or codebooks.
        warmup_steps: optimizer steps of linear warm-up.
        schedule: after the warm-up ``cosine`` down to ``final_fraction`` of the peak, or ``constant``.
        final_fraction: of the peak, reached at the last step.
        clip: largest gradient norm of each trained part, or None.

    Raises:
        ValueError: a learning rate, clip or number of steps out of range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "cosine"
    final_fraction: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}; 1e-4 to 1e-3 is usual")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}; 0 starts at the full rate")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be above 0, got {self.clip}; null leaves gradients as they are")


OPTIMIZER = OptimizerSettings()  #: the defaults


@dataclass(frozen=True)
class Trained:
    """One part of a training module that has a learning rate and a gradient norm of its own."""

    module: nn.Module
    learning_rate: float


def parameter_groups(name: str, part: Trained, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups of one part: weights with decay, everything else without.

    Args:
        name: kept in each group under ``part``.
        part: frozen parameters of it are left out.
        weight_decay: of the first group.
    """
    decayed, plain = list[Tensor](), list[Tensor]()
    for parameter, decays in _parameters(part.module):
        (decayed if decays else plain).append(parameter)
    common = {"part": name, "lr": part.learning_rate}
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group | common for group in groups if group["params"]]


def _parameters(module: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    seen = set[int]()
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                table = isinstance(child, _NOT_DECAYED) or "embed" in name or "position" in name
                yield parameter, parameter.ndim >= 2 and not table


def schedule(settings: OptimizerSettings, total: float) -> Callable[[int], float]:
    """The learning rate of every step as a fraction of its peak.

    Args:
        settings: warm-up and shape.
        total: optimizer steps of the whole run.

    Raises:
        ValueError: a cosine over an unknown number of steps.
    """
    if settings.schedule == "cosine" and not math.isfinite(total):
        raise ValueError("a cosine schedule needs to know where the run ends, got no limit; set trainer.max_steps")

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
        return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def gradients(optimizer: torch.optim.Optimizer) -> dict[str, list[Tensor]]:
    """Gradients of each part; parts without any have an empty list."""
    found: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["part"], []).extend(p.grad for p in group["params"] if p.grad is not None)
    return found
