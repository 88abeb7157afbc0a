"""Names of image towers: EVA-CLIP as LAVIS and LaVIT store it, DINOv2 as its own project does.

Targets are names inside a :class:`~smalti.tokenizers.vision.VisionTower`'s ``model``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tokenizers.vision import VisionTower
from .keymap import Constant, Copy, Drop, Join, Rule, Split, Under

_EVA_BLOCK: tuple[Rule, ...] = (
    Copy(r"norm([12])\.(weight|bias)", r"layer_norm\1.\2"),
    Copy(r"attn\.qkv\.weight", "self_attn.qkv.weight"),
    Join(r"attn\.(?P<part>q|v)_bias", "self_attn.qkv.bias", ("q", "k", "v"), zeros=("k",)),
    Copy(r"attn\.proj\.(weight|bias)", r"self_attn.projection.\1"),
    Copy(r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
)

_DINO_BLOCK: tuple[Rule, ...] = (
    Copy(r"norm([12])\.(weight|bias)", r"norm\1.\2"),
    Split(r"attn\.qkv\.(weight|bias)", r"attention.{part}_proj.\1", ("q", "k", "v")),
    Copy(r"attn\.proj\.(weight|bias)", r"attention.o_proj.\1"),
    Copy(r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
    Copy(r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
)

_UNREAD = "hidden states are read before it"


def eva_rules(tower: VisionTower) -> list[Rule]:
    """EVA-CLIP's names (https://arxiv.org/abs/2211.07636) into a tower of kind ``blip2``.

    BLIP-2 runs 39 of the 40 layers, so the file it starts from may hold one more (its contents are not documented; what
    LAVIS loads from it, it does not check).
    """
    return [
        Copy("cls_token", "embeddings.class_embedding"),
        Copy("pos_embed", "embeddings.position_embedding"),
        Copy(r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
        Drop(rf"blocks\.{tower.depth}\..+", _UNREAD),
        Under(r"blocks\.(\d+)\.", r"encoder.layers.\1.", _EVA_BLOCK),
        Drop(r"(?:fc_norm|head)\.(?:weight|bias)", _UNREAD),
    ]


def unused_norm(prefix: str) -> list[Rule]:
    """Our tower's final norm where the release has none: it then only brings features to unit scale."""
    return [
        Constant(rf"{prefix}post_layernorm\.weight", 1.0, "only the pooled features pass it"),
        Constant(rf"{prefix}post_layernorm\.bias", 0.0, "only the pooled features pass it"),
    ]


def dino_rules(tower: VisionTower) -> list[Rule]:
    """DINOv2's own names (https://arxiv.org/abs/2304.07193) into a tower of kind ``dinov2``.

    Positions are stored for 518 pixels and resized in every pass there; here once, for the tower's image size.
    """
    return [
        Copy("cls_token", "embeddings.cls_token"),
        Copy("mask_token", "embeddings.mask_token"),
        Copy("pos_embed", "embeddings.position_embeddings", change=partial(resize_positions, grid=tower.grid)),
        Copy(r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
        Under(r"blocks\.(\d+)\.", r"encoder.layer.\1.", _DINO_BLOCK),
        Copy(r"norm\.(weight|bias)", r"layernorm.\1"),
    ]


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Positions ``[1, 1 + M * M, C]`` of a class token and a square of patches to ``[1, 1 + grid * grid, C]``.

    Bicubic, at steps of ``M / (grid + 0.1)`` as DINOv2 takes them, which is not quite the square's whole side.
    """
    token, cells = positions[:, :1], positions[:, 1:]
    side = round(cells.shape[1] ** 0.5)
    if side == grid or side * side != cells.shape[1]:  # what is not a square is refused by its shape
        return positions
    square = cells.transpose(1, 2).unflatten(2, (side, side))
    scale = (grid + 0.1) / side
    resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], dim=1)
