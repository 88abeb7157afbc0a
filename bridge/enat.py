"""ENAT's networks of masked prediction (https://arxiv.org/abs/2411.06959; LeapLabTHU/ENAT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..lm.enat import ENAT, Pass
from ..tokenizers.codes import Codebook, CodeLayout, CodeSpec
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill

#: Configuration of ENAT-B for classes of ImageNet at 256 px; at 512 px ``grid`` is 32.
B: Mapping[str, Any] = {
    "grid": 16,
    "codebook_size": 1024,
    "num_classes": 1000,
    "dim": 768,
    "heads": 8,
    "encoder_blocks": 15,
    "decoder_blocks": 1,
}
S: Mapping[str, Any] = {**B, "dim": 366, "heads": 6}  #: ENAT-S
L: Mapping[str, Any] = {**B, "dim": 1024, "heads": 16, "encoder_blocks": 22, "decoder_blocks": 2}  #: ENAT-L

#: Configuration of a checkpoint whose weights show its size: one of the above by width.
RELEASED: Mapping[str, Any] = {**B, "heads": None}

#: Field of a configuration -> a weight that shows it: its name and the dimension.
_SHOWN: Mapping[str, tuple[str, int]] = {
    "codebook_size": ("x_embedder.word_embeddings.weight", 0),
    "dim": ("x_embedder.word_embeddings.weight", 1),
    "grid": ("x_embedder.position_embeddings.weight", 0),
    "num_classes": ("y_embedder.embedding_table.weight", 0),
}

#: Side of the grid -> fields of its published sampling that are not the defaults.
_SAMPLING: Mapping[int, Mapping[str, float]] = {32: {"guidance": 3.5, "sampling_temperature": 4.0}}

#: Width -> published size.
_SIZES: Mapping[int, Mapping[str, Any]] = {size["dim"]: size for size in (S, B, L)}


def build(config: Mapping[str, Any]) -> ENAT:
    """An untrained model of a reference configuration; see :data:`B` for its fields.

    It knows no tokenizer: the fingerprint in its configuration is empty.

    Raises:
        ValueError: ``heads`` absent at a width that was not published.
    """
    width = config["dim"]
    if not config["heads"] and width not in _SIZES:
        raise ValueError(
            f"ENAT's models are {', '.join(map(str, _SIZES))} channels wide, got {width}, which does not tell the "
            "number of heads; give heads, and encoder_blocks and decoder_blocks"
        )
    layout = CodeLayout("grid", (config["grid"], config["grid"]))
    return ENAT.build(
        CodeSpec(layout, (Codebook("pixel", config["codebook_size"]),)),
        "",
        classes=config["num_classes"],
        width=width,
        heads=config["heads"] or _SIZES[width]["heads"],
        encoder_blocks=config["encoder_blocks"],
        decoder_blocks=config["decoder_blocks"],
        sampling=dict(_SAMPLING.get(config["grid"], {})),
    )


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a configuration that weights show; of those that are absent, none.

    Blocks of the encoder and of the decoder are one list and alike: where the first ends is known of published widths.
    """
    sizes = {field: weights[name].shape[dim : dim + 1] for field, (name, dim) in _SHOWN.items() if name in weights}
    found = {field: size[0] for field, size in sizes.items() if size}
    found |= {field: found[field] - 1 for field in ("codebook_size", "num_classes") if field in found}  # mask and none
    found |= {"grid": isqrt(found["grid"])} if "grid" in found else {}
    blocks = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    if blocks and found.get("dim") in _SIZES:
        found["decoder_blocks"] = _SIZES[found["dim"]]["decoder_blocks"]
        found["encoder_blocks"] = 1 + max(blocks) - found["decoder_blocks"]
    return found


def rules(model: ENAT) -> list[Rule]:
    """Reference names of the whole model, whose encoder and decoder are one list of blocks there."""
    encoder = model.config.encoder_blocks

    def block(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"encoder.{number}." if number < encoder else f"decoder.{number - encoder}."

    mlp: list[Rule] = [Copy(r"fc1\.(\w+)", r"0.\1"), Copy(r"fc2\.(\w+)", r"2.\1")]
    parts: list[Rule] = [
        Copy(r"adaLN_modulation\.1\.(\w+)", r"modulation.\1"),
        Copy(r"attn\.q\.(\w+)", r"query.\1"),
        Copy(r"attn\.kv\.A\.(\w+)", r"context.\1"),
        Copy(r"attn\.kv\.B\.(\w+)", r"own.\1"),
        Copy(r"attn\.proj\.(\w+)", r"out.\1"),
        Under(r"mlp\.", "mlp.", mlp),
    ]
    return [
        Copy(r"x_embedder\.word_embeddings\.weight", "words.0.weight"),
        Copy(r"x_embedder\.position_embeddings\.weight", "places.weight"),
        Drop(r"x_embedder\.position_ids", "counts the positions"),
        Copy(r"x_embedder\.LayerNorm\.(\w+)", r"entry.0.\1"),
        Copy(r"y_embedder\.embedding_table\.weight", "conditions.table.weight"),
        Drop(r"prev_embedder\.fc[12]\.(weight|bias)", "the reference never calls it"),
        Copy(r"prev_proj\.norm\.(\w+)", r"renewal.norm.\1"),
        Under(r"prev_proj\.mlp\.", "renewal.mlp.", mlp),
        Under(r"blocks\.(\d+)\.", block, parts),
        Copy(r"norm\.(\w+)", r"norm.\1"),
        Copy(r"mlm_layer\.fc\.(\w+)", r"head.0.\1"),
        Copy(r"mlm_layer\.ln\.(\w+)", r"head.2.\1"),
        Copy(r"mlm_layer\.bias", "biases.0", change=_of_codes),
    ]


@torch.no_grad()
def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``enat`` files: growing visible sets, each alone (``plain``) and after the one before (``reuse``)."""
    model = build(golden.config).eval()
    fill(model, golden.weights, rules(model), golden.system)
    classes: Sequence[int] = golden.inputs["class_ids"].tolist()
    given, nothing = model.conditions(classes), model.conditions([None] * len(classes))
    grids = [golden.inputs[f"ids{step}"] for step in range(len(golden.config["visible_per_step"]))]
    found, shown = dict[str, Tensor](), [grid != golden.config["mask_id"] for grid in grids]
    earlier, before = None, torch.zeros_like(shown[0])
    for step, (grid, visible) in enumerate(zip(grids, shown, strict=True)):
        alone = model(grid[..., None], _places(visible), given)
        earlier = model(grid[..., None], _places(visible & ~before), given, earlier)
        found |= _outputs(f"plain{step}", model, alone) | _outputs(f"reuse{step}", model, earlier)
        before = visible
    return found | _outputs("plain_null", model, model(grids[-1][..., None], _places(shown[-1]), nothing))


def _outputs(name: str, model: ENAT, found: Pass) -> dict[str, Tensor]:
    return {f"{name}.feat": found.features, f"{name}.logits": model.logits(found.features)[0]}


def _of_codes(bias: Tensor) -> Tensor:
    """``[K]`` of ``[1, 1, K + 1]``: the mask itself is never predicted."""
    return bias[0, 0, :-1]


def _places(chosen: Tensor) -> Tensor:
    """``[B, M]`` of ``[B, N]`` bool with M true in every row."""
    return chosen.nonzero()[:, 1].view(len(chosen), -1)
