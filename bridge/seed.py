"""SEED's tokenizer (https://arxiv.org/abs/2310.01218; AILab-CVC/SEED, Apache-2.0 and BSD-3 parts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..tokenizers.attention import bottleneck
from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.qformer import QFormer
from ..tokenizers.queries import ImageEmbedding
from .golden import Golden
from .keymap import Copy, Rule, Under, fill
from .maps import PRE_NORM_BLOCK, qformer_rules
from .tensors import gradients, term

#: Code book between its two tanh layers.
CODES: tuple[Rule, ...] = (
    Copy(r"encode_task_layer\.(\d)\.(weight|bias)", r"down.\1.\2"),
    Copy(r"decode_task_layer\.(\d)\.(weight|bias)", r"up.\1.\2"),
    Copy(r"quantize\.embedding\.weight", "quantizer.table"),
)


def qformer(config: Mapping[str, Any], *, causal: bool = True) -> QFormer:
    """An untrained Q-Former of a reference configuration."""
    return QFormer(
        config.get("query_length") or config["num_query_token"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["encoder_width"],
        config["cross_attention_freq"],
        causal=causal,
        eps=config.get("layer_norm_eps") or config["bert_layer_norm_eps"],
    ).eval()


def replay_qformer(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``seed_qformer`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    queries, memory = inputs["query_tokens"], inputs["image_features"]
    rules = [*qformer_rules(text=True), Copy("query_tokens", "query")]
    module = qformer(config)
    fill(module, {**weights, "query_tokens": queries}, rules, "seed_qformer")
    states = module.states(memory)
    few = qformer({**config, "query_length": 16}, causal=False)
    fill(few, {**weights, "query_tokens": queries[:, :16]}, rules, "seed_qformer")
    return {
        **{f"hidden_{layer}": state for layer, state in enumerate(states)},
        "query_output": states[-1],
        "query_output_masked": module(memory, inputs["image_mask"].bool()),
        "query_output_16_bidirectional": few(memory),
    }


def replay_vq(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``seed_vq`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    beta, legacy = config["beta"], config["legacy"]
    parts = _code_parts(weights, *((beta, 1.0) if legacy else (1.0, beta)))
    fill(parts, weights, CODES, "seed_vq")
    quantizer = parts["quantizer"]
    assert isinstance(quantizer, GradientQuantizer)
    down = parts["down"](inputs["query_output"]).detach().requires_grad_()
    quantized = quantizer.train()(down)
    pull = (quantized.latents * inputs["cotangent"]).mean()
    to_down, to_table = gradients(quantized.loss + pull, down, quantizer.table)
    return {
        "down": down,
        "indices": quantized.ids.flatten(),
        "zq": quantized.latents,
        "loss": quantized.loss,
        "loss_not_legacy": term(quantizer, down, codebook=1.0, commitment=beta),
        "up": parts["up"](quantizer.lookup(quantized.ids)),
        "grad_down": to_down,
        "grad_table": to_table,
    }


def replay_tokenizer(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``seed_tokenizer`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    width = config["hidden_size"]
    image = ImageEmbedding(
        config["num_query_token"],
        width,
        config["decode_depth"],
        config["block_num_heads"],
        config["image_features_dim"],
        round(config["block_mlp_ratio"] * width),
        config["block_norm_eps"],
    )
    parts = _code_parts(weights, 0.25, 1.0)
    norm = nn.LayerNorm(config["encoder_width"])
    parts.update({"vision_norm": norm, "qformer": qformer(config), "image": image})
    fill(parts, weights, tokenizer_rules(), "seed_tokenizer")
    parts.eval()
    states = parts["qformer"](parts["vision_norm"](inputs["vision_features"]))
    down = parts["down"](states)
    quantizer = parts["quantizer"]
    assert isinstance(quantizer, GradientQuantizer)
    ids = quantizer(down).ids
    up = parts["up"](quantizer.lookup(ids))
    return {
        "query_output": states,
        "down": down,
        "indices": ids[..., 0],
        "up": up,
        "image_embedding": parts["image"](up),
    }


def tokenizer_rules() -> list[Rule]:
    """Reference names of the inference path, without the image tower."""
    return [
        Copy(r"ln_vision\.(weight|bias)", r"vision_norm.\1"),
        Copy("query_tokens", "qformer.query"),
        Under(r"Qformer\.bert\.", "qformer.", qformer_rules(text=False)),
        *CODES,
        Copy("pos_embed_image", "image.positions"),
        Under(r"blocks_image\.(\d+)\.", r"image.blocks.\1.", PRE_NORM_BLOCK),
        Copy(r"image_down\.(\d)\.weight", r"image.narrow.\1.weight"),
        Copy(r"distill_image_proj\.(weight|bias)", r"image.out.\1"),
    ]


def _code_parts(weights: Mapping[str, Tensor], codebook: float, commitment: float) -> nn.ModuleDict:
    """Untrained tanh layers and code book of the sizes that the weights have, with the weights of the two losses."""
    (size, dim), width = weights["quantize.embedding.weight"].shape, weights["encode_task_layer.0.weight"].shape[1]
    quantizer = GradientQuantizer(dim, size, codebook=codebook, commitment=commitment)
    return nn.ModuleDict(
        {"down": bottleneck(width, width, dim), "quantizer": quantizer, "up": bottleneck(dim, dim, width)}
    )
