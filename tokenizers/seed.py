"""SEED: 32 codes in causal order from a Q-Former, decoded through an image embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import PreNormBlock


class ImageEmbedding(nn.Module):
    """Codes to one image embedding, SEED's released way: blocks over the codes, each narrowed, all joined.

    Its training code has a second Q-Former with one query instead; the released weights hold this.

    Args:
        queries: Q, number of codes.
        dim: C, width of the codes as the Q-Former saw them.
        layers: number of blocks.
        heads: their attention heads.
        out_dim: width of the image embedding (1024 for CLIP ViT-H).
        hidden: width of the blocks' feed-forward layers.
        eps: of the norms.
    """

    def __init__(
        self,
        queries: int,
        dim: int,
        layers: int,
        heads: int,
        out_dim: int,
        hidden: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, queries, dim))
        self.blocks = nn.ModuleList(PreNormBlock(dim, heads, hidden, eps) for _ in range(layers))
        first, second, third = (nn.Linear(*widths, bias=False) for widths in ((dim, 256), (256, 128), (128, 32)))
        self.narrow = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.out = nn.Linear(queries * third.out_features, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, Q, C]`` to ``[B, out_dim]``."""
        hidden = tokens + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.narrow(hidden).flatten(1))
