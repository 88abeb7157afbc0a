"""Codes as what a denoiser attends to: vectors with places, padding hidden, and what stands for no codes at all."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..tokenizers.attention import PreNormBlock
from .loading import LocalModel


class CodeCondition(LocalModel):
    """Vectors of codes to the width of a denoiser's cross-attention.

    A linear layer, learned places (of dynamic codes: in kept order), a few transformer blocks among the codes, a norm.

    Args:
        dim: width of ``tokenizer.embed(codes)``.
        positions: codes of one picture, at most.
        out_dim: width that the denoiser attends to.
        layers: transformer blocks.
        heads: of their attention.
    """

    @register_to_config
    def __init__(self, dim: int, positions: int, out_dim: int, layers: int = 1, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.out_dim = dim, out_dim
        self.enter = nn.Linear(dim, out_dim)
        self.places = nn.Parameter(0.02 * torch.randn(1, positions, out_dim))
        self.blocks = nn.ModuleList(PreNormBlock(out_dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(out_dim)
        self.nothing = nn.Parameter(torch.randn(1, 1, out_dim))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """What the denoiser attends to.

        Args:
            vectors: ``[B, N, dim]`` of the codes; whatever stands where the mask is false has no influence.
            mask: ``[B, N]`` bool, true where there is a code.

        Returns:
            ``[B, N, out_dim]``.

        Raises:
            ValueError: vectors of another width.
        """
        if vectors.shape[-1] != self.dim:
            raise ValueError(
                f"embeddings must have the width {self.dim} that this decoder was trained with, got "
                f"{vectors.shape[-1]}; take the tokenizer it was trained for"
            )
        known = vectors.masked_fill(~mask[..., None], 0).to(self.enter.weight.dtype)
        hidden = self.enter(known) + self.places[:, : known.shape[1]]
        visible = None if bool(mask.all()) else mask[:, None]
        for block in self.blocks:
            hidden = block(hidden, visible)
        return self.norm(hidden)

    def none_for(self, memory: Tensor) -> Tensor:
        """What stands for no codes, in the shape of a memory ``[B, N, out_dim]``."""
        return self.nothing.to(memory.dtype).expand_as(memory)
