"""SigLIP vision transformers (https://arxiv.org/abs/2303.15343) run layer by layer, and a transformer pixel decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from .component import Component
from .convolutional import Decoder, Encoder


@dataclass(frozen=True)
class VisionFeatures:
    """What a vision tower says about a batch of images."""

    tokens: Tensor  #: [B, N, C] hidden states before the last layer
    pooled: Tensor  #: [B, C] output of the attention-pooling head


class VisionTower(Component):
    """A SigLIP vision encoder from ``transformers``, opened up so that hidden states can be read and replaced.

    Args:
        image_size: side of the square images, pixels.
        patch_size: side of a patch, pixels.
        width: C, hidden size.
        layers: number of transformer layers.
        heads: attention heads.
        mlp_width: hidden size of the feed-forward layers; four times ``width`` by default.
        options: further fields of ``transformers.SiglipVisionConfig``.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.width, self.depth = image_size, patch_size, width, layers
        self.model = SiglipVisionModel(
            SiglipVisionConfig(
                image_size=image_size,
                patch_size=patch_size,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=mlp_width or 4 * width,
                **(options or {}),
            )
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: str) -> VisionTower:
        """A tower with the weights of a SigLIP checkpoint: a local folder or a hub id.

        Raises:
            ValueError: the checkpoint is of another kind than SigLIP.
        """
        kind = AutoConfig.from_pretrained(checkpoint).model_type
        if kind not in ("siglip", "siglip_vision_model"):
            raise ValueError(
                f"a vision tower starts from a SigLIP checkpoint, got {kind!r} in {checkpoint}; choose another"
            )
        model = SiglipVisionModel.from_pretrained(checkpoint)
        config: SiglipVisionConfig = model.config
        named = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        size, patch, width, layers, heads = (int(getattr(config, name)) for name in named)
        options = {name: getattr(config, name) for name in ("hidden_act", "layer_norm_eps", "attention_dropout")}
        tower = cls(size, patch, width, layers, heads, int(config.intermediate_size), options)
        tower.model.load_state_dict(model.state_dict())
        return tower

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def stem(self, images: Tensor) -> Tensor:
        """Patches with positions, before the first layer: ``[B, 3, H, W]`` to ``[B, N, C]``."""
        return self._inner.embeddings(images)

    def patches(self, images: Tensor) -> Tensor:
        """Patches without positions: ``[B, 3, H, W]`` to ``[B, N, C]``, equal for equal patches wherever they are."""
        return self._inner.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)

    def layer(self, index: int) -> nn.Module:
        """The transformer layer of an index in [0, depth)."""
        return self._inner.encoder.layers[index]

    def run(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Layers ``start`` to ``stop - 1`` over ``[B, N, C]``."""
        for layer in self._inner.encoder.layers[start:stop]:
            hidden = layer(hidden, attention_mask=None)
        return hidden

    def pool(self, hidden: Tensor) -> Tensor:
        """Final norm and attention-pooling head: ``[B, N, C]`` to ``[B, C]``."""
        return self._inner.head(self._inner.post_layernorm(hidden))

    def freeze_pooling(self) -> None:
        """Take the final norm and the pooling head, which some users never run, out of training."""
        for name, part in self._inner.named_children():
            if name in ("post_layernorm", "head"):
                part.requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> VisionFeatures:
        """Features of ``[B, 3, H, W]`` images in [-1, 1]."""
        tokens = self.run(self.stem(images), 0, self.depth - 1)
        return VisionFeatures(tokens, self.pool(self.run(tokens, self.depth - 1, self.depth)))

    @property
    def _inner(self) -> Any:
        return getattr(self.model, "vision_model", self.model)


class TransformerEncoder(Encoder):
    """A vision tower as the encoder of a plain tokenizer: one feature per patch.

    Args:
        tower: the vision transformer; its pooling head is not used.
    """

    @register_to_config
    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower, self.dim, self.stride, self.grid = tower, tower.width, tower.patch_size, tower.grid
        tower.freeze_pooling()
        self.norm = nn.LayerNorm(tower.width)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, C, h, w]``."""
        hidden = self.norm(self.tower.run(self.tower.stem(images), 0, self.tower.depth))
        return hidden.transpose(1, 2).unflatten(2, (self.tower.grid, self.tower.grid))


class TransformerDecoder(Decoder):
    """Transformer layers over the cells, then every cell is unfolded to its pixels and smoothed across cell borders.

    Args:
        dim: width of the features it reads.
        grid: cells along one side.
        stride: pixels along one side of a cell.
        width: hidden size.
        layers: number of transformer layers.
        heads: attention heads.
        refine: channels of the two 3x3 convolutions over full-resolution pixels.
    """

    @register_to_config
    def __init__(
        self, dim: int, grid: int, stride: int, width: int = 192, layers: int = 4, heads: int = 6, refine: int = 16
    ) -> None:
        super().__init__()
        self.dim, self.stride, self.grid = dim, stride, grid
        config = SiglipVisionConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads)
        config._attn_implementation = "sdpa"
        self.stem = nn.Linear(dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(layers))
        self.unfold = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, refine * stride * stride))
        self.smooth = nn.Conv2d(refine, refine, 3, padding=1)
        self.last = nn.Conv2d(refine, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, dim, grid, grid]`` to ``[B, 3, grid * stride, grid * stride]``."""
        hidden = self.stem(features.flatten(2).transpose(1, 2)) + self.positions
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None)
        cells = self.unfold(hidden).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        pixels = F.pixel_shuffle(cells, self.stride)
        return self.last(pixels + F.gelu(self.smooth(pixels)))
