"""A shared language model as a plain causal language model of ``transformers``, which other engines can serve.

A plain model reads and writes one id a step and knows nothing of images: whoever serves it picks codes among the ids of
their block, which ``vocabulary.json`` names, and opens an image with ``<image>``.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import AddedToken

from ..data.files import atomic_folder
from .adapters import merged_state
from .model import SharedLM
from .pieces import HubPieces
from .pretrained import logit_gap, tolerance
from .vocabulary import Vocabulary


def export_llama(model: SharedLM, folder: str | Path) -> None:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` reads, whole or not at all.

    It holds the backbone as the class that it is (``LlamaForCausalLM`` for llama) with one matrix of all V rows,
    adapters merged into the weights, the settings of generation, and the vocabulary. Where the text is that of a
    Hugging Face tokenizer, this tokenizer is written too, with specials and codes (``<pixel_00000>``) as tokens of one
    id each. The folder is read back before it takes its place, and must give the logits of the model.

    Args:
        model: with a flat head, whose codes enter as rows of the vocabulary and nothing else.
        folder: what it held is replaced.

    Raises:
        ValueError: a model that does what a plain one cannot, logits that differ, or a tokenizer that does not take the
            tokens over with their ids.
    """
    if reason := _hindrance(model):
        raise ValueError(f"a plain language model reads and writes one id a step, got {reason}")
    with atomic_folder(folder) as partial:
        _joined(model).save_pretrained(partial)
        model.vocabulary.save_pretrained(partial)
        if isinstance(model.vocabulary.pieces, HubPieces):
            _extended(model.vocabulary.pieces, model.vocabulary).save_pretrained(partial)
        safely: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(partial, dtype=model.backbone.dtype, **safely)
        gap = logit_gap(model, loaded.to(model.device))
        if gap > tolerance(model.backbone.dtype):
            raise ValueError(
                f"an exported model must give the logits of the one it was made of, got a "
                f"{model.backbone.config.model_type} whose logits differ by {gap:.1%}, because it scales, shifts or "
                "caps something that this model does not; use another backbone, such as llama, qwen2 or mistral"
            )


def _hindrance(model: SharedLM) -> str:
    """The first thing that a plain model cannot do, and the setting without it; empty where there is none."""
    config = model.config
    head, embedding = config.head.get("kind", "flat"), config.embedding.get("kind", "sum")
    cases = {
        f"a {head} head; train with head kind flat": head != "flat",
        f"codes that enter by {embedding}; train with embedding kind sum": embedding != "sum",
        "learned vectors for the places of codes; train with embedding places false": model.positions is not None,
        f"{config.rotary} places; train with rotary sequence": config.rotary != "sequence",
        f"{config.classes} classes as conditions; train on captions, with classes 0": model.classes is not None,
        "vectors as conditions; train on captions, without vectors": model.vectors is not None,
    }
    return next((reason for reason, holds in cases.items() if holds), "")


def _joined(model: SharedLM) -> PreTrainedModel:
    """The backbone with one matrix of V rows; not to be called, because what is no weight has no values."""
    backbone, vocabulary = model.backbone, model.vocabulary
    state = merged_state(backbone)
    inputs, outputs = torch.cat([*model.inputs.pieces]), torch.cat([*model.outputs.pieces])
    tied = model.inputs.pieces[-1] is model.outputs.pieces[-1]
    names = {id(module): name for name, module in backbone.named_modules()}
    state[f"{names[id(backbone.get_input_embeddings())]}.weight"] = inputs.detach()
    state[f"{names[id(backbone.get_output_embeddings())]}.weight"] = (inputs if tied else outputs).detach()
    config = deepcopy(backbone.config)
    config.vocab_size, config.tie_word_embeddings = vocabulary.size, tied
    ids = {
        f"{name}_token_id": vocabulary.special(f"<{name}>") if vocabulary.specials else None
        for name in ("bos", "eos", "pad")
    }
    for name, value in ids.items():
        setattr(config, name, value)
    with torch.device("meta"):
        plain = type(backbone)(config)
    plain.load_state_dict(state, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(**ids)
    return plain


def _extended(pieces: HubPieces, vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that knows specials and codes by name, each with its id."""
    tokenizer, names = deepcopy(pieces.tokenizer), list(vocabulary.tokens())
    first = max(tokenizer.get_vocab().values()) + 1
    unused = [f"<unused_{i}>" for i in range(first, pieces.size)]  # rows of the embedding without a piece
    special = [*unused, *vocabulary.specials]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special], special_tokens=True)
    codes = names[len(vocabulary.specials) :]  # not special: they are part of the answer
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in codes])
    for name in ("bos", "eos", "pad"):
        setattr(tokenizer, f"{name}_token", f"<{name}>")
    written = tokenizer(names, add_special_tokens=False)["input_ids"]
    for i, (name, found) in enumerate(zip(names, written, strict=True), pieces.size):
        if found != [i]:
            raise ValueError(
                f"the exported tokenizer must write {name} as the id {i}, got {found}; use a text tokenizer whose ids "
                "have no gaps and that has no such token"
            )
    return tokenizer
