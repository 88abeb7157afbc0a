"""Codes that belong to no place to a grid of features: ours, and what LaVIT's diffusion models are conditioned on."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import Attention, PreNormBlock, bottleneck, feed_forward
from .component import Component


class GridReader(Component):
    """Vectors without places to a grid of features: learned cells read them by cross-attention, layer by layer.

    It stands where the papers hand their codes to a diffusion model, so that a tokenizer has pixels of its own.

    Args:
        dim: width of the vectors.
        out_dim: width of the features, what the pixel decoder reads.
        grid: cells along one side.
        layers: number of layers.
        heads: attention heads.
    """

    @register_to_config
    def __init__(self, dim: int, out_dim: int, grid: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.out_dim, self.grid = dim, out_dim, grid
        self.cells = nn.Parameter(0.02 * torch.randn(1, grid * grid, out_dim))
        self.layers = nn.ModuleList(_ReadingBlock(out_dim, heads, dim) for _ in range(layers))

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, M, dim]`` to ``[B, out_dim, grid, grid]``; ``mask`` ``[B, M]`` bool hides padding."""
        hidden = self.cells.expand(len(vectors), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, vectors, None if mask is None else mask[:, None])
        return hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class FeatureReader(Component):
    """LaVIT's released decoder of codes (https://arxiv.org/abs/2309.04669): learned cells attend to one another and to
    the codes, layer by layer, and become features of the image tower.

    Args:
        dim: width of the codes.
        out_dim: width of the features and of the layers.
        grid: cells along one side; there are at most as many codes as cells.
        layers: number of layers (12 as released).
        heads: attention heads.
        mlp_width: of the feed-forward layers; four times ``out_dim`` by default (6144 as released).
        eps: of the norms.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        out_dim: int,
        grid: int,
        layers: int = 12,
        heads: int = 16,
        mlp_width: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dim, self.out_dim, self.grid = dim, out_dim, grid
        self.stem, self.norm = nn.Linear(dim, out_dim), nn.LayerNorm(out_dim, eps)
        self.places, self.cells = (nn.Parameter(0.02 * torch.randn(1, grid * grid, out_dim)) for _ in range(2))
        self.layers = nn.ModuleList(FeatureLayer(out_dim, heads, mlp_width or 4 * out_dim, eps) for _ in range(layers))
        self.out = bottleneck(out_dim, out_dim, out_dim)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """``[B, M, dim]`` in kept order to ``[B, out_dim, grid, grid]``; ``mask`` ``[B, M]`` bool hides padding."""
        codes = self.stem(vectors) + self.places[:, : vectors.shape[1]]
        hidden = self.cells.expand(len(codes), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, codes, mask[:, None])
        return self.out(self.norm(hidden)).transpose(1, 2).unflatten(2, (self.grid, self.grid))


class FeatureLayer(nn.Module):
    """Self-attention among the cells, cross-attention to the codes, feed-forward layer; each after a norm."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm_among, self.norm_read, self.norm_mlp = (nn.LayerNorm(dim, eps) for _ in range(3))
        self.among, self.read = Attention(dim, heads), Attention(dim, heads)
        self.among_out, self.read_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, hidden)

    def forward(self, cells: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, C]``, shape kept; ``mask`` ``[B, 1, M]`` bool hides codes."""
        cells = cells + self.among_out(self.among(self.norm_among(cells)))
        cells = cells + self.read_out(self.read(self.norm_read(cells), codes, mask))
        return cells + self.mlp(self.norm_mlp(cells))


class _ReadingBlock(nn.Module):
    """Cross-attention to the vectors, self-attention among the cells, feed-forward layer; each after a norm."""

    def __init__(self, dim: int, heads: int, memory_dim: int) -> None:
        super().__init__()
        self.norm_read, self.norm_memory = nn.LayerNorm(dim), nn.LayerNorm(memory_dim)
        self.read, self.out = Attention(dim, heads, memory_dim), nn.Linear(dim, dim)
        self.among = PreNormBlock(dim, heads)

    def forward(self, cells: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        read = self.read(self.norm_read(cells), self.norm_memory(vectors), mask)
        return self.among(cells + self.out(read))
