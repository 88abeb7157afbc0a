"""In which order positions are generated. An order is data: positions per step, what predicts them, what they see."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..tokenizers.codes import CodeLayout


class Order(Protocol):
    """Positions per step, prediction sources and training visibility of one layout."""

    def steps(self, layout: CodeLayout) -> list[Tensor]:
        """Positions revealed at each step, ``[G]`` int64 each; together every position exactly once."""
        ...

    def sources(self, layout: CodeLayout) -> Tensor:
        """``[N, S]`` int64: the positions whose states predict each position, -1 for the prompt."""
        ...

    def visible(self, layout: CodeLayout) -> Tensor:
        """``[N, N]`` bool: row may attend column while training."""
        ...


class Raster:
    """Left to right, top to bottom, one position at a time; the order of plain next-token prediction.

    Legal for grids (row-major), sequences and sets in their stored order.
    """

    def steps(self, layout: CodeLayout) -> list[Tensor]:
        """See :class:`Order`."""
        self._check(layout)
        return list(torch.arange(layout.positions)[:, None])

    def sources(self, layout: CodeLayout) -> Tensor:
        """See :class:`Order`: the position before."""
        self._check(layout)
        return torch.arange(-1, layout.positions - 1)[:, None]

    def visible(self, layout: CodeLayout) -> Tensor:
        """See :class:`Order`: itself and everything before."""
        self._check(layout)
        return torch.ones(layout.positions, layout.positions, dtype=torch.bool).tril()

    def _check(self, layout: CodeLayout) -> None:
        layout.require("raster order", "grid", "sequence", "set")
