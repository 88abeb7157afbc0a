"""LlamaGen's language models of image codes, for classes and for captions (https://arxiv.org/abs/2406.06525;
FoundationVision/LlamaGen, MIT).

They are Llama models of codes alone. Conditions come first and stand nowhere on the grid: their queries and keys are
zero. What differs from ``transformers``' Llama is which channels of a head make a pair and turn together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mode
from typing import Any

from torch import Tensor

from ..generation.sampler import Condition
from ..lm.model import SharedLM
from ..lm.vocabulary import Vocabulary
from ..tokenizers.codes import Codebook, CodeLayout, CodeSpec
from .forced import Forced
from .golden import Golden
from .keymap import Copy, Rule, Split, Under

#: Width of a released size -> heads of its attention, and the guidance that its FID was measured with.
SIZES: Mapping[int, tuple[int, float]] = {
    768: (12, 2.0),
    1024: (16, 2.0),
    1280: (20, 1.75),
    1536: (24, 1.75),
    3200: (32, 1.65),
}

_RELEASED: Mapping[str, Any] = {
    "n_head": None,  # by width, see SIZES
    "n_kv_head": None,  # as many as n_head
    "rope_base": 10000,
    "norm_eps": 1e-5,
    "vocab_size": 16384,
    "grid": 16,
}
#: Configuration of the released GPT-B for classes of ImageNet at 256 px; at 384 px ``grid`` is 24.
C2I: Mapping[str, Any] = {
    "dim": 768,
    "n_layer": 12,
    "ffn_hidden": 2048,
    "num_classes": 1000,
    **_RELEASED,
}
#: Configuration of the released GPT-XL for captions at 256 px, which it reads as features of FLAN-T5-XL; at 512 px
#: ``grid`` is 32.
T2I: Mapping[str, Any] = {
    "dim": 1280,
    "n_layer": 36,
    "ffn_hidden": 3584,
    "caption_dim": 2048,
    "cls_token_num": 120,
    **_RELEASED,
}

#: Field of a configuration -> weights that show it: their name and the dimension.
_SHOWN: Mapping[str, Sequence[tuple[str, int]]] = {
    "dim": (("output.weight", 1), ("tok_embeddings.weight", 1), ("norm.weight", 0)),
    "vocab_size": (("output.weight", 0), ("tok_embeddings.weight", 0)),
    "ffn_hidden": tuple((f"layers.0.feed_forward.w{part}.weight", dim) for part, dim in ((1, 0), (3, 0), (2, 1))),
    "num_classes": (("cls_embedding.embedding_table.weight", 0),),
    "caption_dim": (("cls_embedding.uncond_embedding", 1), ("cls_embedding.cap_proj.fc1.weight", 1)),
    "cls_token_num": (("cls_embedding.uncond_embedding", 0),),
}


def class_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for classes; see :data:`C2I` for its fields.

    It knows no tokenizer: the fingerprint in its configuration is empty.

    Raises:
        ValueError: ``n_head`` absent at a width that was not released.
    """
    sampling = {"guidance": SIZES[config["dim"]][1]} if config["dim"] in SIZES else {}
    return code_model(config, 1, classes=config["num_classes"], sampling=sampling)


def caption_model(config: Mapping[str, Any]) -> SharedLM:
    """An untrained model of a reference configuration for captions; see :data:`T2I`, otherwise as :func:`class_model`.

    It reads features of a text encoder without the padding that stands before them.
    """
    count = config["cls_token_num"]
    vectors = {"dim": config["caption_dim"], "bias": False, "activation": "gelu_tanh", "null": count}
    return code_model(config, count, vectors=vectors, sampling={"guidance": 7.5, "top_k": 1000})


def shown(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a configuration that shapes of weights show, by majority; of those that are absent, none."""
    shapes = {(name, dim): size for name, weight in weights.items() for dim, size in enumerate(weight.shape)}
    sizes = {field: [shapes[place] for place in places if place in shapes] for field, places in _SHOWN.items()}
    found = {field: mode(each) for field, each in sizes.items() if each}
    if "num_classes" in found:
        found["num_classes"] -= 1  # the last row stands for none
    layers = [int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))]
    return found | ({"n_layer": 1 + max(layers)} if layers else {})


def half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows ``[heads * head_dim, ...]`` in the order of ``transformers``' Llama.

    LlamaGen turns the channels 2i and 2i + 1 of a head together, Llama there i and i + head_dim / 2. Attention does not
    notice the order as long as queries and keys share it.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def block_rules(model: SharedLM) -> list[Rule]:
    """Reference names within a block."""
    config = model.backbone.config
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    reorder = partial(half_split, head_dim=config.head_dim)
    return [
        Split(
            r"attention\.wqkv\.weight",
            "self_attn.{part}_proj.weight",
            ("q", "k", "v"),
            (queries, keys, keys),
            {"q": reorder, "k": reorder},
        ),
        Copy(r"attention\.wo\.weight", "self_attn.o_proj.weight"),
        Copy(r"attention_norm\.weight", "input_layernorm.weight"),
        Copy(r"ffn_norm\.weight", "post_attention_layernorm.weight"),
        Copy(r"feed_forward\.w1\.weight", "mlp.gate_proj.weight"),
        Copy(r"feed_forward\.w3\.weight", "mlp.up_proj.weight"),
        Copy(r"feed_forward\.w2\.weight", "mlp.down_proj.weight"),
    ]


def rules(model: SharedLM) -> list[Rule]:
    """Reference names of the whole model."""
    return [
        Copy(r"tok_embeddings\.weight", "backbone.model.embed_tokens.weight"),
        Under(r"layers\.(\d+)\.", r"backbone.model.layers.\1.", block_rules(model)),
        Copy(r"norm\.weight", "backbone.model.norm.weight"),
        Copy(r"output\.weight", "backbone.lm_head.weight"),
        Copy(r"cls_embedding\.embedding_table\.weight", "classes.weight"),
        Copy(r"cls_embedding\.cap_proj\.fc1\.weight", "vectors.first.weight"),
        Copy(r"cls_embedding\.cap_proj\.fc2\.weight", "vectors.second.weight"),
        Copy(r"cls_embedding\.uncond_embedding", "vectors.null"),
    ]


def replay_classes(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``llamagen_c2i`` files; see :func:`replay_captions`."""
    teacher = Forced.of(golden, class_model(golden.config), rules)
    classes: list[Condition] = golden.inputs["class_ids"].tolist()
    free = teacher.logits(golden.inputs["tokens"], [None] * len(classes))
    return {"logits_null": free, **_replayed(golden, teacher, classes)}


def replay_captions(golden: Golden) -> dict[str, Tensor]:
    """Outputs of ``llamagen_t2i`` files.

    The rows of a caption that are padding are left out, which is what masking them does. Tokens come from the sampler
    with its cache; the logits beside them are those of one pass over the tokens just written, for both branches.
    """
    teacher = Forced.of(golden, caption_model(golden.config), rules)
    return _replayed(golden, teacher, captions(golden))


def captions(golden: Golden) -> list[Condition]:
    """The features of every caption of a file, without its padding."""
    rows = zip(golden.inputs["caption"], golden.inputs["caption_mask"].bool(), strict=True)
    return [caption[mask] for caption, mask in rows]


def code_model(config: Mapping[str, Any], conditions: int, **parts: Any) -> SharedLM:
    """An untrained Llama of codes in a square grid, as LlamaGen's and those made from it.

    Args:
        config: see :data:`C2I`.
        conditions: rows before the codes.
        parts: fields of :class:`~smalti.lm.config.SharedLMConfig` beside those that all have.
    """
    width, grid = config["dim"], config["grid"]
    if not config["n_head"] and width not in SIZES:
        raise ValueError(
            f"LlamaGen's models are {', '.join(map(str, SIZES))} channels wide, got {width}, which does not tell the "
            "number of heads; give n_head"
        )
    heads = config["n_head"] or SIZES[width][0]
    backbone = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": config["n_kv_head"] or heads,
        "intermediate_size": config["ffn_hidden"],
        "rms_norm_eps": config["norm_eps"],
        "rope_theta": config["rope_base"],
        "max_position_embeddings": conditions + grid * grid,
        "tie_word_embeddings": False,
    }
    spec = CodeSpec(CodeLayout("grid", (grid, grid)), (Codebook("pixel", config["vocab_size"]),))
    options = {"embedding": {"places": False}, "rotary": "axial", **parts}
    return SharedLM.build(backbone, Vocabulary(), spec, "", {"kind": "flat"}, **options)


def _replayed(golden: Golden, teacher: Forced, conditions: Sequence[Condition]) -> dict[str, Tensor]:
    config, steps = golden.config, teacher.model.layout.steps
    runs: dict[str, tuple[float, int]] = {"greedy": (1.0, 0)}  # guidance and how many steps have it
    runs |= {f"greedy_cfg{at}": (scale, steps) for at, scale in enumerate(config["cfg_scales"])}
    if "cfg_interval" in config:  # passes after the one that reads the condition, counted from 0
        runs["greedy_cfg_interval"] = config["cfg_scales"][0], config["cfg_interval"] + 2
    return teacher.learned(conditions) | teacher.greedy(conditions, runs)
