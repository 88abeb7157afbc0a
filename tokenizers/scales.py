"""A residual over sizes of a map, coarse to fine: one set of codes per scale (TokenFlow, VAR).

Letters: B batch, C width, L side of the finest grid, M codes of all scales together (the sum of their areas).
"""

from __future__ import annotations

from functools import reduce
from itertools import accumulate, pairwise

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F

from .codes import Codebook
from .quantizers import Quantizer, of_first


class MultiScaleQuantizer(Quantizer):
    """What is left of a map, shrunk to each side in turn and quantized (https://arxiv.org/abs/2412.03069).

    ``r`` is shrunk by area averaging, quantized, enlarged to L x L (bicubic), added to the sum and taken from ``r``;
    one quantizer serves all scales and losses are means over them. Unlike every other quantizer, its ids have more
    positions than its latents: ``[B, M, D]`` against ``[B, L * L, C]``, scale after scale in raster order.

    Args:
        quantizer: of the vectors at every scale.
        sides: of the grids, rising; the last is L.
        drop: in training, probability that one scale but the first adds nothing, drawn per batch (0.1 in TokenFlow).

    Raises:
        ValueError: sides that do not rise, or a probability outside [0, 1].
    """

    idempotent = False  # its values are sums over scales

    @register_to_config
    def __init__(self, quantizer: Quantizer, sides: list[int], drop: float = 0.0) -> None:
        super().__init__()
        if not sides or sides[0] < 1 or any(low >= high for low, high in pairwise(sides)):
            raise ValueError(f"sides must rise from 1 or more, got {list(sides)}; list them coarse to fine")
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must lie in [0, 1], got {drop}; TokenFlow drops with 0.1")
        self.quantizer, self.sides, self.drop = quantizer, list(sides), drop
        self.dim, self.size, self.depth = quantizer.dim, quantizer.size, quantizer.depth

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`; latents ``[B, L * L, C]``, ids ``[B, M, D]``."""
        left = self._map(latents, self.sides[-1])
        found, ids, losses = torch.zeros_like(left), list[Tensor](), list[Tensor]()
        dropped = self._dropped(latents.device)
        for scale, side in enumerate(self.sides):
            values, chosen, loss = self.quantizer.quantize(_tokens(F.interpolate(left, (side, side), mode="area")))
            ids.append(chosen)
            losses.append(loss)
            if scale != dropped:
                added = self._enlarged(self._map(values, side))
                found, left = found + added, left - added.detach()
        return _tokens(found), torch.cat(ids, dim=1), torch.stack(losses).mean()

    def lookup(self, ids: Tensor) -> Tensor:
        """Values ``[B, L * L, C]`` of the ids of all scales or of the first few, ``[B, m, D]``.

        Raises:
            ValueError: ids that end inside a scale.
        """
        return _tokens(self._sum(ids))

    def chained(self, ids: Tensor) -> Tensor:
        """What TokenFlow's text-to-image model reads: ``[B, M - 1, C]``, the sum so far at every scale but the first.

        There the sum is enlarged from each scale to the next, not from each scale to the last; the difference is 10 to
        32 % of its norm.
        """
        parts = self._split(ids)
        found, read = self._map(self.quantizer.lookup(parts[0]), self.sides[0]), list[Tensor]()
        for part, side in zip(parts[1:], self.sides[1:], strict=False):
            found = _bicubic(found, side)
            read.append(_tokens(found))
            found = found + self._map(self.quantizer.lookup(part), side)
        return torch.cat(read, dim=1)

    def codebooks(self, name: str) -> tuple[Codebook, ...]:
        """Those of the quantizer inside."""
        return self.quantizer.codebooks(name)

    def vectors(self, name: str) -> dict[str, Tensor]:
        """Those of the quantizer inside."""
        return self.quantizer.vectors(name)

    def _sum(self, ids: Tensor) -> Tensor:
        parts = self._split(ids)
        maps = [self._map(self.quantizer.lookup(part), side) for part, side in zip(parts, self.sides, strict=False)]
        return reduce(torch.add, [self._enlarged(part) for part in maps])

    def _split(self, ids: Tensor) -> list[Tensor]:
        areas = [side * side for side in self.sides]
        ends = list(accumulate(areas))
        if ids.shape[1] not in ends:
            raise ValueError(
                f"ids must end with a scale, at one of {ends} positions, got {ids.shape[1]}; cut between scales"
            )
        return list(ids.split(areas[: ends.index(ids.shape[1]) + 1], dim=1))

    def _dropped(self, device: torch.device) -> int | None:
        """The scale that the whole batch goes without, of all processes."""
        if not (self.training and self.drop and len(self.sides) > 1):
            return None
        dropped = int(torch.randint(1, len(self.sides), ())) if float(torch.rand(())) < self.drop else 0
        return of_first(dropped, device) or None

    def _enlarged(self, features: Tensor) -> Tensor:
        return _bicubic(features, self.sides[-1])

    @staticmethod
    def _map(tokens: Tensor, side: int) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (side, side))


def _bicubic(features: Tensor, side: int) -> Tensor:
    return F.interpolate(features, (side, side), mode="bicubic", align_corners=False)


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)
