"""Attention and transformer blocks that several families share. Knows nothing about images or codes.

Letters: B batch, N queries, M memory, C width, h heads. Masks are bool ``[B or 1, N, M]``, true where a query may look;
a query that may look nowhere receives zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of queries over a memory, or over one another; the output layer belongs to the block.

    Args:
        dim: C, a multiple of ``heads``.
        heads: number of heads.
        memory_dim: width of the memory; C by default.
        leak: > 0 adds ``leak / M`` to every weight and ``leak`` to their sum, so that hidden memory is seen a little:
            LaVIT's released softmax (1e-6).

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, dim: int, heads: int, memory_dim: int | None = None, leak: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width, got {heads} heads and width {dim}; change either")
        self.heads, self.leak = heads, leak
        self.query = nn.Linear(dim, dim)
        self.key, self.value = (nn.Linear(memory_dim or dim, dim) for _ in range(2))

    def forward(self, queries: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``[B, N, C]`` from queries ``[B, N, C]`` and memory ``[B, M, memory_dim]``."""
        memory = queries if memory is None else memory
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, tokens in ((self.query, queries), (self.key, memory), (self.value, memory))
        )
        visible = None if mask is None else mask[:, None]
        if self.leak:
            mixed = _leaky(query, key, visible, self.leak) @ value
        elif visible is None:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            seeing = visible.any(-1, keepdim=True)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible | ~seeing) * seeing
        return mixed.transpose(1, 2).flatten(2)


class PreNormBlock(nn.Module):
    """Attention and feed-forward layer, each after a norm and added to its input (ViT).

    Args:
        dim: C.
        heads: attention heads.
        hidden: width of the feed-forward layer; 4 C by default.
        eps: of the norms.
        mlp: takes the place of that layer.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int | None = None, eps: float = 1e-6, mlp: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention, self.out = Attention(dim, heads), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, hidden or 4 * dim) if mlp is None else mlp

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, N, C]``, shape kept."""
        tokens = tokens + self.out(self.attention(self.norm_attention(tokens), mask=mask))
        return tokens + self.mlp(self.norm_mlp(tokens))


class PostNorm(nn.Module):
    """A mixer's result through a linear layer, added to the input, then normed (BERT).

    Args:
        mixer: ``(queries, memory, mask) -> [B, N, hidden]``.
        hidden: width of its result.
        dim: C.
        eps: of the norm.
        dropout: of the linear layer's result.
    """

    def __init__(self, mixer: nn.Module, hidden: int, dim: int, eps: float = 1e-12, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer, self.out = mixer, nn.Linear(hidden, dim)
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *context: Tensor | None) -> Tensor:
        """``[B, N, C]``, shape kept; ``context`` is handed to the mixer."""
        return self.norm(tokens + self.dropout(self.out(self.mixer(tokens, *context))))


def feed_forward(dim: int, hidden: int, out_dim: int | None = None) -> nn.Sequential:
    """Linear, exact GELU, linear."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim or dim))


def bottleneck(dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    """Linear, tanh, linear: to a codebook's width and back in TokenFlow, SEED and LaVIT."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, out_dim))


def causal(length: int, device: torch.device | None = None) -> Tensor:
    """Mask ``[1, N, N]``: every position sees itself and what came before."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()


def _leaky(query: Tensor, key: Tensor, visible: Tensor | None, leak: float) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    if visible is not None:
        weights = weights * visible
    return (weights + leak / key.shape[-2]) / (weights.sum(-1, keepdim=True) + leak)
