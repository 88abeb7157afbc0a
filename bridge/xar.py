"""xAR, models of classes that were released for ImageNet (https://arxiv.org/abs/2502.20388; OliverRensu/xAR).

Their latents are those of MAR's KL-16 autoencoder, times 0.2325.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..generation.xar import RecordedNoise, XARSampling, sample_latents
from ..lm.vocabulary import Vocabulary
from ..lm.xar import XAR
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill

#: Width of a released size (B, L, H) -> heads of its attention, and the steps and guidance that it is sampled with.
SIZES: Mapping[int, tuple[int, int, float]] = {
    768: (12, 40, 2.7),
    1024: (16, 50, 2.3),
    1280: (16, 50, 2.2),
}

#: Configuration of the released B for classes of ImageNet at 256 px.
C2I: Mapping[str, Any] = {
    "dim": 768,
    "heads": None,  # by width, see SIZES
    "encoder_depth": 8,
    "decoder_depth": 8,
    "latent_channels": 16,
    "latent_grid": 16,
    "cells_per_side": 2,
    "num_classes": 1000,
}


def class_model(config: Mapping[str, Any]) -> XAR:
    """An untrained model of a reference configuration; see :data:`C2I` for its fields.

    It knows no latent space: the fingerprint in its configuration is empty.

    Raises:
        ValueError: ``heads`` absent at a width that was not released.
    """
    width, grid = config["dim"], config["latent_grid"]
    if not config["heads"] and width not in SIZES:
        raise ValueError(
            f"xAR's models are {', '.join(map(str, SIZES))} channels wide, got {width}, which does not tell the number "
            "of heads; give heads"
        )
    heads, steps, guidance = SIZES.get(width, SIZES[768])
    return XAR.build(
        Vocabulary(),
        width=width,
        heads=config["heads"] or heads,
        encoder_layers=config["encoder_depth"],
        decoder_layers=config["decoder_depth"],
        channels=config["latent_channels"],
        grid=(grid, grid),
        entity={"kind": "cell", "side": grid // config["cells_per_side"]},
        classes=config["num_classes"],
        sampling={"steps": steps, "guidance": guidance},
    )


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a configuration that shapes of weights show; of those that are absent, none."""
    found: dict[str, Any] = {}
    if (leave := weights.get("pred.weight")) is not None and leave.ndim == 2:
        found["latent_channels"], found["dim"] = leave.shape
    if "class_emb.weight" in weights:
        found["num_classes"] = len(weights["class_emb.weight"]) - 1  # the last row stands for none
    for stack in ("encoder", "decoder"):
        blocks = [int(match[1]) for name in weights if (match := re.match(rf"{stack}_blocks\.(\d+)\.", name))]
        found |= {f"{stack}_depth": 1 + max(blocks)} if blocks else {}
    return found


def rules(model: XAR) -> list[Rule]:
    """Reference names of the whole model."""
    block: list[Rule] = [
        Copy(r"ada_lin\.1\.(weight|bias)", r"modulation.\1"),
        Copy(r"attn\.qkv\.(weight|bias)", r"attention.qkv.\1"),
        Copy(r"attn\.proj\.(weight|bias)", r"attention.leave.\1"),
        Copy(r"mlp\.fc1_g\.(weight|bias)", r"feed.gate.\1"),
        Copy(r"mlp\.fc1_x\.(weight|bias)", r"feed.value.\1"),
        Copy(r"mlp\.fc2\.(weight|bias)", r"feed.leave.\1"),
    ]
    return [
        Copy(r"class_emb\.weight", "condition.table.weight"),
        Copy(r"time_embed\.mlp\.0\.(weight|bias)", r"time.first.\1"),
        Copy(r"time_embed\.mlp\.2\.(weight|bias)", r"time.second.\1"),
        Copy(r"z_proj\.(weight|bias)", r"enter.\1"),
        Copy(r"z_proj_ln\.weight", "encoder.entry.weight"),
        Copy(r"(encoder|decoder)_pos_embed_learned", r"\1.positions", change=lambda table: table[0]),
        Under(r"(encoder|decoder)_blocks\.(\d+)\.", r"\1.blocks.\2.", block),
        Copy(r"(encoder|decoder)_norm\.weight", r"\1.norm.weight"),
        Copy(r"decoder_embed\.(weight|bias)", r"middle.\1"),
        Copy(r"pred\.(weight|bias)", r"leave.\1"),
        Drop(r"(.+\.)?freqs_(cos|sin)", "follows from the grid"),
    ]


def replay(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``xar`` files: cells, a training pass, and a run of the sampler with recorded noise."""
    config, inputs = golden.config, golden.inputs
    model = class_model(config).eval()
    fill(model, golden.weights, rules(model), golden.system)
    cells = model.entities.cut(inputs["latents"]).unflatten(1, inputs["noise"].shape[1:3])
    with torch.no_grad():
        flow = model(inputs["latents"], _wanted(model, inputs["class_ids"]), inputs["t"], inputs["noise"].flatten(1, 2))
    noise = RecordedNoise(inputs["sample.initial_noise"].unbind(1), inputs["sample.step_noise"].unbind(0))
    sampling = XARSampling(config["sample_steps"], config["cfg"])
    latents = sample_latents(model, _wanted(model, inputs["sample.class_ids"]), noise, sampling)
    return {
        "latent_cells": cells,
        "velocity": flow.velocity.view_as(cells),
        "loss": flow.loss,
        "sample.latents": latents,
    }


def _wanted(model: XAR, classes: Tensor) -> Sequence[int | None]:
    return [None if number == model.config.classes else number for number in classes.tolist()]
