"""DualToken (https://arxiv.org/abs/2503.14324; songweii/DualToken, whose licence file is missing).

A checkpoint has the SigLIP with its text side, the projections, two residual quantizers and the pixel decoder under
``state_dict``; older ones spell ``semantic`` and ``pixel`` where newer ones have ``sem`` and ``pix``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.averaged import AveragedQuantizer, Schedule
from ..tokenizers.convolutional import ConvDecoder
from ..tokenizers.dual import DualTokenizer
from ..tokenizers.projection import AttentionProjection
from ..tokenizers.vision import VisionTower
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill
from .maps import ATTENTION_PROJECTION, RESIDUAL_BLOCK, TAMING, vqgan_rules
from .tensors import gradients
from .unitok import projections

#: ``model_config_siglip_384_rvq8_32d`` and the SigLIP2-so400m-patch14-384 it names. The other released one is 256
#: pixels, patch 16 and depth 4.
DUALTOKEN_384: Mapping[str, Any] = {
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "layer_sem": 26,
    "layer_recon": 6,
    "layer_shortcut": 4,
    "weight_shortcut": 0.6,
    "n_embed": 16384,
    "embed_dim": 32,
    "depth": 8,
    "decay": 0.99,
    "decoder_in_channels": 1024,
    "ch": 128,
    "ch_mult": (1, 1, 4, 4, 8),
    "num_res_blocks": 2,
}


def tokenizer(config: Mapping[str, Any]) -> DualTokenizer:
    """An untrained tokenizer of the fields of :data:`DUALTOKEN_384`."""
    width = config["hidden_size"]
    sizes = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    multipliers = tuple(config["ch_mult"])
    return DualTokenizer(
        VisionTower(*(config[name] for name in sizes)),
        _quantizer(config, "step"),
        _quantizer(config, "depth"),
        ConvDecoder(width, config["ch"], multipliers, config["num_res_blocks"] + 1, config["decoder_in_channels"]),
        config["layer_sem"],
        config["layer_recon"],
        config["layer_shortcut"],
        config["weight_shortcut"],
    )


def rules(module: DualTokenizer) -> list[Rule]:
    """Names of the released checkpoint."""
    decoder = module.decoder
    assert isinstance(decoder, ConvDecoder)
    kinds = {"sem(?:antic)?": "semantic", "pix(?:el)?": "pixel"}
    return [
        Under(r"siglip_model\.vision_model\.", "encoder.model.", [Copy(r"(.+)", r"\1")]),
        Drop(r"siglip_model\.(?:text_model\..+|logit_scale|logit_bias)", "reads texts"),
        *(Under(rf"prequant_{theirs}\.", f"to_{ours}.", ATTENTION_PROJECTION) for theirs, ours in kinds.items()),
        *(Under(rf"postquant_{theirs}\.", f"from_{ours}.", ATTENTION_PROJECTION) for theirs, ours in kinds.items()),
        *(Under(rf"quantizer_{theirs}\.", f"{ours}.", residual_rules(padded=True)) for theirs, ours in kinds.items()),
        Under(r"prequant_shortcut\.", "to_shortcut.", ATTENTION_PROJECTION),
        Under(r"post_quant_conv\.", "decoder.first.", [RESIDUAL_BLOCK]),
        Under(r"decoder\.", "decoder.", vqgan_rules(decoder, TAMING)),
    ]


def _quantizer(config: Mapping[str, Any], schedule: Schedule) -> AveragedQuantizer:
    return AveragedQuantizer(
        config["embed_dim"], config["n_embed"], config["depth"], config["decay"], commitment=1.0, schedule=schedule
    )


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


def residual_rules(*, padded: bool = False) -> list[Rule]:
    """Reference names of a residual quantizer with one table, which is stored once per depth; its last row is padding
    where it is ``padded``."""
    return [
        Copy(r"codebooks\.0\.weight", "table", change=(lambda table: table[:-1]) if padded else None),
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
    fill(quantizer, tables, residual_rules(), "dualtoken_rq")
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
