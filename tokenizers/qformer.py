"""The causal Q-Former of SEED and Slot-MLLM: learned queries that read image features and see only those before them.

Letters: B batch, Q queries, M image features, C width, h heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import Attention, PostNorm, causal
from .component import Component

Reading = Literal["attention", "morph", "gru"]


class MorphSlotAttention(nn.Module):
    """Slots that compete for the features in one pass ("morph" in Slot-MLLM's release).

    The softmax runs over the slots; then every slot's row is divided by its sum over the features plus ``epsilon``.

    Args:
        dim: C.
        heads: number of heads.
        memory_dim: width of the features.
        epsilon: added to the sum; 1 as released.
    """

    def __init__(self, dim: int, heads: int, memory_dim: int, epsilon: float = 1.0) -> None:
        super().__init__()
        self.heads, self.epsilon = heads, epsilon
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(memory_dim, dim), nn.Linear(memory_dim, dim)

    def forward(self, slots: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, Q, C]``; features that the bool mask ``[B, 1, M]`` hides are shared among no slots."""
        value = _heads(self.value(memory), self.heads)
        return (self.attend(slots, memory, mask) @ value).transpose(1, 2).flatten(2)

    def attend(self, slots: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights ``[B, h, Q, M]`` in [0, 1)."""
        query, key = _heads(self.query(slots), self.heads), _heads(self.key(memory), self.heads)
        shares = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(2)
        shares = shares if mask is None else shares * mask[:, None]
        return shares / (shares.sum(-1, keepdim=True) + self.epsilon)


class GRUSlotAttention(nn.Module):
    """Slots that compete over several rounds with a recurrent update (https://arxiv.org/abs/2006.15055), as in
    Slot-MLLM: one softmax over heads and slots together, keys scaled by ``Q ** -0.5``.

    Args:
        dim: C.
        heads: number of heads.
        memory_dim: width of the features.
        rounds: iterations.
        epsilon: added to every weight before they are normalised over the features (1e-6; 1e-4 in another revision).
        half: only the first half of the slots competes and is updated; the second is kept.
    """

    def __init__(
        self, dim: int, heads: int, memory_dim: int, rounds: int = 3, epsilon: float = 1e-6, half: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.rounds, self.epsilon, self.only_half = heads, rounds, epsilon, half
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(memory_dim, dim), nn.Linear(memory_dim, dim)
        self.norm_slots, self.norm_mlp, self.gru = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, slots: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, Q, C]``; features that the bool mask ``[B, 1, M]`` hides are shared among no slots."""
        return self.attend(slots, memory, mask)[0]

    def attend(self, slots: Tensor, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Slots ``[B, Q, C]`` and the last round's shares ``[B, h, M, Q]``, which sum to 1 over heads and slots."""
        count = slots.shape[1]
        active, kept = slots.split([count // 2, count - count // 2], dim=1) if self.only_half else (slots, slots[:, :0])
        key = _heads(self.key(memory), self.heads) * count**-0.5
        value, shares = _heads(self.value(memory), self.heads), slots.new_empty(0)
        for _ in range(self.rounds):
            query = _heads(self.query(self.norm_slots(active)), self.heads)
            scores = key @ query.transpose(-1, -2)  # [B, h, M, Q]
            shares = scores.transpose(1, 2).flatten(2).softmax(-1).view(scores.transpose(1, 2).shape).transpose(1, 2)
            weights = shares + self.epsilon
            weights = weights if mask is None else weights * mask[:, None, 0, :, None]
            weights = weights / weights.sum(2, keepdim=True)
            update = (weights.transpose(-1, -2) @ value).transpose(1, 2).flatten(2)
            active = self.gru(update.flatten(0, 1), active.flatten(0, 1)).view(active.shape)
            active = active + self.mlp(self.norm_mlp(active))
        return torch.cat([active, kept], dim=1), shares


class QFormerLayer(nn.Module):
    """Self-attention among the queries, reading of the features where this layer reads, feed-forward layer.

    Args:
        dim: C.
        heads: number of heads.
        hidden: width of the feed-forward layer.
        reader: mixer that reads the features; None where this layer does not.
        dropout: after every linear layer.
        eps: of the norms.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, reader: nn.Module | None, dropout: float = 0.1, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.attention = PostNorm(Attention(dim, heads), dim, dim, eps, dropout)
        self.reading = None if reader is None else PostNorm(reader, dim, dim, eps, dropout)
        self.mlp = PostNorm(_Widen(dim, hidden), hidden, dim, eps, dropout)

    def forward(self, tokens: Tensor, memory: Tensor, among: Tensor | None, visible: Tensor | None) -> Tensor:
        """``[B, Q, C]``, shape kept; masks among the queries and over the features."""
        tokens = self.attention(tokens, None, among)
        if self.reading is not None:
            tokens = self.reading(tokens, memory, visible)
        return self.mlp(tokens)


class QFormer(Component):
    """Learned queries over image features (BLIP-2's Q-Former, https://arxiv.org/abs/2301.12597), causal as in SEED
    (https://arxiv.org/abs/2310.01218).

    SEED's release is causal at exactly 32 queries and silently bidirectional at any other number; here any number is.

    Args:
        queries: Q.
        dim: C.
        layers: number of layers.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        memory_dim: width of the image features.
        read_every: layers 0, ``read_every``, 2 ``read_every``, ... read the features.
        reading: how: ``attention`` (SEED), or slot attention ``morph`` or ``gru`` (Slot-MLLM).
        rounds: iterations of ``gru``.
        causal: a query sees itself and those before it.
        dropout: in training.
        eps: of the norms.
    """

    @register_to_config
    def __init__(
        self,
        queries: int = 32,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        memory_dim: int = 1408,
        read_every: int = 2,
        reading: Reading = "attention",
        rounds: int = 3,
        causal: bool = True,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.queries, self.dim, self.memory_dim, self.causal = queries, dim, memory_dim, causal
        self.query = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(
                dim,
                heads,
                hidden,
                _reader(reading, dim, heads, memory_dim, rounds) if layer % read_every == 0 else None,
                dropout,
                eps,
            )
            for layer in range(layers)
        )

    def forward(self, memory: Tensor, visible: Tensor | None = None) -> Tensor:
        """``[B, Q, C]`` of image features ``[B, M, memory_dim]``; ``visible`` ``[B, M]`` bool hides some."""
        return self.states(memory, visible)[-1]

    def states(self, memory: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Queries ``[B, Q, C]`` before the first layer and after each."""
        among = causal(self.queries, memory.device) if self.causal else None
        over = None if visible is None else visible[:, None]
        states = [self.dropout(self.norm(self.query.expand(len(memory), -1, -1)))]
        for layer in self.layers:
            states.append(layer(states[-1], memory, among, over))
        return states


class _Widen(nn.Module):
    """The first half of a feed-forward layer; context is ignored."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.gelu(self.linear(tokens))


def _reader(kind: Reading, dim: int, heads: int, memory_dim: int, rounds: int) -> nn.Module:
    if kind == "morph":
        return MorphSlotAttention(dim, heads, memory_dim)
    if kind == "gru":
        return GRUSlotAttention(dim, heads, memory_dim, rounds)
    return Attention(dim, heads, memory_dim)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
