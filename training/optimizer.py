"""AdamW, Muon beside it, their parameter groups and the learning-rate schedule, without Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from .sharding import whole

#: Modules whose weights are not matrices of a linear map.
_NOT_DECAYED = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class OptimizerSettings:
    """How every model is optimized.

    Args:
        learning_rate: peak of AdamW (https://arxiv.org/abs/1711.05101).
        muon: peak of Muon (https://arxiv.org/abs/2502.16982, scaled to the update size of AdamW) for the weight
            matrices between input and output; embeddings, output matrices, convolutions, norms and biases stay with
            AdamW. None, the default, gives everything to AdamW.
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
    muon: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "cosine"
    final_fraction: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}; 1e-4 to 1e-3 is usual")
        if self.muon is not None and not 0 < self.muon < math.inf:
            raise ValueError(f"muon must be a rate above 0, got {self.muon}; null trains everything with AdamW")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}; 0 starts at the full rate")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}; null leaves gradients as they are")


OPTIMIZER = OptimizerSettings()  #: the defaults


@dataclass(frozen=True)
class Trained:
    """One part of a training module that has a learning rate and a gradient norm of its own."""

    module: nn.Module
    learning_rate: float


#: In the names of parameters that are rows of ids or places, and do not decay.
_TABLES = ("embed", "position", "places", "table", "new_inputs", "new_outputs")
#: In the paths of layers that Muon is not for: adapters, of low rank and zero at first, and classifiers.
_NO_MATRICES = (".lora_", ".classifiers.")


def parameter_groups(name: str, part: Trained, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups of one part: matrices for Muon, other weights with decay, everything else without.

    Args:
        name: kept in each group under ``part``.
        part: frozen parameters of it are left out.
        settings: decay of the weights, and whether Muon takes matrices. Its rate follows that of the part.
    """
    found: dict[str, list[Tensor]] = {"matrices": [], "decayed": [], "plain": []}
    for parameter, kind in _parameters(part.module, matrices=settings.muon is not None):
        found[kind].append(parameter)
    scale = part.learning_rate / settings.learning_rate
    rates = {"matrices": scale * (settings.muon or 0.0)}
    return [
        {
            "params": parameters,
            "part": name,
            "muon": kind == "matrices",
            "lr": rates.get(kind, part.learning_rate),
            "weight_decay": 0.0 if kind == "plain" else settings.weight_decay,
        }
        for kind, parameters in found.items()
        if parameters
    ]


def _parameters(module: nn.Module, *, matrices: bool) -> Iterator[tuple[Tensor, str]]:
    seen, outputs = set[int](), _output_matrices(module)
    for path, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                table = isinstance(child, _NOT_DECAYED) or any(word in name for word in _TABLES)
                if parameter.ndim < 2 or table:
                    yield parameter, "plain"
                else:
                    apart = id(parameter) in outputs or any(word in f".{path}." for word in _NO_MATRICES)
                    yield parameter, "matrices" if matrices and parameter.ndim == 2 and not apart else "decayed"


def _output_matrices(module: nn.Module) -> set[int]:
    heads = [child.get_output_embeddings() for child in module.modules() if isinstance(child, PreTrainedModel)]
    return {id(parameter) for head in heads if head is not None for parameter in head.parameters()}


class ShardedMuon(torch.optim.Muon):
    """Muon, for matrices of which each process has a part too, with the same updates.

    An update is orthogonal as a whole matrix or not at all. Momentum is kept in parts; what is to be made orthogonal is
    gathered, matrix by matrix, and every process makes all of it orthogonal and takes its part. A step therefore costs
    one gathering of every matrix in float32 and the arithmetic of a single process.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; see ``torch.optim.Muon``."""
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(_part_of(_moved(whole(update), group), parameter))


def _moved(update: Tensor, group: dict[str, Any]) -> Tensor:
    """What torch's Muon adds to a matrix for an update that holds its momentum already."""
    stand_in = nn.Parameter(torch.zeros_like(update))
    stand_in.grad = update
    names = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    torch.optim.Muon(
        [stand_in], weight_decay=0.0, momentum=0.0, nesterov=False, **{name: group[name] for name in names}
    ).step()
    return stand_in.detach()


def _part_of(full: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups marked ``muon``, AdamW for the others: one optimizer, one state, one schedule.

    Args:
        groups: of :func:`parameter_groups`.
        betas: of AdamW; Muon's momentum is 0.95.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        marked = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self._inner: list[tuple[bool, torch.optim.Optimizer]] = []
        if marked:
            self._inner.append((True, ShardedMuon(marked, adjust_lr_fn="match_rms_adamw")))
        if others:
            self._inner.append((False, torch.optim.AdamW(others, betas=betas)))
        super().__init__([group for _, inner in self._inner for group in inner.param_groups], {})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both, on the groups and the state that this optimizer holds now."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for marked, inner in self._inner:
            inner.param_groups = [group for group in self.param_groups if group["muon"] == marked]
            inner.state = self.state
            inner.step()
        return loss


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
