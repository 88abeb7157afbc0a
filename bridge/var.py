"""VAR, next-scale prediction of classes (https://arxiv.org/abs/2404.02905; FoundationVision/VAR, MIT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..generation.var import guided, write_scales
from ..lm.var import VAR, scale_slices
from ..tokenizers.blended import VARQuantizer
from ..tokenizers.codes import CodeLayout, CodeSpec
from ..tokenizers.learned import GradientQuantizer
from .golden import Golden
from .keymap import Copy, Drop, Rule, Split, Under, fill

#: Configuration of the released VAR-d16 for ImageNet at 256 px; the others have other depths, ``dim`` 64 times as large
#: and as many heads as blocks.
VAR_D16: Mapping[str, Any] = {
    "patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "vocab_size": 4096,
    "code_channels": 32,
    "dim": 1024,
    "heads": 16,
    "depth": 16,
    "mlp_ratio": 4,
    "num_classes": 1000,
    "phi_count": 4,
    "phi_ratio": 0.5,
}

#: Field of a configuration -> a weight that shows it: its name and the dimension.
_SHOWN: Mapping[str, tuple[str, int]] = {
    "vocab_size": ("head.weight", 0),
    "code_channels": ("word_embed.weight", 1),
    "dim": ("word_embed.weight", 0),
    "heads": ("blocks.0.attn.scale_mul_1H11", 1),
    "num_classes": ("class_emb.weight", 0),
}

#: Parts of the tokenizer that make codes of pixels and pixels of codes.
_PIXELS = r"(encoder|decoder|quant_conv|post_quant_conv)\..+"

_BLOCK: tuple[Rule, ...] = (
    Split(r"attn\.mat_qkv\.weight", "attention.{part}.weight", ("query", "key", "value")),
    Copy(r"attn\.q_bias", "attention.query.bias"),
    Copy(r"attn\.v_bias", "attention.value.bias"),
    Drop(r"attn\.zero_k_bias", "keys have no bias", zero=True),
    Copy(r"attn\.scale_mul_1H11", "attention.scale", change=torch.flatten),
    Copy(r"attn\.proj\.(weight|bias)", r"attention.out.\1"),
    Copy(r"ffn\.fc1\.(weight|bias)", r"mlp.0.\1"),
    Copy(r"ffn\.fc2\.(weight|bias)", r"mlp.2.\1"),
)


def model(config: Mapping[str, Any]) -> VAR:
    """An untrained model of a reference configuration; see :data:`VAR_D16` for its fields.

    It knows no tokenizer: the fingerprint in its configuration is empty.
    """
    inner = GradientQuantizer(config["code_channels"], config["vocab_size"])
    sides = list(config["patch_nums"])
    quantizer = VARQuantizer(inner, sides, convolutions=config["phi_count"], ratio=config["phi_ratio"])
    spec = CodeSpec(CodeLayout("scales", tuple(sides)), quantizer.codebooks("pixel"))
    return VAR.build(
        quantizer,
        spec,
        classes=config["num_classes"],
        width=config["dim"],
        depth=config["depth"],
        heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
    )


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a configuration that weights show; of those that are absent, none."""
    sizes = {field: weights[name].shape[dim : dim + 1] for field, (name, dim) in _SHOWN.items() if name in weights}
    found: dict[str, Any] = {field: size[0] for field, size in sizes.items() if size}
    if "num_classes" in found:
        found["num_classes"] -= 1  # the last row stands for none
    for field, pattern in (("depth", r"blocks\.(\d+)\."), ("phi_count", r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")):
        numbers = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
        found |= {field: 1 + max(numbers)} if numbers else {}
    sides = _sides(weights["lvl_1L"].flatten().tolist()) if "lvl_1L" in weights else ()
    return found | ({"patch_nums": sides} if sides else {})


def with_quantizer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer and of its tokenizer's quantizer, which the release keeps in another file.

    Raises:
        ValueError: no quantizer.
    """
    if not any(name.startswith("quantize.") for name in weights):
        raise ValueError(
            "VAR reads codes through the quantizer of its tokenizer, got weights of the transformer alone; name the "
            "tokenizer's file, vae_ch160v4096z32.pth, beside it"
        )
    return {name: weight for name, weight in weights.items() if not re.fullmatch(_PIXELS, name)}


def rules(model: VAR) -> list[Rule]:
    """Reference names of the whole model, and of the quantizer, which the release keeps with its tokenizer."""
    width = model.config.width
    modulation = Split(r"ada_lin\.1\.(weight|bias)", r"{part}.\1", ("gates", "affine"), (2 * width, 4 * width))
    return [
        Copy(r"class_emb\.weight", "conditions.table.weight"),
        Copy("pos_start", "start", change=_first),
        Copy("pos_1LC", "places", change=_first),
        Copy(r"lvl_embed\.weight", "levels"),
        Copy(r"word_embed\.(weight|bias)", r"read.\1"),
        Under(r"blocks\.(\d+)\.", r"blocks.\1.", (*_BLOCK, modulation)),
        Copy(r"head_nm\.ada_lin\.1\.(weight|bias)", r"last_affine.\1"),
        Copy(r"head\.(weight|bias)", r"head.\1"),
        Copy(r"quantize\.embedding\.weight", "quantizer.quantizer.table"),
        Copy(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.(weight|bias)", r"quantizer.convolutions.\1.conv.\2"),
        Drop(r"quantize\.ema_vocab_hit_SV", "counts how often codes were drawn"),
        Drop("lvl_1L|attn_bias_for_masking", "follows from the sizes of the scales"),
    ]


@torch.no_grad()
def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``var`` files.

    Tokens come from scale-by-scale decoding with cached keys and values; the logits beside them are those of one pass
    over the tokens just written, for both branches.
    """
    rebuilt = model(golden.config).eval()
    fill(rebuilt, golden.weights, rules(rebuilt), golden.system)
    classes: list[int] = golden.inputs["class_ids"].tolist()
    nothing, given = [None] * len(classes), golden.inputs["tokens"][..., None]
    guidance, generators = float(golden.config["cfg"]), [torch.Generator() for _ in classes]
    ids = write_scales(rebuilt, classes, generators, guidance=guidance, temperature=0.0).ids
    conditional, free = rebuilt(ids, classes), rebuilt(ids, nothing)
    scales = scale_slices(rebuilt.sides)
    led = [guided(conditional[:, at], free[:, at], guidance, k, len(scales)) for k, at in enumerate(scales)]
    side = rebuilt.sides[-1]
    return {
        "input_features": rebuilt.quantizer.inputs(given),
        "logits": rebuilt(given, classes),
        "logits_null": rebuilt(given, nothing),
        "greedy_cfg.tokens": ids[..., 0],
        "greedy_cfg.logits": torch.cat(led, dim=1),
        "greedy_cfg.f_hat": rebuilt.quantizer.lookup(ids).transpose(1, 2).unflatten(2, (side, side)),
    }


def _sides(levels: Sequence[int]) -> tuple[int, ...]:
    """Of the scales, where every position has the number of its own; none where they are no squares."""
    counts = [len(list(same)) for _, same in groupby(levels)]
    sides = tuple(isqrt(count) for count in counts)
    return sides if [side * side for side in sides] == counts else ()


def _first(rows: Tensor) -> Tensor:
    return rows[0]
