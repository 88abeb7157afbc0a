"""Which code is nearest, and how evenly codes are used, without ever holding all N x K numbers at once.

Letters: N vectors, K codes, d width. Every function compares by ``affinity``: ``-|x - e|^2`` up to a term that depends
on the vector alone, or the dot product ``x . e``; the best code has the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Comparison = Literal["distance", "dot"]

#: Numbers of an N x K matrix that exist at once: 4 MiB of float32 on a CPU, where blocks should stay in its cache, and
#: 1 GiB on other devices, where few large products are faster.
BUDGET: dict[str, int] = {"cpu": 2**20}
_BUDGET_ELSEWHERE = 2**28
_WIDEST = 2**13  # codes per block on a CPU


@dataclass(frozen=True)
class Entropies:
    """How sure single vectors are of their code, and how evenly a batch spreads over all codes, in nats."""

    sample: Tensor  #: scalar, mean over vectors of the entropy of their soft assignment; low is sure
    batch: Tensor  #: scalar, entropy of the mean assignment; ``log K`` is even


@torch.no_grad()
def nearest(vectors: Tensor, table: Tensor, comparison: Comparison = "distance") -> Tensor:
    """Index of the best code of every vector; the first of equals.

    Args:
        vectors: ``[N, d]`` float.
        table: ``[K, d]``, same dtype.
        comparison: squared distance, or dot product.

    Returns:
        ``[N]`` int64 in [0, K).
    """
    found = vectors.new_empty(len(vectors), dtype=torch.int64)
    bias, columns = _bias(table, comparison), _columns(table)
    for rows in blocks(len(vectors), min(columns, len(table)), vectors.device):
        best: Tensor | None = None
        for start in range(0, len(table), columns):
            part = slice(start, start + columns)
            value, index = _affinity(vectors[rows], table[part], None if bias is None else bias[part]).max(1)
            if best is None:
                best, found[rows] = value, index
            else:
                better = value > best
                best = torch.where(better, value, best)
                found[rows] = torch.where(better, index + start, found[rows])
    return found


def entropies(
    vectors: Tensor,
    table: Tensor,
    temperature: float,
    comparison: Comparison = "distance",
    epsilon: float = 1e-5,
) -> Entropies:
    """Entropies of ``softmax(affinity / temperature)`` over the codes; differentiable, blocks are computed again in the
    backward pass.

    Args:
        vectors: ``[N, d]`` float.
        table: ``[K, d]``, same dtype.
        temperature: > 0, of the squared distance or of the dot product.
        comparison: squared distance, or dot product.
        epsilon: added inside the logarithm of the mean assignment.
    """
    sample, mean = vectors.new_zeros(()), vectors.new_zeros(len(table))
    for rows in blocks(len(vectors), len(table), vectors.device):
        arguments = (vectors[rows], table, temperature, comparison)
        uncertain, assigned = checkpoint(_assignments, *arguments, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        sample, mean = sample + uncertain, mean + assigned
    mean = mean / len(vectors)
    return Entropies(sample / len(vectors), -(mean * (mean + epsilon).log()).sum())


class _SoftIndex(torch.autograd.Function):
    """The best rows forward; backward as if each had been ``softmax(x . e) @ table``, plus the rows' own gradient."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, table, ids)
        return table[ids]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = grad_outputs
        vectors, table, ids = ctx.saved_tensors
        to_vectors = torch.empty_like(vectors)
        to_table = torch.zeros_like(table).index_add_(0, ids, slope)
        for rows in blocks(len(vectors), len(table), vectors.device):
            shares = (vectors[rows] @ table.T).softmax(1)
            pull = slope[rows] @ table.T
            pull = shares * (pull - (shares * pull).sum(1, keepdim=True))
            to_vectors[rows] = pull @ table
            to_table.addmm_(pull.T, vectors[rows])
        return to_vectors, to_table, None


def soft_index(vectors: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    """Rows ``[N, d]`` of the table at ``ids``, with a gradient to every row.

    The gradient is that of ``(hard - sg(p) + p) @ table`` with ``p = softmax(vectors @ table.T)`` (index
    back-propagation, https://arxiv.org/abs/2412.02692), computed block by block.
    """
    return _SoftIndex.apply(vectors, table, ids)  # pyright: ignore[reportReturnType]


def _assignments(vectors: Tensor, table: Tensor, temperature: float, comparison: Comparison) -> tuple[Tensor, Tensor]:
    scale = 2.0 if comparison == "distance" else 1.0
    affinity = scale * _affinity(vectors, table, _bias(table, comparison))
    logs = (affinity / temperature).log_softmax(1)
    shares = logs.exp()
    return -(shares * logs).sum(), shares.sum(0)


def _affinity(vectors: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """Half the affinity by distance, or the dot product."""
    return vectors @ table.T if bias is None else torch.addmm(bias, vectors, table.T)


def _bias(table: Tensor, comparison: Comparison) -> Tensor | None:
    return -0.5 * table.square().sum(1) if comparison == "distance" else None


def _columns(table: Tensor) -> int:
    return _WIDEST if table.device.type == "cpu" else max(1, len(table))


def blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of ``count`` vectors, few enough that :data:`BUDGET` numbers hold ``width`` for each of a slice."""
    rows = max(1, BUDGET.get(device.type, _BUDGET_ELSEWHERE) // width)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
