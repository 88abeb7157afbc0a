"""Randomness without state: what a training batch draws depends on its place in the run and on nothing before it.

Seeds belong to samples. What is drawn for a sample comes from a generator of its own, and what a whole optimizer step
shares from one that all processes and all batches of the step have alike; how the samples of a step are dealt out to
processes and batches changes neither. What draws from torch's own generators, such as dropout inside a network, is
seeded for every batch and process apart: it is repeated exactly by a run of the same shape and by no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

#: Multiples of it, modulo 1, are spread evenly however many there are.
_GOLDEN = 0.6180339887498949


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
        batches of 4 number the same samples alike. Numbers are apart only where all batches of a step are equally
        large, as that order deals them out.

        Args:
            count: samples of the batch on this process, as on every other and in every other batch of the step.
            rank: of this process.
            world: number of processes.
        """
        first = (self.part * world + rank) * count
        return slice(first, first + count), self.parts * world * count


@dataclass(frozen=True)
class Draws:
    """Sources of randomness of one batch, on the CPU."""

    numbers: Sequence[int]  #: of its B samples among those of the step
    total: int  #: samples of the step
    samples: Sequence[torch.Generator]  #: one for each sample
    step: torch.Generator  #: the same in all processes and batches of the step

    def uniform(self) -> Tensor:
        """``[B]`` float32 in [0, 1), of each sample its own."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self.samples])

    def chosen(self, share: float) -> list[bool]:
        """Whether each of the B samples is among a share of all."""
        return (self.uniform() < share).tolist()

    def normal(self, *shape: int) -> Tensor:
        """``[B, *shape]`` float32, standard normal, of each sample its own."""
        return torch.stack([torch.randn(*shape, generator=generator) for generator in self.samples])

    def own(self, values: Tensor) -> Tensor:
        """The B rows of this batch among ``[total, ...]``, drawn for the whole step."""
        return values[list(self.numbers)]

    def spread(self) -> Tensor:
        """``[B]`` float32 in [0, 1), spread evenly by the samples' numbers; nothing is drawn."""
        return ((torch.tensor(self.numbers, dtype=torch.float64) + 0.5) * _GOLDEN % 1.0).float()


def step_draws(seed: int, place: Place, count: int, rank: int, world: int) -> Draws:
    """What a training batch draws from.

    Args:
        seed: of the run.
        place: of the batch.
        count: B, its samples on this process.
        rank: of this process.
        world: number of processes.
    """
    rows, total = place.rows(count, rank, world)
    numbers = range(rows.start, rows.stop)
    return Draws(numbers, total, _generators(f"{seed}/step/{place.step}", numbers), step_generator(seed, place.step))


def validation_draws(seed: int, batch: int, numbers: Sequence[int]) -> Draws:
    """What a validation batch draws from, the same every time.

    Args:
        seed: of the run.
        batch: number of the batch on each process.
        numbers: of its samples in the validation data.
    """
    name = f"{seed}/validation"
    shared = torch.Generator().manual_seed(_mixed(f"{name}/batch/{batch}"))
    return Draws(numbers, len(numbers), _generators(name, numbers), shared)


def seed_batch(seed: int, rank: int, batch: int) -> int:
    """Seed torch on all devices for one batch, so that a resumed run draws what an uninterrupted one would.

    Args:
        seed: of the run.
        rank: of this process; ranks draw differently, the first as a single process would.
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


def _generators(name: str, numbers: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(_mixed(f"{name}/{number}")) for number in numbers]


def _mixed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
