"""Randomness without state: what a training batch draws depends on its place in the run and on nothing before it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch


@dataclass(frozen=True)
class Place:
    """Where a batch stands in a run."""

    step: int  #: optimizer steps before the one that it is part of
    part: int  #: batches of that step before it, on each process
    parts: int  #: batches whose gradients are summed for a step

    def rows(self, count: int, rank: int, world: int) -> tuple[slice, int]:
        """Which samples of its optimizer step a process has, and how many samples the step has.

        The samples of a step are numbered batch by batch and, inside a batch, process by process, as
        :class:`~smalti.data.order.ResumableOrder` deals them out: one process with 8 samples, two with 4, and two
        batches of 4 number the same samples alike.

        Args:
            count: samples of the batch on this process.
            rank: of this process.
            world: number of processes.
        """
        first = (self.part * world + rank) * count
        return slice(first, first + count), self.parts * world * count


def seed_batch(seed: int, rank: int, batch: int) -> int:
    """Seed torch on all devices for one batch, so that a resumed run draws what an uninterrupted one would.

    Args:
        seed: of the run.
        rank: of this process; ranks draw differently.
        batch: number of batches trained on before this one, since the start of the run.

    Returns:
        The seed that was set, in ``[0, 2**63)``.
    """
    mixed = _mixed(f"{seed}/{rank}/{batch}")
    torch.manual_seed(mixed)
    return mixed


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator on the CPU that is the same in all processes and all batches of one optimizer step.

    Args:
        seed: of the run.
        step: optimizer steps before this one.
    """
    return torch.Generator().manual_seed(_mixed(f"{seed}/step/{step}"))


def _mixed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
