"""How ids are drawn from logits: temperature, top-k, top-p, and one uniform number for each id."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Ids that are summed together where there are many.
_CHUNK = 128


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
    return _inverted(probabilities, uniform.to(probabilities.device))


def _inverted(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Where the cumulative distribution of ``[R, V]`` passes ``[R]``, in float64; over chunks first, where V is large.

    Summing a large vocabulary one by one would take longer than the model's small passes do.
    """
    count = probabilities.shape[-1]
    if count <= 8 * _CHUNK:
        edges = probabilities.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(edges, (uniform * edges[:, -1])[:, None], right=True).clamp_max(count - 1)[:, 0]
    chunks = F.pad(probabilities, (0, -count % _CHUNK)).unflatten(-1, (-1, _CHUNK))
    edges = chunks.sum(-1).cumsum(-1, dtype=torch.float64)
    wanted = (uniform * edges[:, -1])[:, None]
    at = torch.searchsorted(edges, wanted, right=True).clamp_max(edges.shape[-1] - 1)
    start, end = F.pad(edges, (1, 0)).gather(1, at), edges.gather(1, at)
    inner = chunks.gather(1, at[..., None].expand(-1, -1, _CHUNK))[:, 0].cumsum(-1, dtype=torch.float64)
    rest = (wanted - start) / (end - start) * inner[:, -1:]
    place = torch.searchsorted(inner, rest, right=True).clamp_max(_CHUNK - 1)
    return (at * _CHUNK + place)[:, 0].clamp_max(count - 1)
