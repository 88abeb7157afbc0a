"""An order of writing as data: which positions each pass writes, what predicts them, and what sees what.

A pass reads rows and writes positions. It reads the codes that the pass before wrote, and perhaps rows that are no
code: extras, learned vectors that stand nowhere and stay (PAR), or queries, the learned vector at a position that is
asked for. Queries are seen by their own pass alone, so that what stays in a cache are codes in the order in which they
were written. Where a pass asks for more than it writes, they are not seen by each other either: what is said of a
position then depends on what is written alone, not on what else is asked, and one sequence trains all passes. Letters:
N positions, R rows, S directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

#: In ``sources``: the last row before the image.
PROMPT = -1
#: In ``sources``: no row; this direction does not predict the position.
ABSENT = -2

#: What a pass asks for by queries: nothing, the positions that it writes, or all that are missing, unseen by another.
Asks = Literal["nothing", "step", "rest"]


@dataclass(frozen=True)
class PlanRows:
    """The rows of one image in a training sequence."""

    positions: Tensor  #: [R] int64, where each stands; -1 for extras
    asked: Tensor  #: [R] bool, a query: its codes are not read, they are what it asks for
    ranks: Tensor  #: [R] int64 >= 0; a row sees those of no higher rank, of queries those of its own rank alone
    learned: Tensor  #: [R] bool, whether its codes are predicted here
    sources: Tensor  #: [R, S] int64, rows that predict it, :data:`PROMPT` or :data:`ABSENT`

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Plan:
    """How the N positions of one image are written.

    Args:
        positions: ``[N]`` int64, the position that is written k-th; where the sampler itself chooses what is written
            next (``adaptive``), any permutation.
        sizes: number of positions that each pass writes; they add up to N.
        sources: ``[N, S]`` int64, for each k and direction what predicts it: an earlier k, ``N + i`` for extra i,
            :data:`PROMPT` or :data:`ABSENT`. A source is read by the very pass that writes k. ``[N, 0]`` where
            positions are asked for by queries.
        extras: number of extra rows.
        extras_pass: the pass that reads them, behind the codes.
        asks: what passes ask for by queries.
        adaptive: whether the sampler chooses which of the positions asked for are kept.
    """

    positions: Tensor
    sizes: tuple[int, ...]
    sources: Tensor
    extras: int = 0
    extras_pass: int = 0
    asks: Asks = "nothing"
    adaptive: bool = False

    @property
    def count(self) -> int:
        """N."""
        return len(self.positions)

    @property
    def starts(self) -> list[int]:
        """The first k that each pass writes, and N behind them."""
        return [0, *accumulate(self.sizes)]

    @property
    def passes(self) -> Tensor:
        """``[N]`` int64: the pass that writes the k-th position."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    @property
    def directions(self) -> int:
        """S, directions that predict; 1 where positions are asked for."""
        return max(1, self.sources.shape[1])

    @property
    def queries(self) -> int:
        """Learned vectors that the rows need."""
        return self.extras if self.asks == "nothing" else 1

    def steps(self) -> list[Tensor]:
        """Positions that each pass writes, ``[G]`` int64 each."""
        return list(self.positions.split(list(self.sizes)))

    def inputs(self, step: int) -> list[int]:
        """What a pass reads beside queries: k of codes, and ``N + i`` of extras; none before the first (the prompt)."""
        codes = list(range(*self.starts[step - 1 : step + 1])) if step else []
        extras = range(self.count, self.count + self.extras) if self.extras and step == self.extras_pass else []
        return [*codes, *extras]

    def read_from(self, step: int) -> Tensor:
        """``[G, S]``: for each position that a pass writes, where its sources are among :meth:`inputs`, or -1, -2."""
        places = {source: index for index, source in enumerate(self.inputs(step))}
        rows = self.sources[self.starts[step] : self.starts[step + 1]].tolist()
        return torch.tensor([[one if one < 0 else places[one] for one in row] for row in rows])

    def visible(self) -> Tensor:
        """``[N, N]`` bool over positions: the code at a row sees the code at a column."""
        passes = torch.empty_like(self.positions)
        passes[self.positions] = self.passes
        return passes[:, None] >= passes[None, :]

    def sources_of_positions(self) -> Tensor:
        """``[N, S]`` over positions: what predicts each, itself where it is asked for; extras count on from N."""
        if self.asks != "nothing":
            return torch.arange(self.count)[:, None]
        found = torch.cat([self.positions, torch.arange(self.count, self.count + self.extras)])
        turned = torch.where(self.sources >= 0, found[self.sources.clamp_min(0)], self.sources)
        return torch.empty_like(turned).index_copy(0, self.positions, turned)

    def rows(self) -> PlanRows:
        """The rows that train it: each position is predicted once, from what the passes before its own have written."""
        return self._read_rows() if self.asks == "nothing" else self._asking_rows()

    def _read_rows(self) -> PlanRows:
        """Codes in the order in which they are written, extras in front of those that their pass writes."""
        front = self.starts[self.extras_pass] if self.extras else self.count
        order = torch.arange(self.count)
        sequence = torch.cat([order[:front], torch.arange(self.count, self.count + self.extras), order[front:]])
        index = torch.empty_like(sequence).index_copy(0, sequence, torch.arange(len(sequence)))
        code = sequence < self.count
        ks = sequence.clamp_max(self.count - 1)
        ranks = torch.where(code, 2 * self.passes[ks] + 2, 2 * self.extras_pass)
        sources = self.sources[ks]
        turned = torch.where(sources >= 0, index[sources.clamp_min(0)], sources)
        turned = turned.masked_fill(~code[:, None], ABSENT)
        positions = torch.where(code, self.positions[ks], -1)
        return PlanRows(positions, torch.zeros_like(code), ranks, code, turned)

    def _asking_rows(self) -> PlanRows:
        """Codes, then queries for all of them, each of its own pass."""
        order, rows = torch.arange(self.count), torch.arange(2 * self.count)
        query, apart = rows >= self.count, self.asks == "rest"
        unit = self.count + 1 if apart else 2  # a rank for each query, or one for those of a pass
        ranks = torch.cat([unit * (self.passes + 1), unit * self.passes + 1 + order * apart])
        sources = rows[:, None].masked_fill(~query[:, None], ABSENT)
        return PlanRows(self.positions.repeat(2), query, ranks, query, sources)
