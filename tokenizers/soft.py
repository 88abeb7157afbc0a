"""AiT: codes of masks and depth maps, decoded from soft tokens.

Letters: B batch, S side of a map, n side of its code grid, K codebook size, C width.
"""

from __future__ import annotations

from torch import Tensor, nn


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


def map_encoder(dim: int, width: int, stride: int, blocks: int, channels: int = 1) -> nn.Sequential:
    """Maps ``[B, channels, S, S]`` to features ``[B, dim, S / stride, S / stride]``.

    4x4 convolutions of stride 2, doubling the channels up to ``width``; then residual stacks.
    """
    widths = _widths(width, stride)
    layers: list[nn.Module] = []
    for before, after in zip([channels, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, *(ResidualStack(width) for _ in range(blocks)), nn.Conv2d(width, dim, 1))


def map_decoder(dim: int, width: int, stride: int, blocks: int, channels: int = 1) -> nn.Sequential:
    """The mirror of :func:`map_encoder`, with transposed convolutions."""
    widths = _widths(width, stride)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(dim, width, 1), nn.ReLU(), *(ResidualStack(width) for _ in range(blocks))]
    for before, after in zip([width, *widths], widths, strict=False):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 1))


def soft_rows(logits: Tensor, table: Tensor, tau: float = 0.8) -> Tensor:
    """Expected rows ``[..., C]`` under ``softmax(tau * logits)`` (https://arxiv.org/abs/2301.02229).

    Args:
        logits: ``[..., K]`` of a language model.
        table: ``[K, C]``.
        tau: multiplies the logits; 0.8 as released, infinity is the hard choice.
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
