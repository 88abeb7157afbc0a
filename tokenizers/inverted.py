"""Inverted residual blocks (https://arxiv.org/abs/1801.04381) with layer norms, ViTamin's way, and their mirror."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvStages(nn.Module):
    """What ViTamin has before its transformer: ``[B, 3, H, W]`` to ``[B, dim, H / stride, W / stride]``.

    Args:
        dim: width of the features.
        channels: of each stage.
        blocks: inverted residual blocks of each stage.
    """

    def __init__(self, dim: int, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        first, last = channels[0], channels[-1]
        halved = nn.Conv2d(3, first, 3, stride=2, padding=1)
        kept = nn.Conv2d(first, first, 3, padding=1)
        self.stem = nn.Sequential(halved, ChannelNorm(first, eps=1e-6), nn.GELU(), kept)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(halving(before, after), *keeping(after, count - 1))
                for before, after, count in zip([first, *channels], channels, blocks, strict=False)
            )
        )
        self.norm = ChannelNorm(last, eps=1e-6)
        self.last = nn.Conv2d(last, dim, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.norm(self.stages(self.stem(images))))


class InvertedResidual(nn.Module):
    """1x1 to four times the channels, depthwise 3x3, 1x1 back; after a norm, and added to the input.

    Args:
        before: channels of the input.
        after: channels of the result.
        stride: of the depthwise convolution.
        enlarge: doubles the sides before it.
        skip: brings the input to the shape of the result.
    """

    def __init__(
        self,
        before: int,
        after: int,
        stride: int = 1,
        enlarge: nn.Module | None = None,
        skip: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = 4 * after
        self.norm = ChannelNorm(before, eps=1e-6)
        self.expand = nn.Conv2d(before, hidden, 1)
        self.enlarge = nn.Identity() if enlarge is None else enlarge
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, after, 1)
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, features: Tensor) -> Tensor:
        """``[B, before, h, w]`` to ``[B, after, h', w']``."""
        hidden = self.enlarge(F.gelu(self.expand(self.norm(features))))
        return self.skip(features) + self.project(F.gelu(self.depthwise(hidden)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[B, C, h, w]``, cell by cell."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Shape kept."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def keeping(channels: int, count: int) -> list[InvertedResidual]:
    """Blocks that keep the shape."""
    return [InvertedResidual(channels, channels) for _ in range(count)]


def halving(before: int, after: int) -> InvertedResidual:
    """A block that halves the sides; around it go means over neighbours."""
    mean = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
    widen = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
    return InvertedResidual(before, after, stride=2, skip=nn.Sequential(mean, widen))


def doubling(before: int, after: int) -> InvertedResidual:
    """A block that doubles the sides, inside and around it alike."""
    return InvertedResidual(before, after, enlarge=enlarge(4 * after, 4 * after), skip=enlarge(before, after))


def enlarge(before: int, after: int) -> nn.Sequential:
    """Double the sides: nearest neighbour, then a 3x3 convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1))
