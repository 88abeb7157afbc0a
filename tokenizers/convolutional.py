"""The convolutional encoder and decoder of VQGAN (https://arxiv.org/abs/2012.09841), shared by tokenizer families."""

from __future__ import annotations

from math import gcd

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .component import Component


class Encoder(Component):
    """Base of encoders: ``[B, 3, H, W]`` images to ``[B, dim, H / stride, W / stride]`` features."""

    dim: int  #: width of the features
    stride: int  #: pixels per feature
    grid: int | None = None  #: features along one side; None where any number is taken


class Decoder(Component):
    """Base of decoders: ``[B, dim, h, w]`` features to ``[B, 3, h * stride, w * stride]`` pixels, not clamped.

    ``last_layer`` is the weight that the adaptive adversarial weight of VQGAN is measured at.
    """

    dim: int  #: width of the features
    stride: int  #: pixels per feature
    grid: int | None = None  #: features along one side; None where any number is taken

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last layer, on which all pixel losses meet."""
        return self.get_parameter("last.weight")


class ConvEncoder(Encoder):
    """Residual stages, each halving the sides but the last, attention at the lowest resolution.

    Args:
        dim: width of the features.
        width: channels of the first stage.
        multipliers: channels of each stage as multiples of ``width``; the stride is ``2 ** (stages - 1)``.
        blocks: residual blocks per stage.
    """

    @register_to_config
    def __init__(
        self, dim: int = 256, width: int = 128, multipliers: tuple[int, ...] = (1, 1, 2, 2, 4), blocks: int = 2
    ) -> None:
        super().__init__()
        self.dim, self.stride = dim, 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for stage, (before, after) in enumerate(zip([width, *widths], widths, strict=False)):
            lowest = stage == len(widths) - 1
            layers += _stage(before, after, blocks, attention=lowest)
            layers += [] if lowest else [Downsample(after)]
        layers += [
            ResidualBlock(widths[-1], widths[-1]),
            SpatialAttention(widths[-1]),
            ResidualBlock(widths[-1], widths[-1]),
        ]
        self.layers = nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU())
        self.last = nn.Conv2d(widths[-1], dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, dim, H / stride, W / stride]``."""
        return self.last(self.layers(images))


class ConvDecoder(Decoder):
    """The mirror of :class:`ConvEncoder`: residual stages, each doubling the sides but the first.

    Args:
        dim: width of the features it reads.
        width: channels of the last stage.
        multipliers: channels of each stage as multiples of ``width``, finest first as in the encoder.
        blocks: residual blocks per stage.
        inner: width that a residual block of a 1x1 and a 3x3 convolution brings the features to first; none by default.
            DualToken's is 1024 (https://arxiv.org/abs/2503.14324).
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 256,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 3,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.stride = dim, 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in reversed(multipliers)]
        top = widths[0]
        self.first = nn.Identity() if inner is None else ResidualBlock(dim, inner, 1)
        layers: list[nn.Module] = [nn.Conv2d(inner or dim, top, 3, padding=1)]
        layers += [ResidualBlock(top, top), SpatialAttention(top), ResidualBlock(top, top)]
        for stage, (before, after) in enumerate(zip([top, *widths], widths, strict=False)):
            layers += _stage(before, after, blocks, attention=stage == 0)
            layers += [] if stage == len(widths) - 1 else [Upsample(after)]
        self.layers = nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU())
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, dim, h, w]`` to ``[B, 3, h * stride, w * stride]``."""
        return self.last(self.layers(self.first(features)))


class ResidualBlock(nn.Module):
    """Two normalised convolutions, the second 3x3, and a skip connection.

    Args:
        before: channels of what it reads.
        after: channels of what it gives.
        kernel: side of the first convolution, odd.
    """

    def __init__(self, before: int, after: int, kernel: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(before),
            nn.SiLU(),
            nn.Conv2d(before, after, kernel, padding=kernel // 2),
            _norm(after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, before, h, w]`` to ``[B, after, h, w]``."""
        return self.skip(features) + self.layers(features)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the cells of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]``, shape kept."""
        query, key, value = self.qkv(self.norm(features)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return features + self.out(mixed.transpose(1, 2).unflatten(2, features.shape[2:]))


class Downsample(nn.Module):
    """Halve the sides: pad right and bottom by one, 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, h / 2, w / 2]``."""
        return self.conv(F.pad(features, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, 2 h, 2 w]``."""
        return self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))


def _stage(before: int, after: int, blocks: int, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers.append(ResidualBlock(before if block == 0 else after, after))
        layers += [SpatialAttention(after)] if attention else []
    return layers


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(32, channels), channels, eps=1e-6)
