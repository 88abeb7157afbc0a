"""UniTok (https://arxiv.org/abs/2502.20321; FoundationVision/UniTok, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.projection import AttentionProjection
from ..tokenizers.unitok import MultiCodebookQuantizer, UniTokTokenizer
from ..tokenizers.vitamin import VITAMIN_LARGE, ViTaminDecoder, ViTaminEncoder
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill
from .maps import ATTENTION_PROJECTION
from .tensors import gradients, term
from .vitamin import DECODER, ENCODER

#: Configuration of the released tokenizer; ``encoder`` and ``decoder`` are the sizes of the models that it names.
UNITOK: Mapping[str, Any] = {
    "img_size": 256,
    "vocab_size": 32768,
    "vocab_width": 64,
    "vq_beta": 0.25,
    "le": 0.0,
    "e_temp": 0.01,
    "num_codebooks": 8,
    "embed_dim": 768,
    "encoder": {"dim": 1024, **VITAMIN_LARGE},
    "decoder": {"dim": 1024, **VITAMIN_LARGE},
}

#: Tables of the multi-codebook quantizer.
TABLES: tuple[Rule, ...] = (Copy(r"codebooks\.(\d+)\.codebook\.weight", r"tables.\1.table"),)


def tokenizer(config: Mapping[str, Any]) -> UniTokTokenizer:
    """An untrained tokenizer of a reference configuration."""
    chunks = config["num_codebooks"]
    quantizer = MultiCodebookQuantizer(
        config["vocab_width"],
        config["vocab_size"] // chunks,
        chunks,
        commitment=config["vq_beta"],
        entropy=config["le"],
        temperature=config["e_temp"],
    )
    encoder, decoder = ViTaminEncoder(**config["encoder"]), ViTaminDecoder(**config["decoder"])
    return UniTokTokenizer(encoder, quantizer, decoder, config["img_size"], pooled_dim=config["embed_dim"])


def rules(built: UniTokTokenizer) -> list[Rule]:
    """Reference names of the whole model, of which the text side is left."""
    assert isinstance(built.encoder, ViTaminEncoder)
    assert isinstance(built.decoder, ViTaminDecoder)
    return [
        Drop(r"encoder\.pos_embed", "it is kept at zero", zero=True),
        Under(r"encoder\.", "encoder.", ENCODER),
        Under(r"quant_proj\.", "narrow.", ATTENTION_PROJECTION),
        Drop(r"quantizer\.codebooks\.\d+\.vocab_usage", "it counts recent codes in training"),
        Under(r"quantizer\.", "quantizer.", TABLES),
        Under(r"post_quant_proj\.", "widen.", ATTENTION_PROJECTION),
        Under(r"decoder\.", "decoder.", DECODER),
        Copy(r"(fc_norm|projection)\.(weight|bias)", r"\1.\2"),
        Drop(r"text_encoder\..*", "only text passes it"),
        Drop("logit_scale", "it weighs image against text in training"),
    ]


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
