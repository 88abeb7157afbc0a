"""The discriminator of StyleGAN2: residual, and one verdict on the whole image."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from .discriminator import Discriminator

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)

_CELLS = 4  #: cells along one side of the map that the verdict is read from


class StyleDiscriminator(Discriminator):
    """One logit per image from residual blocks that blur before they halve (StyleGAN2, https://arxiv.org/abs/1912.04958).

    Every block halves the sides, odd ones downwards; the map left is averaged to 4x4 cells where it is of another size,
    and two linear layers read it. Sides of ``4 * 2**layers`` pixels leave 4x4 cells as they are, as in the paper. One
    head, ``[B]``. Learning rates are equalised (https://arxiv.org/abs/1710.10196): weights are drawn with variance one
    and scaled when they are used, so that a step of Adam changes all layers by the same share; 1e-3 to 2.5e-3 is usual.

    Args:
        width: channels at full resolution; they double per block, up to eight times.
        layers: blocks.
        deviation: show the last convolution how much the images of a batch differ, as the paper does: the mean of the
            standard deviations over the batch, one number for all of it. It helps against fakes that are all alike,
            and makes every logit depend on the other images: results then change with the batch size and the number of
            processes, and real and fake images must come in calls of their own.

    Raises:
        ValueError: width or layers below 1.
    """

    def __init__(self, width: int = 64, layers: int = 4, deviation: bool = False) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(
                f"a style discriminator needs width >= 1 and layers >= 1, got {width} and {layers}; 64 and 4 are usual"
            )
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        self.deviation = deviation
        self.first = _equalized(nn.Conv2d(3, width, 1))
        self.blocks = nn.Sequential(*(_Block(before, after) for before, after in pairwise(widths)))
        self.last = _equalized(nn.Conv2d(widths[-1] + int(deviation), widths[-1], 3, padding=1))
        self.hidden = _equalized(nn.Linear(widths[-1] * _CELLS**2, widths[-1]))
        self.logit = _equalized(nn.Linear(widths[-1], 1))
        self.minimum = 2 * 2**layers  # two cells along one side, of which four are made

    def judge(self, images: Tensor) -> list[Tensor]:
        """See :meth:`Discriminator.judge`."""
        features = self.blocks(_active(self.first(images)))
        if self.deviation:
            features = torch.cat([features, _deviation(features)], dim=1)
        features = _active(self.last(features))
        if features.shape[2:] != (_CELLS, _CELLS):
            features = F.adaptive_avg_pool2d(features, _CELLS)
        return [self.logit(_active(self.hidden(features.flatten(1))))[:, 0]]


class _Block(nn.Module):
    """Two convolutions beside a projection, both to half the sides; the variance of their sum is halved."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.blur = _Blur()
        self.first = _equalized(nn.Conv2d(before, before, 3, padding=1))
        self.second = _equalized(nn.Conv2d(before, after, 3, stride=2))
        self.skip = _equalized(nn.Conv2d(before, after, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, D, H // 2, W // 2]``."""
        hidden = self.blur(_active(self.first(features)), padding=2)
        return (_active(self.second(hidden)) + self.skip(self.blur(features, padding=1, stride=2))) * 0.5**0.5


class _Blur(nn.Module):
    """A binomial filter of 4x4 pixels over every channel, zeros around: no frequency survives that halving folds."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", row[:, None] * row, persistent=False)

    def forward(self, features: Tensor, padding: int, stride: int = 1) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, (H + 2 * padding - 4) // stride + 1, ...]``."""
        channels = features.shape[1]
        kernel = self.kernel.expand(channels, 1, *self.kernel.shape)
        return F.conv2d(features, kernel, stride=stride, padding=padding, groups=channels)


class _Scaled(nn.Module):
    """A weight times a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight, shape kept."""
        return self.scale * weight


def _equalized(layer: _Layer) -> _Layer:
    """The layer with weights of variance one, scaled by ``1 / sqrt(inputs)`` when they are used, and biases of zero."""
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    register_parametrization(layer, "weight", _Scaled(layer.weight[0].numel() ** -0.5))
    return layer


def _active(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2) * 2**0.5


def _deviation(features: Tensor) -> Tensor:
    """``[B, 1, h, w]``, everywhere the mean over channels and places of the standard deviation over the batch."""
    spread = (features.float().var(0, correction=0) + 1e-8).sqrt().mean()
    return spread.to(features.dtype).expand(len(features), 1, *features.shape[2:])
