"""Codebooks that follow moving averages, with the schedules that published tokenizers differ in.

Letters: B batch, N positions, D residual depth, C width, K codebook size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F

from .learned import straight_through
from .quantizers import Quantizer, distributed
from .search import nearest

Schedule = Literal["step", "depth", "final_residual"]


class AveragedQuantizer(Quantizer):
    """A residual quantizer with one table for all depths, moved by averages of what it codes.

    Every code keeps a decayed count and a decayed sum of its vectors; its row is their quotient, counts smoothed as
    ``n (count + epsilon) / (n + K epsilon)`` with n the total count (https://arxiv.org/abs/1906.00446). The loss is
    ``commitment * mse(z, sg(partial sum))`` averaged over the depths.

    When the averages move is where releases differ (RQ-VAE, https://arxiv.org/abs/2203.01941; DualToken,
    https://arxiv.org/abs/2503.14324): ``step`` takes in the residuals of all depths at once after the pass, which
    DualToken means; ``depth`` updates inside every depth, so that the table moves between depths and decays once per
    depth (RQ-VAE, DualToken's pixel branch); ``final_residual`` takes in what is left after the last depth in place of
    every depth's residual, as DualToken's semantic branch does by aliasing (worse reconstruction; for comparison only).

    Args:
        dim: C.
        codebook_size: K.
        depth: D.
        decay: of the averages, in [0, 1).
        commitment: weight of the loss; DualToken weighs nothing (1).
        schedule: when the averages move.
        epsilon: of the smoothing.
        keep_smoothed: write the smoothed counts back, as AiT's release does (https://arxiv.org/abs/2301.02229); codes
            not drawn in the first step are then dead for good.
        revive_below: codes whose count falls below this restart from current vectors; 0 restarts none.

    Raises:
        ValueError: a depth below 1 or a decay outside [0, 1).
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        codebook_size: int,
        depth: int = 1,
        decay: float = 0.99,
        commitment: float = 0.25,
        schedule: Schedule = "step",
        epsilon: float = 1e-5,
        keep_smoothed: bool = False,
        revive_below: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 1 or not 0 <= decay < 1:
            raise ValueError(f"depth must be >= 1 and decay in [0, 1), got {depth} and {decay}; 0.99 is usual")
        self.dim, self.size, self.depth = dim, codebook_size, depth
        self.decay, self.commitment, self.schedule = decay, commitment, schedule
        self.revives = revive_below > 0
        self.epsilon, self.keep_smoothed, self.revive_below = epsilon, keep_smoothed, revive_below
        self.table: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("table", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.table.clone())

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`."""
        inputs = latents.flatten(0, 1)
        left, total = inputs.detach().clone(), torch.zeros_like(inputs)
        ids, met, losses = list[Tensor](), list[Tensor](), list[Tensor]()
        for _ in range(self.depth):
            chosen = nearest(left, self.table)
            values = self.table[chosen]
            ids.append(chosen)
            met.append(left)
            if self.training and self.schedule == "depth":
                self._follow(left, chosen)
            left, total = left - values, total + values
            losses.append(F.mse_loss(inputs, total))
        if self.training and self.schedule != "depth":
            vectors = met if self.schedule == "step" else [left] * self.depth
            self._follow(torch.cat(vectors), torch.cat(ids))
        found = straight_through(inputs, total).view(latents.shape)
        columns = torch.stack(ids, dim=-1).view(*latents.shape[:2], self.depth)
        return found, columns, self.commitment * torch.stack(losses).mean()

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        found = torch.zeros(*ids.shape[:2], self.dim, device=self.table.device)
        for column in ids.unbind(-1):
            found = found + self.table[column]
        return found

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`."""
        return {name: self.table}

    @torch.no_grad()
    def _follow(self, vectors: Tensor, ids: Tensor) -> None:
        """Take vectors ``[M, C]`` that were coded ``[M]`` into the averages; the same on every process."""
        counts = torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(ids, dtype=self.counts.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors)
        if distributed():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self._revive(vectors)
        total = self.counts.sum()
        smoothed = total * (self.counts + self.epsilon) / (total + self.size * self.epsilon)
        if self.keep_smoothed:
            self.counts.copy_(smoothed)
        self.table.copy_(self.sums / smoothed[:, None])

    def _revive(self, vectors: Tensor) -> None:
        """Restart codes that are hardly drawn from vectors of this step, chosen on the first process."""
        dead = self.counts < self.revive_below
        if not bool(dead.any()):
            return
        picked = torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)
        fresh = vectors[picked].contiguous()
        if distributed():
            dist.broadcast(fresh, src=0)
        self.counts[dead] = self.revive_below
        self.sums[dead] = self.revive_below * fresh
