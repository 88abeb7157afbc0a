"""ViTamin's names (https://arxiv.org/abs/2404.02132), as timm gives them and UniTok's decoder goes on with them."""

from __future__ import annotations

import re

from .keymap import Copy, Rule, Under
from .maps import PRE_NORM_BLOCK

_PARTS = {"pre_norm": "norm", "conv1_1x1": "expand", "conv2_kxk": "depthwise", "conv3_1x1": "project"}
_GATED = ("gate", "up", "down")


def _linear(match: re.Match[str]) -> str:
    return f"mlp.{_GATED[int(match[1])]}.{match[2]}"


def _part(match: re.Match[str]) -> str:
    return f"{_PARTS[match[1]]}.{match[2]}"


#: A transformer layer with a gated feed-forward layer.
GATED_BLOCK: tuple[Rule, ...] = (
    Copy(r"mlp\.norm\.(weight|bias)", r"mlp.norm.\1"),
    Copy(r"mlp\.w([012])\.(weight|bias)", _linear),
    *PRE_NORM_BLOCK,
)

#: An inverted residual block that keeps, halves or doubles the sides.
INVERTED_RESIDUAL: tuple[Rule, ...] = (
    Copy(rf"({'|'.join(_PARTS)})\.(weight|bias)", _part),
    Copy(r"shortcut\.(?:expand|conv)\.(weight|bias)", r"skip.1.\1"),
    Copy(r"up\.conv\.(weight|bias)", r"enlarge.1.\1"),
)

#: Stem, stages and transformer layers: the whole of a tower, and an encoder but for its last norm.
TRUNK: tuple[Rule, ...] = (
    Copy(r"patch_embed\.backbone\.stem\.conv1\.(weight|bias)", r"stages.stem.0.\1"),
    Copy(r"patch_embed\.backbone\.stem\.norm1\.(weight|bias)", r"stages.stem.1.\1"),
    Copy(r"patch_embed\.backbone\.stem\.conv2\.(weight|bias)", r"stages.stem.3.\1"),
    Under(r"patch_embed\.backbone\.stages\.(\d+)\.(\d+)\.", r"stages.stages.\1.\2.", INVERTED_RESIDUAL),
    Copy(r"patch_embed\.backbone\.pool\.norm\.(weight|bias)", r"stages.norm.\1"),
    Copy(r"patch_embed\.backbone\.pool\.proj\.(weight|bias)", r"stages.last.\1"),
    Under(r"blocks\.(\d+)\.", r"layers.\1.", GATED_BLOCK),
)

_NORM = Copy(r"norm\.(weight|bias)", r"norm.\1")

#: The encoder.
ENCODER: tuple[Rule, ...] = (*TRUNK, _NORM)

#: The decoder; its convolutions are ``up_conv1`` to ``up_conv4``, of which the two in the middle are stages.
DECODER: tuple[Rule, ...] = (
    Under(r"blocks\.(\d+)\.", r"layers.\1.", GATED_BLOCK),
    _NORM,
    Copy(r"up_conv1\.conv\.(weight|bias)", r"stages.0.1.\1"),
    Under(r"up_conv2\.(\d+)\.", r"stages.1.\1.", INVERTED_RESIDUAL),
    Under(r"up_conv3\.(\d+)\.", r"stages.2.\1.", INVERTED_RESIDUAL),
    Copy(r"up_conv4\.conv1\.conv\.(weight|bias)", r"unstem.0.1.\1"),
    Copy(r"up_conv4\.norm1\.(weight|bias)", r"unstem.1.\1"),
    Copy(r"up_conv4\.conv2\.(weight|bias)", r"last.\1"),
)
