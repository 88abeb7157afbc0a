"""TokenFlow (https://arxiv.org/abs/2412.03069; ByteVisionLab/TokenFlow, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.convolutional import ConvDecoder, ConvEncoder
from ..tokenizers.scales import MultiScaleQuantizer
from ..tokenizers.tokenflow import SharedMappingQuantizer, TokenFlowTokenizer, unit_parts
from ..tokenizers.towers import Tower
from ..tokenizers.vision import VisionTower
from ..tokenizers.vitamin import VITAMIN_XLARGE, ViTaminTower
from .clip import OPENAI_CLIP
from .golden import Golden
from .keymap import Constant, Copy, Drop, Join, Rule, Under, fill
from .maps import PRE_NORM_BLOCK, vqgan_rules
from .tensors import gradients, of_map, term, to_map
from .vitamin import TRUNK

#: Both tables of the shared mapping, semantic first.
TABLES: tuple[Rule, ...] = (Join(r"embedding_(?P<part>vqkd|vqgan)\.weight", "table", ("vqkd", "vqgan"), dim=1),)

#: The decoder of semantic codes.
SEMANTIC_DECODER: tuple[Rule, ...] = (
    Copy(r"patch_embed\.proj\.weight", "semantic_stem.weight", squeeze=True),
    Copy(r"patch_embed\.proj\.bias", "semantic_stem.bias"),
    Copy("cls_token", "semantic_class"),
    Copy("pos_embed", "semantic_places", change=lambda places: places.flatten(0, -2)),
    Copy(r"blocks\.(\d+)\.attn\.q_bias", r"semantic_decoder.\1.attention.query.bias"),
    Copy(r"blocks\.(\d+)\.attn\.v_bias", r"semantic_decoder.\1.attention.value.bias"),
    Under(r"blocks\.(\d+)\.", r"semantic_decoder.\1.", PRE_NORM_BLOCK),
    Copy(r"fc_norm\.(weight|bias)", r"semantic_out.0.\1"),
)


@dataclass(frozen=True)
class Teacher:
    """What a tokenizer is built around; the release writes all of this into its code."""

    tower: Callable[..., Tower]  #: the semantic encoder
    sizes: Mapping[str, Any]  #: its arguments
    scales: tuple[int, ...]  #: sides of the grids
    out_dim: int  #: width of the teacher's features
    all_layers: bool = True  #: whether the last layer comes before the semantic features
    normed: bool = False  #: whether the norm after it does


#: By the release's names. TokenFlow-B hands CLIP images in [-1, 1] that nothing was subtracted from, and so does this.
TEACHERS: Mapping[str, Teacher] = {
    "clipb_224": Teacher(
        VisionTower,
        {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12, "kind": "clip"}
        | {"mean": [0.5] * 3, "std": [0.5] * 3},
        (1, 2, 4, 6, 8, 10, 12, 14),
        512,
        normed=True,
    ),
    "vitamin_xlarge_256": Teacher(
        ViTaminTower,
        {"image_size": 256, "width": 1152, **VITAMIN_XLARGE},
        (1, 2, 4, 6, 8, 10, 12, 14, 16),
        1152,
    ),
    "siglip_384": Teacher(
        VisionTower,
        {"image_size": 384, "patch_size": 14, "width": 1152, "layers": 27, "heads": 16, "mlp_width": 4304},
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27),
        1152,
        all_layers=False,
    ),
}

#: Configuration of TokenFlow-B; L and XL differ in ``teacher``. What is None or empty is the teacher's.
TOKENFLOW: Mapping[str, Any] = {
    "teacher": "clipb_224",
    "codebook_size": 32768,
    "codebook_embed_dim": 8,
    "semantic_code_dim": 32,
    "codebook_l2_norm": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "ch": 128,
    "encoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "z_channels": 256,
    "enhanced_decoder": False,
    "depth": 3,
    "num_heads": 12,
    "scale_rq_layers": None,
    "decoder_out_dim": None,
    "encoder_vqkd": {},
}


def tokenizer(config: Mapping[str, Any]) -> TokenFlowTokenizer:
    """An untrained tokenizer of a reference configuration.

    Raises:
        ValueError: a teacher that the release does not have.
    """
    if config["teacher"] not in TEACHERS:
        raise ValueError(
            f"the teacher must be one of {', '.join(TEACHERS)}, got {config['teacher']!r}; use one of those names"
        )
    teacher = TEACHERS[config["teacher"]]
    tower = teacher.tower(**{**teacher.sizes, **config["encoder_vqkd"]})
    width, blocks = (2 * config["ch"], 4) if config["enhanced_decoder"] else (config["ch"], 2)
    split = [config["semantic_code_dim"], config["codebook_embed_dim"]]
    mapping = shared_mapping(
        {
            "split": split,
            "n_e": config["codebook_size"],
            "beta": config["commit_loss_beta"],
            "entropy_loss_ratio": config["entropy_loss_ratio"],
            "l2_norm": config["codebook_l2_norm"],
        }
    )
    return TokenFlowTokenizer(
        tower,
        ConvEncoder(config["z_channels"], config["ch"], tuple(config["encoder_ch_mult"]), 2),
        MultiScaleQuantizer(mapping, list(config["scale_rq_layers"] or teacher.scales), drop=0.1),
        ConvDecoder(config["z_channels"], width, tuple(config["decoder_ch_mult"]), blocks + 1),
        config["depth"],
        config["num_heads"],
        class_token=True,
        semantic_layer=tower.depth if teacher.all_layers else None,
        normed=teacher.normed,
        teacher_dim=config["decoder_out_dim"] or teacher.out_dim,
    )


def rules(built: TokenFlowTokenizer) -> list[Rule]:
    """Reference names of the whole model."""
    assert isinstance(built.encoder, ConvEncoder)
    assert isinstance(built.decoder, ConvDecoder)
    return [
        Under(r"encoder_vqkd\.", "semantic_encoder.", _tower_rules(built.semantic_encoder)),
        Copy(r"encode_task_layer\.(\d)\.(weight|bias)", r"to_semantic.\1.\2"),
        Under(r"encoder\.", "encoder.", vqgan_rules(built.encoder)),
        Copy(r"quant_conv\.weight", "to_pixel.weight", squeeze=True),
        Copy(r"quant_conv\.bias", "to_pixel.bias"),
        Under(r"quantize\.", "quantizer.quantizer.", TABLES),
        Drop(r"quantize\.codebook_used", "it counts recent codes in training"),
        Under(r"decoder_vqkd\.", "", SEMANTIC_DECODER),
        Constant(r"semantic_decoder\.\d+\.attention\.key\.bias", 0.0, "keys have no bias"),
        Copy(r"decode_task_layer\.(\d)\.(weight|bias)", r"semantic_out.1.\1.\2"),
        Copy(r"post_quant_conv\.weight", "from_pixel.weight", squeeze=True),
        Copy(r"post_quant_conv\.bias", "from_pixel.bias"),
        Under(r"decoder\.", "decoder.", vqgan_rules(built.decoder)),
        Drop(r"scaling_layer\.(shift|scale)", "the tower has them as mean and standard deviation"),
    ]


def _tower_rules(tower: Tower) -> Sequence[Rule]:
    if isinstance(tower, ViTaminTower):
        return TRUNK
    if tower.prefix:
        return [Under(r"(?:visual\.)?", "model.", OPENAI_CLIP)]
    return [Copy(r"vision_model\.(.*)", r"model.\1")]


def shared_mapping(config: Mapping[str, Any]) -> SharedMappingQuantizer:
    """An untrained quantizer of a reference configuration."""
    if not config["l2_norm"]:
        raise ValueError("TokenFlow's quantizer needs l2_norm true, got false, which its own code cannot run either")
    semantic, pixel = config["split"]
    return SharedMappingQuantizer(
        semantic, pixel, config["n_e"], commitment=config["beta"], entropy=config["entropy_loss_ratio"]
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
