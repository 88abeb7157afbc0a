"""What SEED and Slot-MLLM hand to their diffusion models: an embedding of the image, and one per code.

Letters: B batch, Q codes, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import PreNormBlock


class Places(nn.Module):
    """Learned positions, added.

    Args:
        count: Q.
        dim: C.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, count, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, Q, C]``, shape kept."""
        return tokens + self.positions


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
        token_dim: width of an embedding per code beside it, which Slot-MLLM's diffusion model attends to; 0 for none.
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
        token_dim: int = 0,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, queries, dim))
        self.blocks = nn.ModuleList(PreNormBlock(dim, heads, hidden, eps) for _ in range(layers))
        first, second, third = (nn.Linear(*widths, bias=False) for widths in ((dim, 256), (256, 128), (128, 32)))
        self.narrow = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.out = nn.Linear(queries * third.out_features, out_dim)
        self.each = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, token_dim)) if token_dim else None

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, Q, C]`` to ``[B, out_dim]``."""
        return self.out(self.narrow(self._hidden(tokens)).flatten(1))

    def tokens(self, tokens: Tensor) -> Tensor:
        """``[B, Q, C]`` to ``[B, Q, token_dim]``.

        Raises:
            ValueError: built without them.
        """
        if self.each is None:
            raise ValueError("embeddings of codes need a token_dim, got 0; give their width")
        return self.each(self._hidden(tokens))

    def _hidden(self, tokens: Tensor) -> Tensor:
        hidden = tokens + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return hidden
