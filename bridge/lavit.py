"""LaVIT's dynamic tokenizer (https://arxiv.org/abs/2309.04669; jy0205/LaVIT, LaVIT Community License).

In the folder ``visual_tokenizer`` of a release, ``tokenizer_encoder.bin`` holds the tokenizer and
``eva_vitg_psz14.bin`` the image tower; the release does not check what it finds in the first, which may hold the tower
too. The diffusion model reads what ``highres_tokenizer_decoder.bin`` (or ``tokenizer_decoder.bin``) makes of the codes,
a third file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.attention import bottleneck
from ..tokenizers.features import FeatureReader
from ..tokenizers.lavit import LavitTokenizer
from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.merging import TokenMerger, TokenSelector
from ..tokenizers.vision import VisionTower
from .golden import Golden
from .keymap import Copy, Drop, Rule, Split, Under, fill
from .vision import eva_rules

_BLOCK: tuple[Rule, ...] = (
    Copy(r"norm([012])\.(weight|bias)", lambda match: f"norm_{('kept', 'dropped', 'mlp')[int(match[1])]}.{match[2]}"),
    Split(r"token_causal_attn\.qkv\.(weight|bias)", r"kept.{part}.\1", ("query", "key", "value")),
    Copy(r"token_causal_attn\.proj\.(weight|bias)", r"kept_out.\1"),
    Copy(r"token_cross_attn\.(query|key|value)\.(weight|bias)", r"dropped.\1.\2"),
    Copy(r"token_cross_attn\.proj\.(weight|bias)", r"dropped_out.\1"),
    Copy(r"mlp\.fc1\.(weight|bias)", r"mlp.0.\1"),
    Copy(r"mlp\.fc2\.(weight|bias)", r"mlp.2.\1"),
)

#: Selector, merger and code book, without the image tower.
TOKENIZER: tuple[Rule, ...] = (
    Copy(r"token_predictor\.in_conv\.(\d)\.(weight|bias)", r"selector.local.\1.\2"),
    Copy(r"token_predictor\.out_conv\.(\d)\.(weight|bias)", r"selector.judge.\1.\2"),
    Copy(r"causal_encoder\.ln_vision\.(weight|bias)", r"merger.norm_in.\1"),
    Copy(r"causal_encoder\.norm\.(weight|bias)", r"merger.norm_out.\1"),
    Under(r"causal_encoder\.blocks\.(\d+)\.", r"merger.blocks.\1.", _BLOCK),
    Copy(r"encode_task_layer\.(\d)\.(weight|bias)", r"down.\1.\2"),
    Copy(r"quantize\.embedding\.weight", "quantizer.table"),
)

_FEATURE_LAYER: tuple[Rule, ...] = (
    Copy(r"norm([012])\.(weight|bias)", lambda match: f"norm_{('among', 'read', 'mlp')[int(match[1])]}.{match[2]}"),
    Split(r"self_attn\.qkv\.(weight|bias)", r"among.{part}.\1", ("query", "key", "value")),
    Copy(r"self_attn\.proj\.(weight|bias)", r"among_out.\1"),
    Copy(r"cross_attn\.(query|key|value)\.(weight|bias)", r"read.\1.\2"),
    Copy(r"cross_attn\.proj\.(weight|bias)", r"read_out.\1"),
    Copy(r"mlp\.fc1\.(weight|bias)", r"mlp.0.\1"),
    Copy(r"mlp\.fc2\.(weight|bias)", r"mlp.2.\1"),
)

#: The decoder of codes.
FEATURES: tuple[Rule, ...] = (
    Copy(r"in_proj\.(weight|bias)", r"stem.\1"),
    Copy("pos_embed", "places"),
    Copy("query_embed", "cells"),
    Under(r"blocks\.(\d+)\.", r"layers.\1.", _FEATURE_LAYER),
    Copy(r"norm\.(weight|bias)", r"norm.\1"),
    Copy(r"decode_task_layer\.(\d)\.(weight|bias)", r"out.\1.\2"),
    Drop(r"unet_(?:proj|proj_1|proj_2|attnpool)\..+", "of the diffusion model"),
)

#: The released tokenizer. ``encoder_*`` describe its EVA-CLIP-g; ``selection`` and ``softmax_eps`` are those of
#: :class:`~smalti.tokenizers.lavit.LavitTokenizer`, whose release draws what it keeps (``drawn``); ``decoder_layers`` 0
#: leaves the decoder of codes out, for those who have not its file.
LAVIT: Mapping[str, Any] = {
    "img_size": 224,
    "patch_size": 14,
    "width": 1408,
    "encoder_layers": 40,
    "encoder_heads": 16,
    "layers": 12,
    "decoder_layers": 12,
    "heads": 16,
    "mlp_ratio": 4.3637,
    "n_code": 16384,
    "code_dim": 32,
    "selection": "likely",
    "softmax_eps": 1e-6,
}


def tokenizer(config: Mapping[str, Any]) -> LavitTokenizer:
    """An untrained tokenizer of the fields of :data:`LAVIT`; without pixels, as released."""
    mlp_width = int(config["width"] * config["mlp_ratio"])
    sizes = (config[name] for name in ("img_size", "patch_size", "width", "encoder_layers", "encoder_heads"))
    tower, layers = VisionTower(*sizes, mlp_width=mlp_width, kind="blip2"), config["decoder_layers"]
    shape = (config["code_dim"], tower.width, tower.grid, layers, config["heads"], mlp_width)
    return LavitTokenizer(
        tower,
        GradientQuantizer(config["code_dim"], config["n_code"]),
        FeatureReader(*shape) if layers else None,
        layers=config["layers"],
        heads=config["heads"],
        selection=config["selection"],
        leak=config["softmax_eps"],
        freeze_encoder=True,
        mlp_width=mlp_width,
    )


def rules(module: LavitTokenizer) -> list[Rule]:
    """Names of both released files, the tower's with their prefix."""
    tower = module.encoder
    assert isinstance(tower, VisionTower)
    norm = Copy(r"norm\.(weight|bias)", r"post_layernorm.\1")
    return [
        Under(r"encoder\.", "encoder.model.", [norm, *eva_rules(tower)]),
        *TOKENIZER,
        *([Under(r"decoder\.", "reader.", FEATURES)] if module.reader is not None else []),
        Drop(r"vit_proj\.(?:weight|bias)", "hands continuous features to the language model"),
    ]


def parts(config: Mapping[str, Any], leak: float) -> nn.ModuleDict:
    """Untrained parts of a reference configuration."""
    width = config["width"]
    merger = TokenMerger(
        width, config["layers"], config["heads"], int(width * config["mlp_ratio"]), config["norm_eps"], leak
    )
    return nn.ModuleDict(
        {
            "selector": TokenSelector(width, config["predictor_dim"], config["norm_eps"]),
            "merger": merger,
            "down": bottleneck(width, width, config["code_dim"]),
            "quantizer": GradientQuantizer(config["code_dim"], config["n_code"]),
        }
    ).eval()


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``lavit_tok`` files: the released softmax, and the exact mask beside it."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    patches, keep = inputs["features"], inputs["keep"].bool()
    released, exact = parts(config, config["softmax_eps"]), parts(config, 0.0)
    for built in (released, exact):
        fill(built, weights, TOKENIZER, "lavit_tok")
    quantizer = released["quantizer"]
    assert isinstance(quantizer, GradientQuantizer)
    merged = released["merger"](patches, keep)
    down = released["down"](merged[keep])
    ids = quantizer(F.normalize(down, dim=-1)[None]).ids
    return {
        "predictor_logprob": released["selector"](patches),
        "merged": merged,
        "merged_exact_mask": exact["merger"](patches, keep),
        "kept": merged[keep],
        "token_counts": keep.sum(1),
        "down": down,
        "indices": ids.flatten(),
        "zq": quantizer.lookup(ids)[0],
    }
