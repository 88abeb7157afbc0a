"""One thing that a reader should know about a run, and how curves are read for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

TAIL = 0.1  #: share of a curve, at its end, that stands for its present

Kind = Literal["problem", "remark"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know."""

    kind: Kind
    where: str  #: the codebook, scale, curve or weight
    what: str  #: what was seen, with its number
    remedy: str  #: what is known to help; empty for remarks that need none


def problem(where: str, what: str, remedy: str) -> Finding:
    """A finding that something is wrong."""
    return Finding("problem", where, what, remedy)


def present(values: Sequence[float]) -> float:
    """Median of the last tenth of a curve."""
    return median(values[-max(1, round(TAIL * len(values))) :])


def last_third(values: Sequence[Item]) -> Sequence[Item]:
    """The last third of a curve, at least one value where there is one."""
    return values[-max(1, -(-len(values) // 3)) :]
