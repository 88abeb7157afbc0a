"""LaVIT's choice of patches, and what becomes of those that are kept.

Letters: B batch, N patches, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention, causal, feed_forward


class TokenSelector(nn.Module):
    """Log-probabilities of keeping each patch (https://arxiv.org/abs/2309.04669).

    Half of every patch's channels are replaced by their mean over the patches, so that each is judged in context.

    Args:
        dim: C, width of the patches.
        width: hidden channels, even.
        eps: of the norm.
    """

    def __init__(self, dim: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(dim, eps), nn.Linear(dim, width), nn.GELU())
        halves = (nn.Linear(width, width // 2), nn.Linear(width // 2, width // 4), nn.Linear(width // 4, 2))
        self.judge = nn.Sequential(halves[0], nn.GELU(), halves[1], nn.GELU(), halves[2])

    def forward(self, patches: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, N, 2]`` log-probabilities of keeping (0) and dropping (1)."""
        own, shared = self.local(patches).chunk(2, dim=-1)
        together = shared.mean(1, keepdim=True).expand_as(shared)
        return self.judge(torch.cat([own, together], dim=-1)).log_softmax(-1)


class TokenMerger(nn.Module):
    """Kept patches, each having read the kept ones before it and all that were dropped.

    The release hides patches by a softmax that leaks a little (``leak=1e-6``): where nothing is dropped, every patch
    then reads the mean of all patches, later ones too. Here hidden patches are hidden.

    Args:
        dim: C.
        layers: number of blocks.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        eps: of the norms.
        leak: see :class:`~smalti.tokenizers.attention.Attention`; 0 here, 1e-6 as released.
    """

    def __init__(self, dim: int, layers: int, heads: int, hidden: int, eps: float = 1e-5, leak: float = 0.0) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.blocks = nn.ModuleList(MergerBlock(dim, heads, hidden, eps, leak) for _ in range(layers))

    def forward(self, patches: Tensor, keep: Tensor) -> Tensor:
        """``[B, N, C]``, rows of dropped patches included, from patches and a bool mask ``[B, N]`` of the kept.

        Dropped patches are read as they came, normed; kept ones start from the patches themselves.
        """
        original = self.norm_in(patches)
        itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
        before = causal(keep.shape[1], keep.device) & keep[:, None] | itself
        merged = patches
        for block in self.blocks:
            merged = block(merged, original, before, ~keep[:, None])
        return self.norm_out(merged)


class MergerBlock(nn.Module):
    """Causal self-attention among the kept, cross-attention to the dropped, feed-forward layer; each after a norm."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float, leak: float) -> None:
        super().__init__()
        self.norm_kept, self.norm_dropped, self.norm_mlp = (nn.LayerNorm(dim, eps) for _ in range(3))
        self.kept, self.dropped = Attention(dim, heads, leak=leak), Attention(dim, heads, leak=leak)
        self.kept_out, self.dropped_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, hidden)

    def forward(self, merged: Tensor, original: Tensor, before: Tensor, dropped: Tensor) -> Tensor:
        """``[B, N, C]``, shape kept; masks over the kept patches before each, and over the dropped ones."""
        merged = merged + self.kept_out(self.kept(self.norm_kept(merged), None, before))
        dropped = dropped.expand(-1, merged.shape[1], -1)
        seeing = dropped.any(-1, keepdim=True) | bool(self.dropped.leak)
        read = self.dropped_out(self.dropped(self.norm_dropped(merged), original, dropped))
        merged = merged + read * seeing
        return merged + self.mlp(self.norm_mlp(merged))
