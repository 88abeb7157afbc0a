"""SEED's tokenizer (https://arxiv.org/abs/2310.01218; AILab-CVC/SEED, Apache-2.0 and BSD-3 parts).

``seed_quantizer.pt`` of seed-tokenizer-2 holds everything but the image tower: loading it into the release's own class
reports 511 missing names, which is what 39 EVA blocks have (AnyGPT issue 14). The tower is BLIP-2's ``eva_vit_g.pth``.
The same report counts 146 names that the class has not. Those of the text side are known from BERT; which heads of
training the others belong to is not documented, so heads that the training code defines are dropped by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..tokenizers.attention import bottleneck
from ..tokenizers.embeddings import ImageEmbedding
from ..tokenizers.learned import GradientQuantizer
from ..tokenizers.qformer import QFormer
from ..tokenizers.seed import SeedTokenizer
from ..tokenizers.vision import VisionTower
from .golden import Golden
from .keymap import Copy, Drop, Rule, Under, fill
from .maps import PRE_NORM_BLOCK, qformer_rules
from .tensors import gradients, term
from .vision import eva_rules, unused_norm

#: BLIP-2's image tower, in the fields of a configuration.
EVA_G: Mapping[str, Any] = {
    "img_size": 224,
    "patch_size": 14,
    "encoder_width": 1408,
    "encoder_depth": 39,
    "encoder_heads": 16,
    "encoder_mlp": 6144,
}
#: BERT-base with 32 queries, in the fields of a configuration.
QFORMER: Mapping[str, Any] = {
    "num_query_token": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "cross_attention_freq": 2,
    "layer_norm_eps": 1e-12,
}
#: The released tokenizer; the last five are constants of its code.
SEED_2: Mapping[str, Any] = {
    **EVA_G,
    **QFORMER,
    "codebook_embed_dim": 32,
    "n_embed": 8192,
    "decode_depth": 4,
    "block_heads": 12,
    "image_features_dim": 1024,
}

#: Code book between its two tanh layers.
CODES: tuple[Rule, ...] = (
    Copy(r"encode_task_layer\.(\d)\.(weight|bias)", r"down.\1.\2"),
    Copy(r"decode_task_layer\.(\d)\.(weight|bias)", r"up.\1.\2"),
    Copy(r"quantize\.embedding\.weight", "quantizer.table"),
)

#: Code to image embedding.
IMAGE_EMBEDDING: tuple[Rule, ...] = (
    Copy("pos_embed_image", "image.positions"),
    Under(r"blocks_image\.(\d+)\.", r"image.blocks.\1.", PRE_NORM_BLOCK),
    Copy(r"image_down\.(\d)\.weight", r"image.narrow.\1.weight"),
    Copy(r"distill_image_proj\.(weight|bias)", r"image.out.\1"),
)
#: The blocks that restore the Q-Former's outputs.
RESTORE: tuple[Rule, ...] = (
    Copy("pos_embed", "restore.0.positions"),
    Under(r"blocks\.(\d+)\.", lambda match: f"restore.{int(match[1]) + 1}.", PRE_NORM_BLOCK),
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


def tokenizer_rules(*, text: bool = False) -> list[Rule]:
    """Reference names of the inference path, without the image tower; ``text`` where the text side is there too."""
    return [
        Copy(r"ln_vision\.(weight|bias)", r"vision_norm.\1"),
        Copy("query_tokens", "qformer.query"),
        Under(r"Qformer\.bert\.", "qformer.", qformer_rules(text=text)),
        *CODES,
        *IMAGE_EMBEDDING,
    ]


def eva_tower(config: Mapping[str, Any]) -> VisionTower:
    """An untrained tower of a configuration with the fields of :data:`EVA_G`."""
    sizes = ("img_size", "patch_size", "encoder_width", "encoder_depth", "encoder_heads", "encoder_mlp")
    return VisionTower(*(config[name] for name in sizes), kind="blip2")


def tokenizer(config: Mapping[str, Any]) -> SeedTokenizer:
    """An untrained tokenizer of the fields of :data:`SEED_2`; without pixels, as released."""
    return SeedTokenizer(
        eva_tower(config),
        qformer(config),
        GradientQuantizer(config["codebook_embed_dim"], config["n_embed"], codebook=0.25, commitment=1.0),
        image_dim=config["image_features_dim"],
        restoring=config["decode_depth"],
        freeze_encoder=True,
        heads=config["block_heads"],
        placed=True,
    )


def rules(module: SeedTokenizer) -> list[Rule]:
    """Names of both released files, the tower's with their prefix."""
    tower = module.encoder
    assert isinstance(tower, VisionTower)
    return [
        Under(r"visual_encoder\.", "encoder.model.", eva_rules(tower)),
        *unused_norm(r"encoder\.model\."),
        *tokenizer_rules(text=True),
        *RESTORE,
        Drop(r"Qformer\.cls\..+", "predicts words"),
        Drop(r"(?:vision_proj|text_proj|itm_head)\.(?:weight|bias)|temp", "compares images with texts in training"),
        Drop(r"(?:Reverse_Qformer|Reverse_Qformer_text|blocks_text|distill_text_proj)\..+", "of training alone"),
        Drop(r"reverse_tokens|reverse_tokens_text|pos_embed_text", "of training alone"),
    ]


def _code_parts(weights: Mapping[str, Tensor], codebook: float, commitment: float) -> nn.ModuleDict:
    """Untrained tanh layers and code book of the sizes that the weights have, with the weights of the two losses."""
    (size, dim), width = weights["quantize.embedding.weight"].shape, weights["encode_task_layer.0.weight"].shape[1]
    quantizer = GradientQuantizer(dim, size, codebook=codebook, commitment=commitment)
    return nn.ModuleDict(
        {"down": bottleneck(width, width, dim), "quantizer": quantizer, "up": bottleneck(dim, dim, width)}
    )
