"""NAR's language models of image and video codes (Neighboring Autoregressive Modeling, https://arxiv.org/abs/2503.10696;
ThisisBillhe/NAR, no licence stated).

LlamaGen's models with one more block, norm and output matrix for what is below; for video with two more, for what is
below and for what comes next, and a learned table of places instead of a rotary embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..generation.orders import Neighbouring
from ..generation.sampler import Condition
from ..lm.model import SharedLM
from ..lm.vocabulary import Vocabulary
from ..tokenizers.codes import Codebook, CodeLayout, CodeSpec
from . import llamagen_lm
from .forced import Forced, Runs
from .golden import Golden
from .keymap import Copy, Rule, Under
from .llamagen_lm import block_rules, captions, code_model

#: Width of a released size -> heads of its attention, as in LlamaGen.
SIZES: Mapping[int, int] = {width: heads for width, (heads, _) in llamagen_lm.SIZES.items()}

#: Configuration of NAR-B for classes of ImageNet at 256 px.
C2I: Mapping[str, Any] = llamagen_lm.C2I
#: Configuration of NAR-XL for captions at 512 px, read as features of FLAN-T5-XL; its first stage is at 256 px, where
#: ``grid`` is 16.
T2I: Mapping[str, Any] = {**llamagen_lm.T2I, "grid": 32}
#: Configuration of NAR-L for classes of UCF-101; NAR-LP has 30 blocks of 1280 channels.
VIDEO: Mapping[str, Any] = {
    "dim": 1024,
    "n_layer": 24,
    "n_head": None,  # by width, see SIZES
    "n_kv_head": None,  # as many as n_head
    "ffn_hidden": 2816,
    "norm_eps": 1e-5,
    "rope_base": 10000,
    "vocab_size": 8192,
    "num_classes": 101,
    "latent_shape": (4, 16, 16),
}

_ORDER: Mapping[str, Any] = {"order": Neighbouring().fields(), "directions": 2}


def class_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for classes; see :data:`C2I`, otherwise as LlamaGen's."""
    return code_model(config, 1, classes=config["num_classes"], sampling={"guidance": 2.0}, **_ORDER)


def caption_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for captions; see :data:`T2I`, otherwise as LlamaGen's."""
    count = config["cls_token_num"]
    vectors = {"dim": config["caption_dim"], "bias": False, "activation": "gelu_tanh", "null": count}
    return code_model(config, count, vectors=vectors, sampling={"guidance": 7.5}, **_ORDER)


def video_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for classes of videos; see :data:`VIDEO`.

    Raises:
        ValueError: ``n_head`` absent at a width that was not released.
    """
    shape, heads = tuple(config["latent_shape"]), config["n_head"] or SIZES.get(config["dim"])
    if heads is None:
        raise ValueError(
            f"NAR's models of videos are 1024 (L) and 1280 (LP) channels wide, got {config['dim']}, which does not "
            "tell the number of heads; give n_head"
        )
    spec = CodeSpec(CodeLayout("grid", shape), (Codebook("pixel", config["vocab_size"]),))
    backbone = {
        "model_type": "llama",
        "hidden_size": config["dim"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": config["n_kv_head"] or heads,
        "intermediate_size": config["ffn_hidden"],
        "rms_norm_eps": config["norm_eps"],
        "max_position_embeddings": 1 + spec.positions,
        "tie_word_embeddings": False,
    }
    parts = {
        "rotary": "none",
        "classes": config["num_classes"],
        "sampling": {"guidance": 1.25},
        "order": Neighbouring().fields(),
        "directions": sum(side > 1 for side in shape),
    }
    return SharedLM.build(backbone, Vocabulary(), spec, "", {"kind": "flat"}, **parts)


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As :func:`smalti.bridge.llamagen_lm.shown`: the last block is not one of the model but of what is below."""
    found = llamagen_lm.shown(weights)
    return found | ({"n_layer": found["n_layer"] - 1} if "n_layer" in found else {})


def video_shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As :func:`shown`, for models of videos: the last two blocks are of what is below and of what comes next."""
    found = llamagen_lm.shown({name.replace("_R.weight", ".weight"): weight for name, weight in weights.items()})
    return found | ({"n_layer": found["n_layer"] - 2} if "n_layer" in found else {})


def rules(model: SharedLM) -> list[Rule]:
    """Reference names of the models for images."""
    last, block = _layers(model), block_rules(model)
    return [
        Under(rf"layers\.{last}\.", "directions.parts.0.block.", block),
        Copy(r"medusa_norm\.weight", "directions.parts.0.norm.weight"),
        Copy(r"medusa_output\.weight", "directions.parts.0.rows"),
        Copy(r"norm\.weight", "backbone.model.norm.norm.weight"),
        *llamagen_lm.rules(model),
    ]


def video_rules(model: SharedLM) -> list[Rule]:
    """Reference names of the models for videos.

    Conditions stand on the first place of the learned table, which is added to the rows of the classes here.
    """
    first, block = _layers(model), block_rules(model)
    more: list[Rule] = []
    for number, name in enumerate(("D", "B")[: model.config.directions - 1]):
        part = f"directions.parts.{number}."
        more += [
            Under(rf"layers\.{first + number}\.", f"{part}block.", block),
            Copy(rf"norm_{name}\.weight", f"{part}norm.weight"),
            Copy(rf"output_{name}\.weight", f"{part}rows"),
        ]
    return [
        *more,
        Copy(r"norm_R\.weight", "backbone.model.norm.norm.weight"),
        Copy(r"output_R\.weight", "backbone.lm_head.weight"),
        Copy(r"places", "positions.position.weight"),
        Copy(r"columns", "positions.column.weight"),
        *llamagen_lm.rules(model),
    ]


def on_places(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model for videos with its table of places split: that of the condition is added to the classes.

    Where one of the two is missing or has another width, the key map says so.
    """
    found, classes = dict(weights), "cls_embedding.embedding_table.weight"
    if "abs_pe" not in found or found["abs_pe"].ndim < 2:
        return found
    table = found.pop("abs_pe").flatten(0, -2)
    if classes in found and found[classes].shape[-1] == table.shape[-1]:
        found[classes] = found[classes] + table[0]
    return found | {"places": table[1:], "columns": torch.zeros_like(table[:1])}


def replay_classes(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``nar_c2i`` files; see :func:`smalti.bridge.llamagen_lm.replay_captions`."""
    teacher = Forced.of(golden, class_model(golden.config), rules)
    classes: list[Condition] = golden.inputs["class_ids"].tolist()
    free = teacher.logits(golden.inputs["tokens"], [None] * len(classes))
    return {"logits_null": free, **_heads(teacher, classes), **_replayed(teacher, classes)}


def replay_captions(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``nar_t2i`` files; see :func:`smalti.bridge.llamagen_lm.replay_captions`."""
    teacher, given = Forced.of(golden, caption_model(golden.config), rules), captions(golden)
    return {**_heads(teacher, given), **_replayed(teacher, given)}


def replay_video(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``nar_video`` files."""
    split = replace(golden, weights=on_places(golden.weights))
    teacher = Forced.of(split, video_model(golden.config), video_rules)
    classes: list[Condition] = golden.inputs["class_ids"].tolist()
    return _replayed(teacher, classes)


def _layers(model: SharedLM) -> int:
    return int(model.backbone.config.num_hidden_layers)


def _heads(teacher: Forced, conditions: Sequence[Condition]) -> dict[str, Tensor]:
    right, below = teacher.heads(teacher.golden.inputs["tokens"], conditions)
    return {"head_right": right, "head_below": below}


def _replayed(teacher: Forced, conditions: Sequence[Condition]) -> dict[str, Tensor]:
    config, plan = teacher.golden.config, teacher.plan
    passes = len(plan.sizes)
    runs: dict[str, tuple[float, int]] = {"greedy": (1.0, 0)}
    runs |= {f"greedy_cfg{at}": (scale, passes) for at, scale in enumerate(config["cfg_scales"])}
    if config.get("cfg_interval") is not None:  # passes that begin with more tokens than that are not guided
        ends = [step for step in range(1, passes) if plan.starts[step] > config["cfg_interval"]]
        runs["greedy_cfg_interval"] = config["cfg_scales"][0], ends[0] if ends else passes
    checked: Runs = runs
    return teacher.learned(conditions) | teacher.greedy(conditions, checked)
