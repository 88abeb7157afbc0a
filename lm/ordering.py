"""What the steps of a sequence see, and what predicts them, where that is not simply what stands before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .plans import ABSENT


@dataclass(frozen=True)
class Ordering:
    """Of one sequence, or of the rows of a batch with one more dimension in front."""

    ranks: Tensor  #: [T] int64; a step sees those of no higher rank
    asked: Tensor  #: [T] bool, a query for its codes; only steps of its own rank see it
    sources: Tensor  #: [T, S] int64, the steps whose states predict it, by direction; ``ABSENT`` where none

    @classmethod
    def causal(cls, length: int, directions: int = 1) -> Self:
        """That of a sequence in which every step sees those before and is predicted by the last of them."""
        order, absent = torch.arange(length), torch.full((length, directions - 1), ABSENT)
        asked = torch.zeros(length, dtype=torch.bool)
        return cls(order, asked, torch.cat([order[:, None] - 1, absent], dim=1))

    def allowed(self) -> Tensor:
        """``[B, T, T]`` bool: the step of a row sees that of a column."""
        above, own = self.ranks[:, :, None], self.ranks[:, None, :]
        return (own < above) & ~self.asked[:, None, :] | (own == above)

    def to(self, device: torch.device | str) -> Ordering:
        """The same on another device."""
        return Ordering(self.ranks.to(device), self.asked.to(device), self.sources.to(device))


def causal(present: Tensor, new: int) -> Tensor | None:
    """What new steps see, ``[B, 1, new, T]`` bool; None where plain attention does that without a mask.

    Padding sees itself, so that nothing is without anything to see.

    Args:
        present: ``[B, T]`` bool, false where a step is padding.
        new: how many of the T are new, the last ones.
    """
    length = present.shape[1]
    if bool(present.all()):
        if new in (1, length):
            return None
        return torch.ones(1, 1, new, length, dtype=torch.bool, device=present.device).tril(length - new)
    every = torch.ones(new, length, dtype=torch.bool, device=present.device).tril(length - new)
    own = torch.eye(length, dtype=torch.bool, device=present.device)[-new:]
    return (every & present[:, None, :] | own)[:, None]


def padded(sequences: Sequence[tuple[int, Ordering | None]]) -> Ordering | None:
    """Orderings of sequences of some lengths side by side; None where all are causal.

    Padding has the highest rank of all, so that nothing else sees it.
    """
    found = _alike(sequences)
    if found is None:
        return None
    highest = 1 + max(int(one.ranks.max()) for one in found)
    return Ordering(
        pad_sequence([one.ranks for one in found], True, float(highest)),
        pad_sequence([one.asked for one in found], True, False),
        pad_sequence([one.sources for one in found], True, float(ABSENT)),
    )


def chained(sequences: Sequence[tuple[int, Ordering | None]]) -> Ordering | None:
    """Orderings of sequences of some lengths one behind the other, in one; None where all are causal."""
    found = _alike(sequences)
    if found is None:
        return None
    starts = accumulate((length for length, _ in sequences), initial=0)
    sources = [one.sources + at * (one.sources >= 0) for at, one in zip(starts, found, strict=False)]
    return Ordering(torch.cat([o.ranks for o in found]), torch.cat([o.asked for o in found]), torch.cat(sources))


def _alike(sequences: Sequence[tuple[int, Ordering | None]]) -> list[Ordering] | None:
    """One for each, all with as many directions, where any has one of its own."""
    own = [ordering for _, ordering in sequences if ordering is not None]
    if not own:
        return None
    directions = max(one.sources.shape[1] for one in own)
    found = [ordering or Ordering.causal(length) for length, ordering in sequences]
    return [replace(o, sources=F.pad(o.sources, (0, directions - o.sources.shape[1]), value=ABSENT)) for o in found]
