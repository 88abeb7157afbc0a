"""DualToken's parts (https://arxiv.org/abs/2503.14324; songweii/DualToken, whose licence file is missing)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..tokenizers.averaged import AveragedQuantizer
from ..tokenizers.projection import AttentionProjection
from .golden import Golden
from .keymap import Copy, Drop, Rule, fill
from .tensors import gradients
from .unitok import projections


def replay_projections(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``dualtoken_proj`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    modules, rules = projections({"prequant": config["pre"], "postquant": config["post"]})
    fill(modules, weights, rules, "dualtoken_proj")
    found = dict[str, Tensor]()
    for name, module in modules.items():
        assert isinstance(module, AttentionProjection)
        found[name] = module(inputs[name])
        found[f"{name}_attn"] = module.attend(module.norm_attention(inputs[name]))
    return found


def residual_rules(weights: Mapping[str, Tensor]) -> list[Rule]:
    """Reference names of a residual quantizer with one table, which is stored once per depth."""
    return [
        Copy(r"codebooks\.0\.weight", "table"),
        Copy(r"codebooks\.0\.cluster_size_ema", "counts"),
        Copy(r"codebooks\.0\.embed_ema", "sums"),
        Drop(r"codebooks\.\d+\.(\w+)", "the same for all depths", same_as=r"codebooks.0.\1"),
    ]


def replay_residual(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``dualtoken_rq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    depth = config["code_shape"][-1]
    if not config["shared_codebook"] or config["restart_unused_codes"]:
        raise ValueError("dualtoken_rq is replayed with a shared table and without restarts, got another setting")
    quantizer = AveragedQuantizer(
        config["latent_shape"][-1],
        config["n_embed"],
        depth,
        decay=config["decay"],
        commitment=1.0,
        schedule="depth",
        epsilon=config["ema_eps"],
        revive_below=0.0,
    ).eval()
    tables = {name: tensor[:-1] if name.endswith(".weight") else tensor for name, tensor in weights.items()}
    fill(quantizer, tables, residual_rules(weights), "dualtoken_rq")
    shape = inputs["features"].shape
    features = inputs["features"].flatten(1, 2).clone().requires_grad_()
    quantized = quantizer(features)
    pull = (quantized.latents * inputs["cotangent"].flatten(1, 2)).mean()
    (to_features,) = gradients(quantized.loss + pull, features)
    per_depth = torch.stack([quantizer.lookup(column) for column in quantized.ids.split(1, dim=-1)], dim=2)
    sums = {f"cumulative_{at + 1}": quantizer.lookup(quantized.ids[..., : at + 1]) for at in range(depth)}
    found = {
        "codes": quantized.ids,
        "quantized": quantized.latents,
        "commit_loss": quantized.loss,
        "embed_code": quantizer.lookup(quantized.ids),
        "embed_code_per_depth": per_depth,
        "grad_features": to_features,
        **sums,
    }
    in_training = quantizer.train()(features.detach())
    found |= {"train_codes": in_training.ids, "train_quantized": in_training.latents}
    placed = {name: value.unflatten(1, shape[1:3]) if value.ndim else value for name, value in found.items()}
    padding = weights["codebooks.0.weight"][-1:]
    return placed | {
        "train_commit_loss": in_training.loss,
        "train_cluster_size": quantizer.counts,
        "train_embed_ema": quantizer.sums,
        "train_table": torch.cat([quantizer.table, padding]),
    }
