"""Vision transformers of ``transformers`` run layer by layer, and a transformer pixel decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from .anatomy import ANATOMIES, Anatomy, Kind, kind_of, load, load_projection, statistics
from .convolutional import Decoder, Encoder
from .towers import Tower


class VisionTower(Tower):
    """A vision encoder from ``transformers``, opened up so that hidden states can be read and replaced.

    ============================= ============================================================= ===================
    kind                          model                                                         pooled features
    ============================= ============================================================= ===================
    ``siglip``                    SigLIP (https://arxiv.org/abs/2303.15343)                     attention pooling
    ``clip``                      CLIP (https://arxiv.org/abs/2103.00020)                       normed class token
    ``dinov2``                    DINOv2 (https://arxiv.org/abs/2304.07193)                     normed class token
    ``dinov2_with_registers``     the same with registers (https://arxiv.org/abs/2309.16588)    normed class token
    ``blip2``                     EVA-CLIP ViT-g of BLIP-2 (https://arxiv.org/abs/2301.12597)   normed class token
    ``vit``                       ViT (https://arxiv.org/abs/2010.11929), without its pooler    normed class token
    ============================= ============================================================= ===================

    ``transformers`` norms the pooled class token of ``blip2`` a second time; here it is normed once, as everywhere.

    Args:
        image_size: side of the square images, pixels.
        patch_size: side of a patch, pixels.
        width: C, hidden size.
        layers: number of transformer layers.
        heads: attention heads.
        mlp_width: hidden size of the feed-forward layers; four times ``width`` by default.
        options: further fields of the model's configuration class.
        kind: see above. ``blip2`` as published is 224 pixels, patch 14, width 1408, 39 layers, 16 heads, mlp 6144.
        mean: per channel, of pixels in [0, 1], subtracted before the first layer; the kind's published one by default:
            0.5 for ``siglip`` and ``vit``, CLIP's for ``clip`` and ``blip2``, ImageNet's for both DINOv2.
        std: per channel, of pixels in [0, 1], divided by; the kind's published one by default.
        projection: width of the space shared with texts that pooled features are brought to, as CLIP's are; none by
            default.

    Raises:
        ValueError: a kind that is none of these, sizes that it cannot have, or statistics that are not those of three
            channels.
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
        kind: Kind = "siglip",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        projection: int = 0,
    ) -> None:
        super().__init__()
        if kind not in ANATOMIES:
            raise ValueError(f"kind must be one of {', '.join(ANATOMIES)}, got {kind!r}; use one of those")
        self.image_size, self.patch_size, self.width, self.depth = image_size, patch_size, width, layers
        self.kind: Kind = kind
        anatomy = self.anatomy
        published_mean, published_std = anatomy.statistics
        self.mean, self.std = tuple(mean or published_mean), tuple(std or published_std)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must be three numbers, std above 0, got {self.mean} and {self.std}; leave them out for "
                "those the kind was published with"
            )
        config = anatomy.config(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            **anatomy.sizes(width, mlp_width or 4 * width),
            **(options or {}),
        )
        self.prefix = int(anatomy.prefixed) + int(getattr(config, "num_register_tokens", 0))
        self.model = anatomy.model(config, **anatomy.arguments)
        self.projection = nn.Linear(width, projection, bias=False) if projection else None
        for name, weight in self._inner.named_parameters():
            if name in anatomy.idle:
                weight.requires_grad_(requires_grad=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: str, projected: bool = False) -> VisionTower:
        """A tower with the weights of a checkpoint: a local folder or a hub id.

        Of a SigLIP, CLIP or BLIP-2 with a text side the vision model is taken. Mean and standard deviation are those of
        the checkpoint's ``preprocessor_config.json``, or the kind's published ones where it has none.

        Args:
            checkpoint: where it is.
            projected: bring pooled features to the space shared with texts: CLIP's image embedding.

        Raises:
            ValueError: a checkpoint of no known kind, one that lacks weights of its vision model, or no CLIP that is to
                be projected.
        """
        kind = kind_of(str(AutoConfig.from_pretrained(checkpoint).model_type), checkpoint)
        anatomy, model = ANATOMIES[kind], load(kind, checkpoint)
        config = model.config
        named = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        size, patch, width, layers, heads = (int(getattr(config, name)) for name in named)
        mlp_width = int(width * config.mlp_ratio if anatomy.ratio else config.intermediate_size)
        options = {name: getattr(config, name) for name in anatomy.options}
        mean, std = (
            None if list(stated) == list(published) else stated
            for stated, published in zip(statistics(checkpoint) or anatomy.statistics, anatomy.statistics, strict=True)
        )
        shared = load_projection(kind, checkpoint) if projected else None
        dim = 0 if shared is None else len(shared)
        tower = cls(size, patch, width, layers, heads, mlp_width, options, kind, mean, std, dim)
        tower.model.load_state_dict(model.state_dict())
        if tower.projection is not None and shared is not None:
            tower.projection.load_state_dict({"weight": shared})
        return tower

    def stem(self, images: Tensor) -> Tensor:
        """See :meth:`Tower.stem`; class token and registers first."""
        hidden = self._inner.embeddings(self._normalized(images))
        return hidden if self.anatomy.first is None else self._part(self.anatomy.first)(hidden)

    def patches(self, images: Tensor) -> Tensor:
        """See :meth:`Tower.patches`."""
        return self._part(self.anatomy.patch)(self._normalized(images)).flatten(2).transpose(1, 2)

    def layer(self, index: int) -> nn.Module:
        """See :meth:`Tower.layer`."""
        return self._part(self.anatomy.layers)[index]

    def run(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """See :meth:`Tower.run`."""
        for layer in self._part(self.anatomy.layers)[start:stop]:
            hidden = layer(hidden, **self.anatomy.call)
        return hidden

    def norm(self, hidden: Tensor) -> Tensor:
        """See :meth:`Tower.norm`."""
        return self._part(self.anatomy.norm)(hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        """See :meth:`Tower.pool`; the final norm, then the pooling head or the class token, then the projection."""
        normed = self.norm(hidden)
        pooled = normed[:, 0] if self.anatomy.head is None else self._part(self.anatomy.head)(normed)
        return pooled if self.projection is None else self.projection(pooled)

    def freeze_pooling(self) -> None:
        """See :meth:`Tower.freeze_pooling`; the final norm, the pooling head and the projection."""
        if self.projection is not None:
            self.projection.requires_grad_(requires_grad=False)
        for name, part in self._inner.named_children():
            if name in (self.anatomy.norm, self.anatomy.head):
                part.requires_grad_(requires_grad=False)

    def _normalized(self, images: Tensor) -> Tensor:
        if set(self.mean) == set(self.std) == {0.5}:
            return images  # in [-1, 1] as they come
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (0.5 * images + 0.5 - mean) / std

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of the model are."""
        return ANATOMIES[self.kind]

    @property
    def _inner(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    def _part(self, path: str) -> Any:
        return self._inner.get_submodule(path)


class TransformerEncoder(Encoder):
    """A vision tower as the encoder of a plain tokenizer: one feature per patch.

    Args:
        tower: the vision transformer; its pooling head is not used.
    """

    @register_to_config
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower, self.dim, self.stride, self.grid = tower, tower.width, tower.patch_size, tower.grid
        tower.freeze_pooling()
        self.norm = nn.LayerNorm(tower.width)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, C, h, w]``."""
        hidden = self.norm(self.tower.on_grid(self.tower.run(self.tower.stem(images), 0, self.tower.depth)))
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
