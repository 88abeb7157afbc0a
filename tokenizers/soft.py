"""AiT: codes of masks and depth maps, decoded from soft tokens.

Letters: B batch, N positions, S side of a map, K codebook size, C width.
"""

from __future__ import annotations

from typing import ClassVar

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .convolutional import Decoder, Encoder
from .quantizers import Quantizer
from .vq import VQTokenizer

#: Maps whose values are those of their pictures.
UNSCALED = (-1.0, 1.0)


class ResidualStack(nn.Module):
    """Three convolutions (3x3, 3x3, 1x1) with ReLU between, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width, h, w]``, shape kept."""
        return features + self.layers(features)


class MapEncoder(Encoder):
    """4x4 convolutions of stride 2, doubling the channels up to ``width``; then residual stacks.

    Args:
        dim: width of the features.
        width: channels of the widest layer.
        stride: pixels per feature, a power of two.
        blocks: residual stacks.
        channels: 3 for pictures, 1 as published for maps, which are pictures of three equal channels here.
        span: values of a map that -1 and 1 of its picture stand for: (0, 10) for the published depth in metres.

    Raises:
        ValueError: a stride that is no power of two, or a width that its half does not divide.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        width: int = 256,
        stride: int = 16,
        blocks: int = 2,
        channels: int = 3,
        span: tuple[float, float] = UNSCALED,
    ) -> None:
        super().__init__()
        self.dim, self.stride, self.channels, self.span = dim, stride, channels, tuple(span)
        widths, layers = _widths(width, stride), list[nn.Module]()
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, *(ResidualStack(width) for _ in range(blocks)), nn.Conv2d(width, dim, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, 3, S, S]`` to ``[B, dim, S / stride, S / stride]``."""
        maps = maps.mean(1, keepdim=True) if self.channels == 1 else maps
        low, high = self.span
        return self.layers(maps if self.span == UNSCALED else low + (maps + 1) * (high - low) / 2)


class MapDecoder(Decoder):
    """The mirror of :class:`MapEncoder`, with transposed convolutions; arguments and errors are its."""

    @register_to_config
    def __init__(
        self,
        dim: int,
        width: int = 256,
        stride: int = 16,
        blocks: int = 2,
        channels: int = 3,
        span: tuple[float, float] = UNSCALED,
    ) -> None:
        super().__init__()
        self.dim, self.stride, self.span = dim, stride, tuple(span)
        widths = _widths(width, stride)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1), nn.ReLU(), *(ResidualStack(width) for _ in range(blocks))]
        for before, after in zip([width, *widths], widths, strict=False):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers, self.last = nn.Sequential(*layers), nn.Conv2d(widths[-1], channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, dim, n, n]`` to ``[B, 3, n * stride, n * stride]``."""
        maps = self.last(self.layers(features)).expand(-1, 3, -1, -1)
        low, high = self.span
        return maps if self.span == UNSCALED else 2 * (maps - low) / (high - low) - 1


class SoftTokenizer(VQTokenizer):
    """A plain tokenizer whose codes are also decoded from what a model thinks of them before it has chosen
    (AiT, https://arxiv.org/abs/2301.02229).

    Meant for masks and depth, as pictures of three equal channels. As published: ``MapEncoder`` and ``MapDecoder`` of
    one channel, stride 16 for masks of 64 pixels and stride 32 for depth of 480, and ``AveragedQuantizer(512, 128,
    keep_smoothed=True, revive_below=0)``, in which codes that the first step does not draw stay dead.

    Args:
        encoder: maps to features.
        quantizer: features to codes, one per position.
        decoder: quantized features to maps.
        image_size: side of the square maps that ``spec`` describes, pixels.
        tau: multiplies the logits of soft tokens.
    """

    usual_tau: ClassVar[float] = 0.8

    @register_to_config
    def __init__(
        self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder, image_size: int, tau: float = usual_tau
    ) -> None:
        super().__init__(encoder, quantizer, decoder, image_size)
        self.tau = tau

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1], clamped, of logits ``[B, N, K]`` over the codes; differentiable in them.

        Raises:
            ValueError: logits of another shape.
        """
        (table,) = self.code_vectors().values()
        if logits.shape[1:] != (self.spec.positions, len(table)):
            raise ValueError(
                f"logits must be [B, {self.spec.positions}, {len(table)}], got {list(logits.shape)}; "
                "give one row per position over this tokenizer's codes"
            )
        features = self.widen(soft_rows(logits.float(), table, self.tau).to(self.dtype)).transpose(1, 2)
        return self.decoder(features.unflatten(2, self.spec.layout.shape)).clamp(-1, 1)


def soft_rows(logits: Tensor, table: Tensor, tau: float = SoftTokenizer.usual_tau) -> Tensor:
    """Expected rows ``[..., C]`` under ``softmax(tau * logits)`` (https://arxiv.org/abs/2301.02229).

    Args:
        logits: ``[..., K]`` of a language model.
        table: ``[K, C]``.
        tau: 0.8 as released; the larger, the closer to the hard choice.
    """
    return (tau * logits).softmax(-1) @ table


def _widths(width: int, stride: int) -> list[int]:
    stages = stride.bit_length() - 1
    if stride < 2 or 2**stages != stride or width % 2 ** (stages - 1):
        raise ValueError(
            f"the stride must be a power of two whose half divides the width, got stride {stride} and width {width}; "
            "change either"
        )
    return [width // 2 ** (stages - 1 - stage) for stage in range(stages)]
