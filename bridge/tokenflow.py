"""TokenFlow's quantizers (https://arxiv.org/abs/2412.03069; ByteVisionLab/TokenFlow, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.scales import MultiScaleQuantizer
from ..tokenizers.tokenflow import SharedMappingQuantizer, unit_parts
from .golden import Golden
from .keymap import Join, Rule, Under, fill
from .tensors import gradients, of_map, term, to_map

#: Both tables of the shared mapping, semantic first.
TABLES: tuple[Rule, ...] = (Join(r"embedding_(?P<part>vqkd|vqgan)\.weight", "table", ("vqkd", "vqgan"), dim=1),)


def shared_mapping(config: Mapping[str, Any]) -> SharedMappingQuantizer:
    """An untrained quantizer of a reference configuration."""
    if not config["l2_norm"]:
        raise ValueError("TokenFlow's quantizer needs l2_norm true, got false, which its own code cannot run either")
    return SharedMappingQuantizer(
        *config["split"], config["n_e"], commitment=config["beta"], entropy=config["entropy_loss_ratio"]
    )


def replay_vq(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``tokenflow_vq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    quantizer = shared_mapping(config).eval()
    fill(quantizer, weights, TABLES, "tokenflow_vq")
    features, shape = of_map(inputs["features"]), inputs["features"].shape[2:]
    quantized = quantizer(features)
    entry = quantizer.lookup(quantized.ids)
    learning = features.clone().requires_grad_()
    in_training = quantizer.train()(learning)
    pull = (in_training.latents * of_map(inputs["cotangent"])).mean()
    to_features, to_table = gradients(in_training.loss + pull, learning, quantizer.table)
    inputs_by_part, rows_by_part = (unit_parts(vectors, quantizer.widths) for vectors in (features, quantizer.table))
    spread = [_spread(*pair) for pair in zip(inputs_by_part, rows_by_part, strict=True)]
    return {
        "indices": quantized.ids.flatten(),
        "zq": to_map(quantized.latents, shape),
        "entry_flat": entry.flatten(0, 1),
        "entry_map": to_map(entry, shape),
        "vq_loss": term(quantizer, features, codebook=1.0),
        "commit_loss": term(quantizer, features, commitment=quantizer.commitment),
        "entropy_loss": term(quantizer, features, entropy=quantizer.entropy),
        "mean_sq_dist_semantic": spread[0],
        "mean_sq_dist_pixel": spread[1],
        "grad_features": to_map(to_features, shape),
        "grad_table_semantic": to_table[:, : quantizer.widths[0]],
        "grad_table_pixel": to_table[:, quantizer.widths[0] :],
    }


def replay_msvq(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``tokenflow_msvq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    quantizer = MultiScaleQuantizer(shared_mapping(config), list(config["scales"])).eval()
    fill(quantizer, weights, [Under("", "quantizer.", TABLES)], "tokenflow_msvq")
    inner = quantizer.quantizer
    assert isinstance(inner, SharedMappingQuantizer)
    features, side = of_map(inputs["features"]), quantizer.sides[-1]
    quantized = quantizer(features)
    ends = list(accumulate(side * side for side in quantizer.sides))
    found = {
        "indices": quantized.ids[..., 0],
        "f_hat": to_map(quantized.latents, (side, side)),
        "f_hat_from_indices": to_map(quantizer.lookup(quantized.ids), (side, side)),
        "entry": inner.lookup(quantized.ids),
        "lm_input_chained": quantizer.chained(quantized.ids),
        "train_vq_loss": term(quantizer, features, codebook=1.0),
        "train_commit_loss": term(quantizer, features, commitment=inner.commitment),
        "train_entropy_loss": term(quantizer, features, entropy=inner.entropy),
    }
    for scale, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        found[f"indices_scale_{scale}"] = quantized.ids[:, start:end, 0]
        found[f"f_hat_prefix_{scale + 1}"] = to_map(quantizer.lookup(quantized.ids[:, :end]), (side, side))
    return found


def _spread(vectors: Tensor, rows: Tensor) -> Tensor:
    """Mean over vectors of the summed fourth powers of their distances to every row; the reference logs it."""
    return torch.cdist(vectors.flatten(0, -2), rows).pow(4).sum(1).mean()
