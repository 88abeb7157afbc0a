"""VAR's residual over scales (https://arxiv.org/abs/2404.02905): convolutions smooth what enlarging leaves.

Letters: B batch, C width of a code, D codes of a position, L side of the finest grid, M codes of all scales together,
M0 codes of the first scale.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizers import Quantizer
from .scales import MultiScaleQuantizer


class Blend(nn.Module):
    """A 3 x 3 convolution mixed with its input, ``(1 - ratio) x + ratio conv(x)``, in float32 inside any autocast.

    Args:
        dim: C.
        ratio: of the convolution in the result.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.conv, self.ratio = nn.Conv2d(dim, dim, 3, padding=1), ratio

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, L, L]``, shape kept."""
        with torch.autocast(features.device.type, enabled=False):
            return (1 - self.ratio) * features + self.ratio * self.conv(features)


class VARQuantizer(MultiScaleQuantizer):
    """A residual over scales whose enlarged maps pass a convolution, of which a few serve all scales.

    Scale k of S takes the convolution whose tick is nearest to ``k / (S - 1)``, the later one of equals. K ticks are
    evenly spaced, the outer ones 1 / 2K from 0 and 1, and 1 / 3K for K = 4, as released. Losses are those of
    :class:`~smalti.tokenizers.scales.MultiScaleQuantizer`.

    Args:
        quantizer: of the vectors at every scale.
        sides: of the grids, rising; the last is L.
        drop: see :class:`~smalti.tokenizers.scales.MultiScaleQuantizer`.
        convolutions: how many; 0 for none.
        ratio: of a convolution in its result.
    """

    @register_to_config
    def __init__(
        self, quantizer: Quantizer, sides: list[int], drop: float = 0.0, convolutions: int = 4, ratio: float = 0.5
    ) -> None:
        super().__init__(quantizer, sides, drop)
        self.convolutions = nn.ModuleList(Blend(quantizer.dim, ratio) for _ in range(convolutions))

    def added(self, ids: Tensor, scale: int) -> Tensor:
        """What the ids ``[B, side * side, D]`` of one scale add to the sum: ``[B, C, L, L]``."""
        return self._enlarged(self._map(self.quantizer.lookup(ids), self.sides[scale]))

    def shrunk(self, total: Tensor, scale: int) -> Tensor:
        """A sum ``[B, C, L, L]`` as a scale is predicted from it: ``[B, side * side, C]``."""
        side = self.sides[scale]
        return F.interpolate(total, (side, side), mode="area").flatten(2).transpose(1, 2)

    def inputs(self, ids: Tensor) -> Tensor:
        """What every scale but the first is predicted from, ``[B, M - M0, C]``, for ids ``[B, M, D]``."""
        parts = self._split(ids)
        found, read = torch.zeros((), device=ids.device), list[Tensor]()
        for scale, part in enumerate(parts[:-1]):
            found = found + self.added(part, scale)
            read.append(self.shrunk(found, scale + 1))
        return torch.cat(read, dim=1) if read else self.quantizer.lookup(ids[:, :0])

    def _enlarged(self, features: Tensor) -> Tensor:
        enlarged = super()._enlarged(features)
        if not self.convolutions:
            return enlarged
        scale = self.sides.index(features.shape[-1])
        return self.convolutions[nearest_tick(scale, len(self.sides), len(self.convolutions))](enlarged)


def nearest_tick(scale: int, scales: int, ticks: int) -> int:
    """Which of ``ticks`` convolutions a scale takes, see :class:`VARQuantizer`.

    Exact fractions: of the ten released scales two lie midway between ticks.
    """
    at, edge = Fraction(scale, max(scales - 1, 1)), Fraction(1, (3 if ticks == 4 else 2) * ticks)
    step = (1 - 2 * edge) / max(ticks - 1, 1)
    return min(range(ticks), key=lambda tick: (abs(edge + tick * step - at), -tick))
