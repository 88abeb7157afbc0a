"""Attention projections between an encoder's width and a codebook's (DualToken and UniTok use the same block)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionProjection(nn.Module):
    """One transformer block that changes the width of ``[B, N, C]`` tokens (https://arxiv.org/abs/2503.14324).

    ``y = proj(LN(x)) + attention(LN(x))``, then ``y + GeGLU(LN(y))``. Narrowing, every head has the output width and
    heads are averaged; widening, heads are concatenated.

    Args:
        dim: input width.
        out_dim: output width; the larger of the two must be a multiple of the smaller or of ``heads``.
        heads: attention heads; defaults to ``dim // out_dim`` when narrowing and ``out_dim // dim`` when widening.
        causal: attend only to earlier positions (raster order).
        expansion: hidden width of the GeGLU as a multiple of ``out_dim``.
        local: attend to nothing but the position itself.

    Raises:
        ValueError: heads that do not divide the widths.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        heads: int | None = None,
        causal: bool = False,
        expansion: int = 2,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.local = local
        self.inner, narrowing = max(dim, out_dim), dim > out_dim
        self.heads = heads or max(1, self.inner // min(dim, out_dim))
        self.average, self.causal = narrowing, causal
        if self.inner % self.heads or (narrowing and self.inner // self.heads != out_dim):
            raise ValueError(
                f"an attention projection from {dim} to {out_dim} cannot have {self.heads} heads; "
                f"use widths that divide each other, or a number of heads that divides {self.inner}"
            )
        self.norm_attention, self.norm_skip = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * self.inner, bias=False)
        self.query_bias, self.value_bias = (nn.Parameter(torch.zeros(self.inner)) for _ in range(2))
        self.query_bias.requires_grad_(not local)  # nothing is asked where there is one position
        self.out = nn.Linear(out_dim, out_dim)
        self.skip = nn.Linear(dim, out_dim)
        self.norm_mlp = nn.LayerNorm(out_dim)
        self.mlp = GeGLU(out_dim, expansion * out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, dim]`` to ``[B, N, out_dim]``."""
        mixed = self.skip(self.norm_skip(tokens)) + self.attend(self.norm_attention(tokens))
        return mixed + self.mlp(self.norm_mlp(mixed))

    def attend(self, tokens: Tensor) -> Tensor:
        """The attention branch alone, output layer included: ``[B, N, dim]`` to ``[B, N, out_dim]``."""
        batch, length, _ = tokens.shape
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = F.linear(tokens, self.qkv.weight, bias).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, inner / heads]
        heads = value if self.local else F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        joined = heads.mean(1) if self.average else heads.transpose(1, 2).reshape(batch, length, self.inner)
        return self.out(joined)


class GeGLU(nn.Module):
    """Gated feed-forward layer, ``down(gelu(gate(LN x)) * up(LN x))`` (https://arxiv.org/abs/2002.05202).

    Args:
        dim: C.
        hidden: width inside.
        exact: the exact GELU and not its tanh approximation.
    """

    def __init__(self, dim: int, hidden: int, exact: bool = False) -> None:
        super().__init__()
        self.approximate = "none" if exact else "tanh"
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.gate, self.up = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Any leading shape, width kept."""
        normed = self.norm(tokens)
        return self.down(F.gelu(self.gate(normed), approximate=self.approximate) * self.up(normed))


class Residual(nn.Module):
    """``x + module(x)``.

    Args:
        module: keeps the shape of what it is given.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Tensor:
        """Any shape."""
        return tokens + self.module(tokens)


class ContrastProjection(nn.Module):
    """Features of patches that depend on their edges and on no colour: of normalized luminance.

    The luminance of a patch (0.299 R + 0.587 G + 0.114 B) less its mean, over its standard deviation, is the same for
    every pair of colours of which the same one is brighter; a patch of one colour is zero.

    Args:
        patch: side of a patch, pixels.
        width: of the hidden features.
        out_dim: C.
        floor: least standard deviation that is divided by, of luminance in [-1, 1].
    """

    def __init__(self, patch: int, width: int, out_dim: int, floor: float = 0.02) -> None:
        super().__init__()
        self.patch, self.floor = patch, floor
        self.stem = nn.Linear(patch * patch, width)
        self.hidden = Residual(GeGLU(width, 2 * width))
        self.out = AttentionProjection(width, out_dim, local=True)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to ``[B, N, C]``, one feature per patch in raster order."""
        luminance = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        cells = F.unfold(luminance.float(), self.patch, stride=self.patch).transpose(1, 2)
        centred = cells - cells.mean(-1, keepdim=True)
        spread = centred.square().mean(-1, keepdim=True).sqrt().clamp_min(self.floor)
        return self.out(self.hidden(self.stem((centred / spread).to(images.dtype))))
