"""Runs that go wrong: bad steps are left out, and a run that does not recover goes back. Knows no Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .processes import averaged
from .rise import RiseMeter
from .sharding import local

_log = logging.getLogger(__name__)

_SPACING = 25  #: steps between the first snapshots: later ones would lose all that a short run has learnt
_REMEDY = " or a term that works against this loss, such as an adversarial one with too high a weight"


class DivergedError(RuntimeError):
    """Training goes wrong again and again."""


class Stateful(Protocol):
    """An optimizer, a schedule, or an average of weights."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """The inverse."""
        ...


@dataclass(frozen=True)
class GuardSettings:
    """When a run has gone wrong, and what is done then.

    A run has gone wrong where too many steps in a row are not finite, or where a loss that only falls in a healthy run
    has risen far above its best. It then goes back to the last good snapshot and trains on at a lower rate.

    Args:
        max_bad_steps: consecutive steps left out for not being finite.
        snapshot_every: most steps between snapshots in memory; early on it is a quarter of the steps so far, at least
            25.
        max_rollbacks: returns to a snapshot before the run ends.
        max_rise: multiple of its best that the watched loss, as a moving average over about 20 steps, may reach; None
            does not watch it. No rise counts in the first 20 steps, and a tenth of the average after them is the lowest
            best.
        patience: consecutive steps that it may stay above.
        cooling: factor of all learning rates at every return to a snapshot, in (0, 1].

    Raises:
        ValueError: a number out of range.
    """

    max_bad_steps: int = 10
    snapshot_every: int = 200
    max_rollbacks: int = 5
    max_rise: float | None = 1.5
    patience: int = 20
    cooling: float = 0.5

    def __post_init__(self) -> None:
        if min(self.max_bad_steps, self.snapshot_every, self.max_rollbacks, self.patience) < 1:
            raise ValueError(
                "max_bad_steps, snapshot_every, max_rollbacks and patience must be >= 1, got "
                f"{self.max_bad_steps}, {self.snapshot_every}, {self.max_rollbacks} and {self.patience}"
            )
        if self.max_rise is not None and self.max_rise <= 1:
            raise ValueError(f"max_rise must be above 1, got {self.max_rise}; 1.5 is usual, null watches no loss")
        if not 0 < self.cooling <= 1:
            raise ValueError(f"cooling must lie in (0, 1], got {self.cooling}; 0.5 halves all learning rates")


GUARD = GuardSettings()  #: the defaults


@dataclass(frozen=True)
class _Snapshot:
    step: int
    module: dict[str, Any]
    others: list[dict[str, Any]]
    meter: dict[str, Any]


class StepGuard:
    """Leaves out bad steps, and goes back to the last good state where a run does not recover.

    A step begins with :meth:`open` and ends with :meth:`accept` or :meth:`skip`. Buffers are copied when it begins,
    because a forward pass moves averaged codebooks before its loss is known. Where several processes train together,
    all of them decide alike, from the loss averaged over them.

    Args:
        settings: see there.
        watched: what the loss that is watched is called in messages.
    """

    def __init__(self, settings: GuardSettings, watched: str = "training loss") -> None:
        self.settings, self.watched = settings, watched
        self.skipped = 0  #: steps left out since the run began
        self.rollbacks = 0  #: returns to a snapshot since the run began
        self.cooling = 1.0  #: factor of all learning rates, lower after every return
        self.consecutive = 0
        self.meter = RiseMeter(settings.max_rise, settings.patience)
        self._buffers: dict[str, Tensor] | None = None
        self._noted: tuple[Tensor, int] | None = None
        self._snapshot: _Snapshot | None = None

    @property
    def is_open(self) -> bool:
        """Whether a step has begun and is not complete."""
        return self._buffers is not None

    def open(self, module: nn.Module) -> None:
        """Remember the buffers, once per optimizer step."""
        if self._buffers is None:
            self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    def note(self, loss: Tensor) -> None:
        """Remember the watched loss of one batch of the step, a detached scalar."""
        total, count = self._noted or (torch.zeros_like(loss, dtype=torch.float32), 0)
        self._noted = (total + loss.float(), count + 1)

    def accept(self) -> None:
        """The step was finite."""
        if self._noted is not None and self.settings.max_rise is not None:
            total, count = self._noted
            self.meter.observe(float(averaged(total / count)))
        self._buffers, self._noted, self.consecutive = None, None, 0

    def skip(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients, so that the optimizer changes nothing, and put the buffers back."""
        optimizer.zero_grad(set_to_none=True)
        before = self._buffers or {}
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
        self._buffers, self._noted = None, None
        self.skipped += 1
        self.consecutive += 1

    def snapshot(self, step: int, module: nn.Module, others: Sequence[Stateful]) -> None:
        """Copy module, optimizers and schedules to memory where one is due, between steps.

        Only while all is well: the last step was finite, and the watched loss is near its best.
        """
        if self.is_open or self.consecutive > 0:
            return
        if self._snapshot is not None:
            due = step - self._snapshot.step >= min(self.settings.snapshot_every, max(_SPACING, step // 4))
            if not (due and self.meter.near_best):
                return
        states = [_copied(other.state_dict()) for other in others]
        self._snapshot = _Snapshot(step, _copied(module.state_dict()), states, self.meter.state_dict())

    def roll_back(self, module: nn.Module, others: Sequence[Stateful]) -> bool:
        """Return to the snapshot where the run has gone wrong, and lower ``cooling``; whether that happened.

        Raises:
            DivergedError: it happened more than ``max_rollbacks`` times.
        """
        reason = self._reason()
        if reason is None or self._snapshot is None:
            return False
        if self.rollbacks >= self.settings.max_rollbacks:
            raise DivergedError(
                f"{reason} and {self.rollbacks} returns to a snapshot did not help; lower the learning rate, or look "
                f"for damaged data{_REMEDY if self.meter.risen else ''}"
            )
        module.load_state_dict(self._snapshot.module)
        for other, state in zip(others, self._snapshot.others, strict=True):
            other.load_state_dict(deepcopy(state))
        self.meter.load_state_dict(self._snapshot.meter)
        factor = self.settings.cooling
        _log.warning("%s; back to the weights of step %d, learning rates times %g", reason, self._snapshot.step, factor)
        self.cooling *= factor
        self.rollbacks += 1
        self.consecutive = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The counts, and what an incomplete step has to remember; snapshots are not saved."""
        total, count = self._noted or (None, 0)
        return {
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "consecutive": self.consecutive,
            "cooling": self.cooling,
            "meter": self.meter.state_dict(),
            "buffers": self._buffers,
            "noted": None if total is None else (averaged(total), count),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; of older checkpoints, which have the first three numbers only, too."""
        self.skipped, self.rollbacks, self.consecutive = state["skipped"], state["rollbacks"], state["consecutive"]
        self.cooling = state.get("cooling", 1.0)
        self.meter.load_state_dict(state.get("meter", {}))
        self._buffers, self._noted = state.get("buffers"), state.get("noted")

    def _reason(self) -> str | None:
        if self.consecutive >= self.settings.max_bad_steps:
            return f"training was not finite for {self.consecutive} steps in a row"
        if self.meter.risen:
            return f"the {self.watched} rose to {self.meter.ratio:.1f} times its best"
        return None


def poisoned(module: nn.Module) -> Tensor:
    """A NaN that reaches every trained parameter, or its part, so that all ranks see it once gradients are averaged."""
    return torch.stack([local(p).float().sum() for p in module.parameters() if p.requires_grad]).sum() * torch.nan


def spread(loss: Tensor) -> Tensor:
    """The loss, with NaN gradients where it is not finite: an infinite loss may have finite ones."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


def _copied(state: Any) -> Any:
    return tree_map(lambda value: value.detach().cpu().clone() if isinstance(value, Tensor) else value, state)
