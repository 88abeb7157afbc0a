"""UniTok's quantizer and projections (https://arxiv.org/abs/2502.20321; FoundationVision/UniTok, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.projection import AttentionProjection
from ..tokenizers.unitok import MultiCodebookQuantizer
from .golden import Golden
from .keymap import Copy, Rule, Under, fill
from .maps import ATTENTION_PROJECTION
from .tensors import gradients, term

#: Tables of the multi-codebook quantizer.
TABLES: tuple[Rule, ...] = (Copy(r"codebooks\.(\d+)\.codebook\.weight", r"tables.\1.table"),)


def replay_mcq(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``unitok_mcq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    chunks, features = config["num_codebooks"], inputs["features"]
    quantizer = MultiCodebookQuantizer(
        config["vocab_width"],
        config["vocab_size"] // chunks,
        chunks,
        commitment=config["beta"],
        entropy=float(config["use_entropy_loss"]),
        temperature=config["entropy_temp"],
    ).eval()
    fill(quantizer, weights, TABLES, "unitok_mcq")
    quantized = quantizer(features)
    learning = features.clone().requires_grad_()
    in_training = quantizer.train()(learning)
    pull = (in_training.latents * inputs["cotangent"]).mean()
    tables = [table.table for table in quantizer.tables if isinstance(table, GradientQuantizer)]
    to_features, *to_tables = gradients(in_training.loss + pull, learning, *tables)
    return {
        "indices": quantized.ids.transpose(1, 2),
        "quantized": quantized.latents,
        "from_indices": quantizer.lookup(quantized.ids),
        "vq_loss": term(quantizer, features, codebook=1.0, commitment=config["beta"]),
        "entropy_loss": term(quantizer, features, entropy=1.0),
        "usage_percent": _usage(quantized.ids, quantizer.size),
        "grad_features": to_features,
        **{f"grad_table_{chunk}": slope for chunk, slope in enumerate(to_tables)},
    }


def replay_projections(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``unitok_proj`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    modules, rules = projections({name: config[name] for name in ("quant_proj", "post_quant_proj")})
    fill(modules, weights, rules, "unitok_proj")
    return {name: module(inputs[name]) for name, module in modules.items()}


def projections(configs: Mapping[str, Mapping[str, Any]]) -> tuple[nn.ModuleDict, list[Rule]]:
    """Attention projections by their reference names, and the rules that fill them."""
    modules = nn.ModuleDict(
        {
            name: AttentionProjection(
                config["in_dim"],
                config["out_dim"],
                config["num_heads"],
                causal=config.get("is_causal", False),
                expansion=config["mlp_ratio"],
            ).eval()
            for name, config in configs.items()
        }
    )
    return modules, [Under(rf"{name}\.", f"{name}.", ATTENTION_PROJECTION) for name in configs]


def _usage(ids: Tensor, size: int) -> Tensor:
    """Mean over chunks of the percentage of rows drawn more often than a hundredth of evenly."""
    shares = [torch.bincount(column.flatten(), minlength=size) / column.numel() for column in ids.unbind(-1)]
    return torch.stack([(share > 0.01 / size).float().mean() * 100 for share in shares]).mean()
