"""Slot-MLLM's tokenizer (https://arxiv.org/abs/2505.17726; KU-AGI/Slot-MLLM, no licence file; BSD-3 headers).

``slottok.ckpt`` is a Lightning checkpoint of the training module in stage 2: its ``state_dict`` also holds the
diffusion model and CLIP, and the parts of SEED that training compared with texts. Names are those of that module; the
file itself was not at hand, and whether its quantizer is the residual one of the shipped configuration is not
documented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..tokenizers.attention import PostNorm
from ..tokenizers.qformer import GRUSlotAttention, MorphSlotAttention, QFormer
from ..tokenizers.quantizers import VectorQuantizer
from ..tokenizers.slot import SlotTokenizer
from ..tokenizers.vision import VisionTower
from .golden import Golden
from .keymap import Constant, Copy, Drop, Rule, Under, fill
from .maps import POST_NORM_ATTENTION, qformer_rules
from .seed import IMAGE_EMBEDDING, QFORMER, RESTORE
from .vision import dino_rules

#: The shipped configuration for inference. ``backbone_*`` describe its DINOv2-L, ``encoder_width`` what the Q-Former
#: reads, ``reading`` and ``num_iterations`` its slot attention.
SLOT_MLLM: Mapping[str, Any] = {
    "image_size": 448,
    "patch_size": 14,
    "backbone_width": 1024,
    "backbone_depth": 24,
    "backbone_heads": 16,
    "encoder_width": 1408,
    **QFORMER,
    "reading": "morph",
    "num_iterations": 1,
    "codebook_embed_dim": 32,
    "n_embed": 8192,
    "num_quantizers": 4,
    "shared_codebook": True,
    "blocks_layers": 4,
    "block_heads": 16,
    "image_features_dim": 1024,
}

_COMPARES = "compares images with texts in training"
_DRAWS = "of the diffusion model"


def tokenizer(config: Mapping[str, Any]) -> SlotTokenizer:
    """An untrained tokenizer of the fields of :data:`SLOT_MLLM`; without pixels, as released."""
    width, sizes = config["hidden_size"], ("image_size", "patch_size", "backbone_width", "backbone_depth")
    tower = VisionTower(*(config[name] for name in sizes), heads=config["backbone_heads"], kind="dinov2")
    return SlotTokenizer(
        tower,
        QFormer(
            config["num_query_token"],
            width,
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["intermediate_size"],
            config["encoder_width"],
            config["cross_attention_freq"],
            config["reading"],
            config["num_iterations"],
            eps=config["layer_norm_eps"],
        ),
        VectorQuantizer(
            width,
            config["n_embed"],
            config["num_quantizers"],
            config["codebook_embed_dim"],
            config["shared_codebook"],
            decay=0.8,
            commitment=1.0,
            revive_below=0.0,
            kmeans_init=False,
        ),
        image_dim=config["image_features_dim"],
        restoring=config["blocks_layers"],
        freeze_encoder=True,
        heads=config["block_heads"],
        placed=True,
        patches_only=True,
        narrowed=False,
        from_restored=True,
        token_dim=config["image_features_dim"],
    )


def rules(module: SlotTokenizer) -> list[Rule]:
    """Names of the training module's state."""
    tower, quantizer = module.encoder, module.quantizer
    assert isinstance(tower, VisionTower)
    assert isinstance(quantizer, VectorQuantizer)
    recurrent = any(isinstance(part, GRUSlotAttention) for part in module.qformer.modules())
    return [
        Under(r"backbone\.dinov2\.", "encoder.model.", dino_rules(tower)),
        Copy(r"visual_embedding_layernorm\.(weight|bias)", r"vision_norm.\1"),
        Copy(r"visual_embedding_encoder\.(\d)\.(weight|bias)", r"memory.\1.\2"),
        Copy(r"image_tokenizer\.model\.query_tokens", "qformer.query"),
        Under(r"image_tokenizer\.model\.Qformer\.bert\.", "qformer.", _qformer(recurrent)),
        *_quantizer(shared=quantizer.one_table),
        *RESTORE,
        *IMAGE_EMBEDDING,
        Constant(r"image\.out\.bias", 0.0, "the layer has none there"),
        Copy(r"out_layer_norm\.(weight|bias)", r"image.each.0.\1"),
        Copy(r"out_linear_1024\.(weight|bias)", r"image.each.1.\1"),
        Drop(r"image_tokenizer\.model\.Qformer\.cls\..+", "predicts words"),
        Drop(r"image_tokenizer\.model\.ln_vision\.(?:weight|bias)", "norms SEED's tower, which is not there"),
        Drop(r"image_tokenizer\.model\.(?:pos_embed|pos_embed_image)", "of SEED's blocks, which are not there"),
        Drop(r"image_tokenizer\.model\.(?:image_down|distill_image_proj)\..+", "of SEED's, not passed"),
        Drop(r"(?:image_tokenizer\.model\.)?(?:vision_proj|text_proj|itm_head)\.(?:weight|bias)", _COMPARES),
        Drop(r"(?:image_tokenizer\.model\.)?temp", _COMPARES),
        Drop(r"(?:image_encoder|image_normalizer|text_encoder|unet|vae)\..+", _DRAWS),
    ]


def _qformer(recurrent: bool) -> list[Rule]:
    """SEED's names; every attention also has the parts of all three ways to read, whether it passes them or not."""
    layer, parts = r"encoder\.layer\.\d+\.", r"(?:gru|mlp|norm_slots|norm_mlp)\..+"
    why = "of a way to read that is not taken"
    return [
        Drop(layer + r"attention\.self\." + parts, why),
        *([] if recurrent else [Drop(layer + r"crossattention\.self\." + parts, why)]),
        Drop(layer + r"crossattention\.self\.(?:key|value)_proj\.(?:weight|bias)", why),
        *qformer_rules(text=True),
    ]


def _quantizer(shared: bool) -> list[Rule]:
    """Names of vector-quantize-pytorch; a shared table is stored once per depth."""
    same = Drop(r"quantize\.layers\.\d+\.(_codebook\.\w+)", "the same for all depths", same_as=r"quantize.layers.0.\1")
    return [
        Copy(r"quantize\.project_(in|out)\.(weight|bias)", r"quantizer.table.project_\1.\2"),
        Drop(r"quantize\.layers\.\d+\._codebook\.initted", "a table that is read has been started"),
        Constant(r"quantizer\.(?:started|table\.layers\.\d+\._codebook\.initted)", 1.0, "the table has been started"),
        Copy(rf"quantize\.layers\.({'0' if shared else '[0-9]+'})\.(_codebook\.\w+)", r"quantizer.table.layers.\1.\2"),
        *([same] if shared else []),
    ]


def replay_morph(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``slot_morph`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    sizes = (config["hidden_size"], config["num_attention_heads"], config["encoder_width"])
    mixer = MorphSlotAttention(*sizes, epsilon=config["morph_eps"])
    block = _block(mixer, config, weights, "slot_morph")
    slots, memory = inputs["slots"], inputs["inputs"]
    return {
        "attention": mixer.attend(slots, memory),
        "slots": mixer(slots, memory),
        "block": block(slots, memory),
    }


def replay_gru(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``slot_gru`` files."""
    config, weights, inputs = golden.config, golden.weights, golden.inputs
    sizes = (config["hidden_size"], config["num_attention_heads"], config["encoder_width"])
    mixer = GRUSlotAttention(*sizes, epsilon=config["gru_eps"], half=config["use_half_slot"])
    block = _block(mixer, config, weights, "slot_gru")
    slots, memory = inputs["slots"], inputs["inputs"]
    found = dict[str, Tensor]()
    for rounds in config["num_iterations"]:
        mixer.rounds = rounds
        found[f"slots_iter{rounds}"], found[f"attention_iter{rounds}"] = mixer.attend(slots, memory)
        found[f"block_iter{rounds}"] = block(slots, memory)
        mixer.only_half = True
        found[f"slots_half_iter{rounds}"] = mixer(slots, memory)
        mixer.only_half = config["use_half_slot"]
    return found


def _block(
    mixer: MorphSlotAttention | GRUSlotAttention, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str
) -> PostNorm:
    width = config["hidden_size"]
    block = PostNorm(mixer, width, width, config["layer_norm_eps"]).eval()
    fill(block, weights, POST_NORM_ATTENTION, name)
    return block
