"""Rows of the shared vocabulary: one matrix, or that of a pretrained backbone and the new rows beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Products ``[..., len(ids)]`` of states ``[..., C]`` with the rows of ids, by these.
Packed = Mapping[range, Callable[[Tensor], Tensor]]


class Table:
    """A matrix ``[V, C]`` in one piece or in several, one below the other.

    New rows that stand apart can be trained while those of a pretrained model rest, whatever the optimizer does.

    Args:
        pieces: ``[V_i, C]``.
        start: id of the first row.
        packed: products with the rows of some ids in a row that are made faster than here.
    """

    def __init__(self, *pieces: Tensor, start: int = 0, packed: Packed | None = None) -> None:
        self.pieces: Sequence[Tensor] = pieces
        self.start, self.packed = start, packed or {}

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows ``[..., C]`` of ids ``[...]``, in tables that start at 0."""
        first, *others = self.pieces
        found = F.embedding(tokens.clamp_max(len(first) - 1) if others else tokens, first)
        start = len(first)
        for piece in others:
            rows = F.embedding((tokens - start).clamp(0, len(piece) - 1), piece)
            found = torch.where((tokens >= start)[..., None], rows, found)
            start += len(piece)
        return found

    def logits(self, states: Tensor, ids: range) -> Tensor:
        """Products ``[..., len(ids)]`` of states ``[..., C]`` with the rows of ids in a row."""
        if ids in self.packed:
            return self.packed[ids](states)
        found = [F.linear(states, rows) for rows in self.parts(ids)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def parts(self, ids: range) -> list[Tensor]:
        """The rows of ids in a row, ``[n, C]`` each, as views."""
        found, start = list[Tensor](), self.start
        for piece in self.pieces:
            first, last = max(ids.start - start, 0), min(ids.stop - start, len(piece))
            if first < last:
                found.append(piece[first:last])
            start += len(piece)
        return found
