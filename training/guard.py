"""Steps that are not finite: left out, and after too many of them undone. Knows no Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Training does not become finite again."""


class Stateful(Protocol):
    """An optimizer or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        ...


@dataclass(frozen=True)
class GuardSettings:
    """When to give up on a run that is not finite.

    Args:
        max_bad_steps: consecutive steps left out before the last good snapshot comes back.
        snapshot_every: steps between snapshots in memory.
        max_rollbacks: returns to a snapshot before the run ends.

    Raises:
        ValueError: a number below 1.
    """

    max_bad_steps: int = 10
    snapshot_every: int = 200
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        if min(self.max_bad_steps, self.snapshot_every, self.max_rollbacks) < 1:
            raise ValueError(
                "max_bad_steps, snapshot_every and max_rollbacks must be >= 1, "
                f"got {self.max_bad_steps}, {self.snapshot_every} and {self.max_rollbacks}"
            )


GUARD = GuardSettings()  #: the defaults


class StepGuard:
    """Leaves out bad steps and goes back to the last good state after too many.

    A step begins with :meth:`open` and ends with :meth:`accept` or :meth:`skip`. Buffers are copied when it begins,
    because a forward pass moves averaged codebooks before its loss is known.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.skipped = 0  #: steps left out since the run began
        self.rollbacks = 0  #: returns to a snapshot since the run began
        self.consecutive = 0
        self._buffers: dict[str, Tensor] | None = None
        self._snapshot: tuple[int, dict[str, Any], list[dict[str, Any]]] | None = None

    def open(self, module: nn.Module) -> None:
        """Remember the buffers, once per optimizer step."""
        if self._buffers is None:
            self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    def accept(self) -> None:
        """The step was good."""
        self._buffers, self.consecutive = None, 0

    def skip(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients, so that the optimizer changes nothing, and put the buffers back."""
        optimizer.zero_grad(set_to_none=True)
        before = self._buffers or {}
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
        self._buffers = None
        self.skipped += 1
        self.consecutive += 1

    def snapshot(self, step: int, module: nn.Module, others: Sequence[Stateful]) -> None:
        """Copy module, optimizers and schedules to memory where one is due and the last step was good."""
        due = self._snapshot is None or step - self._snapshot[0] >= self.settings.snapshot_every
        if due and self.consecutive == 0:
            self._snapshot = (step, _copied(module.state_dict()), [_copied(other.state_dict()) for other in others])

    def roll_back(self, module: nn.Module, others: Sequence[Stateful]) -> bool:
        """Return to the snapshot after ``max_bad_steps`` bad steps in a row; whether that happened.

        Raises:
            DivergedError: it happened more than ``max_rollbacks`` times.
        """
        if self.consecutive < self.settings.max_bad_steps or self._snapshot is None:
            return False
        if self.rollbacks >= self.settings.max_rollbacks:
            raise DivergedError(
                f"training was not finite for {self.consecutive} steps in a row and {self.rollbacks} returns to a "
                "snapshot did not help; lower the learning rate, or look for damaged data"
            )
        step, weights, states = self._snapshot
        module.load_state_dict(weights)
        for other, state in zip(others, states, strict=True):
            other.load_state_dict(deepcopy(state))
        _log.warning("%d steps in a row were not finite; back to the weights of step %d", self.consecutive, step)
        self.rollbacks += 1
        self.consecutive = 0
        return True

    def state_dict(self) -> dict[str, int]:
        """The counts; snapshots are not saved."""
        return {"skipped": self.skipped, "rollbacks": self.rollbacks, "consecutive": self.consecutive}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The inverse."""
        self.skipped, self.rollbacks, self.consecutive = state["skipped"], state["rollbacks"], state["consecutive"]


def poisoned(module: nn.Module) -> Tensor:
    """A NaN that reaches every trained parameter, so that all ranks see it once gradients are averaged."""
    return torch.stack([p.float().sum() for p in module.parameters() if p.requires_grad]).sum() * torch.nan


def spread(loss: Tensor) -> Tensor:
    """The loss, with NaN gradients where it is not finite: an infinite loss may have finite ones."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


def _copied(state: Any) -> Any:
    return tree_map(lambda value: value.detach().cpu().clone() if isinstance(value, Tensor) else value, state)
