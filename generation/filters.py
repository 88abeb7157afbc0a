"""How ids are drawn from logits: temperature, top-k, top-p, and one uniform number for each id."""

from __future__ import annotations

import torch
from torch import Tensor


def filtered(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits over the temperature, ``-inf`` where an id may not be drawn; as LlamaGen, NAR and PAR filter.

    Args:
        logits: ``[..., V]`` floating point.
        temperature: > 0.
        top_k: keep what is not below the k-th largest, equals included; 0, or V and more, keeps all.
        top_p: of the rest keep, from the most likely on, the ids before which the probabilities have not passed p, so
            that the one that passes it stays; 1 keeps all.
    """
    found = logits / temperature if temperature != 1 else logits
    if 0 < top_k < found.shape[-1]:
        least = found.topk(top_k, dim=-1).values[..., -1:]
        found = found.masked_fill(found < least, -torch.inf)
    if top_p < 1:
        ranked = found.sort(dim=-1, descending=True, stable=True)
        before = ranked.values.softmax(-1).roll(1, -1)
        before[..., 0] = 0
        beyond = before.cumsum(-1) > top_p
        found = found.masked_fill(torch.zeros_like(beyond).scatter(-1, ranked.indices, beyond), -torch.inf)
    return found


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """One id for each row, by inverting the cumulative distribution.

    Args:
        logits: ``[R, V]`` floating point.
        uniform: ``[R]`` float64 in [0, 1), the chance of each row.
        temperature: >= 0; 0 takes the most likely id.
        top_k: see :func:`filtered`.
        top_p: see :func:`filtered`.

    Returns:
        ``[R]`` int64 ids in ``[0, V)``.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = filtered(logits.float(), temperature, top_k, top_p).softmax(-1)
    edges = probabilities.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(edges, (uniform.to(edges) * edges[:, -1])[:, None], right=True)
    return found.clamp_max(probabilities.shape[-1] - 1)[:, 0]
