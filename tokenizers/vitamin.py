"""ViTamin: a convolutional stem, inverted residual stages and a transformer; its mirror draws pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import PreNormBlock
from .convolutional import Decoder, Encoder
from .inverted import ChannelNorm, ConvStages, doubling, enlarge, keeping
from .projection import GeGLU
from .towers import Tower

#: Arguments of the published sizes; encoder, decoder and tower share them.
VITAMIN_LARGE: dict[str, Any] = {"channels": (160, 320), "blocks": (2, 4), "layers": 31, "heads": 16}
VITAMIN_XLARGE: dict[str, Any] = {"channels": (192, 384), "blocks": (2, 4), "layers": 32, "heads": 16}


class ViTaminEncoder(Encoder):
    """Images to features at a fraction of their sides (ViTamin, https://arxiv.org/abs/2404.02132).

    No layer is told where it is; the convolutions' padding shows it, and images of any size are taken. ViTamin-L is
    ``ViTaminEncoder(1024, **VITAMIN_LARGE)``, of stride 16.

    Args:
        dim: width of the features and of the transformer.
        channels: of each convolutional stage; every stage, the stem before and the layer after them halve the sides.
        blocks: inverted residual blocks of each stage.
        layers: transformer layers.
        heads: their attention heads.
        exact: exact GELU in the feed-forward layers, as ViTamin was released, and not the approximation of UniTok's.

    Raises:
        ValueError: not as many numbers of blocks as of channels.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        layers: int,
        heads: int,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.stride = dim, _stride(channels, blocks)
        self.stages = ConvStages(dim, channels, blocks)
        self.layers = _transformer(dim, layers, heads, exact)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, dim, H / stride, W / stride]``."""
        features = self.stages(images)
        hidden = self.norm(self.layers(features.flatten(2).transpose(1, 2)))
        return hidden.transpose(1, 2).unflatten(2, features.shape[2:])


class ViTaminDecoder(Decoder):
    """The mirror of :class:`ViTaminEncoder`: UniTok's pixel decoder (https://arxiv.org/abs/2502.20321).

    Args:
        dim: width of the features it reads and of the transformer.
        channels: of each convolutional stage, finest first as in the encoder.
        blocks: inverted residual blocks of each stage, finest first.
        layers: transformer layers.
        heads: their attention heads.
        exact: as in the encoder.

    Raises:
        ValueError: not as many numbers of blocks as of channels.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        layers: int,
        heads: int,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.stride = dim, _stride(channels, blocks)
        self.layers = _transformer(dim, layers, heads, exact)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        widths = list(reversed(channels))
        stages = [
            nn.Sequential(doubling(before, after), *keeping(after, count - 1))
            for before, after, count in zip([widths[0], *widths], widths, reversed(blocks), strict=False)
        ]
        self.stages = nn.Sequential(enlarge(dim, widths[0]), *stages)
        self.unstem = nn.Sequential(enlarge(widths[-1], widths[-1]), ChannelNorm(widths[-1], eps=1e-6), nn.GELU())
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, dim, h, w]`` to ``[B, 3, h * stride, w * stride]``."""
        hidden = self.norm(self.layers(features.flatten(2).transpose(1, 2)))
        cells = hidden.transpose(1, 2).unflatten(2, features.shape[2:])
        return self.last(self.unstem(self.stages(cells)))


class ViTaminTower(Tower):
    """ViTamin as a vision tower, without a norm or a head after its last layer; TokenFlow-L's semantic encoder.

    Args:
        image_size: side of the square images, pixels.
        width: C, width of the transformer.
        channels, blocks, layers, heads: as in :class:`ViTaminEncoder`.
        mean: per channel, of pixels in [0, 1], subtracted before the first layer; CLIP's by default.
        std: per channel, of pixels in [0, 1], divided by; CLIP's by default.
        exact: as in :class:`ViTaminEncoder`.

    Raises:
        ValueError: not as many numbers of blocks as of channels, or an image size that is no multiple of the stride.
    """

    prefix = 0

    @register_to_config
    def __init__(
        self,
        image_size: int,
        width: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        layers: int,
        heads: int,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        exact: bool = True,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.width, self.depth = image_size, _stride(channels, blocks), width, layers
        if image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of the stride {self.patch_size}, got {image_size}; change either"
            )
        self.mean, self.std = tuple(mean), tuple(std)
        self.stages = ConvStages(width, channels, blocks)
        self.layers = _transformer(width, layers, heads, exact)

    def stem(self, images: Tensor) -> Tensor:
        """See :meth:`Tower.stem`."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.stages((0.5 * images + 0.5 - mean) / std).flatten(2).transpose(1, 2)

    def patches(self, images: Tensor) -> Tensor:
        """None are to be had without what lies around them.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a ViTaminTower's convolutions look beyond a patch, got a request for patches alone; use another"
        )

    def layer(self, index: int) -> nn.Module:
        """See :meth:`Tower.layer`."""
        return self.layers[index]

    def run(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """See :meth:`Tower.run`."""
        return self.layers[start:stop](hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        """Mean over the patches: ``[B, N, C]`` to ``[B, C]``."""
        return hidden.mean(1)

    def freeze_pooling(self) -> None:
        """Nothing: the mean has no weights."""


def _transformer(dim: int, layers: int, heads: int, exact: bool) -> nn.Sequential:
    return nn.Sequential(*(PreNormBlock(dim, heads, mlp=GeGLU(dim, 2 * dim, exact)) for _ in range(layers)))


def _stride(channels: Sequence[int], blocks: Sequence[int]) -> int:
    """Pixels per feature: the stem, every stage and the layer after them halve."""
    if len(channels) != len(blocks):
        raise ValueError(
            f"every stage has channels and blocks, got {len(channels)} and {len(blocks)} numbers; give as many of each"
        )
    return 2 ** (len(channels) + 2)
