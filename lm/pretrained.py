"""A shared language model on top of a pretrained one: its weights from a local folder, and new rows for the rest."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..tokenizers.codes import CodeSpec
from .config import SharedLMConfig, known_fields
from .embedding import CodebookEmbedding
from .heads import default_head
from .model import SharedLM
from .vocabulary import Vocabulary

RowPlace = Literal["apart", "joined"]
Start = Literal["mean", "random", "codebook"]

#: Variance of ``mean`` rows around the mean, as a fraction of the variance of the old rows.
_SPREAD = 1e-5
#: Where a backbone's configuration does not say how its weights were drawn.
_USUAL_RANGE = 0.02


def from_backbone(
    checkpoint: str | Path,
    vocabulary: Vocabulary | None,
    spec: CodeSpec,
    fingerprint: str,
    head: Mapping[str, Any] | None = None,
    rows: RowPlace = "apart",
    start: Start = "mean",
    vectors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **parts: Any,
) -> SharedLM:
    """A model that starts from a pretrained causal language model.

    Args:
        checkpoint: local folder that ``save_pretrained`` of ``transformers`` wrote; nothing is downloaded.
        vocabulary: text with the ids of the checkpoint, as many as its embedding has rows; blocks for the codebooks of
            ``spec`` are added. None takes the tokenizer in the folder.
        spec: the codes it reads and writes.
        fingerprint: of the tokenizer that makes them.
        head: how codes are written, see :meth:`SharedLM.build`.
        rows: where the rows of specials and codes are: ``apart`` from the pretrained ones, which can then rest, or
            ``joined`` with them in one matrix, tied where the pretrained model ties its own.
        start: what the new rows are, see :func:`start_rows`.
        vectors: of :meth:`VisualTokenizer.code_vectors`, ``[K, C]`` for every codebook: for ``codebook`` rows, and for
            codes that enter by ``codebook``.
        dtype: of all weights.
        parts: the other fields of :class:`SharedLMConfig`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no causal language model, weights that are missing or of no use, a vocabulary of
            another number of text ids than it has rows, a backbone whose logits are more than products with its rows,
            or vectors that are needed and not given.
    """
    backbone = _loaded(Path(checkpoint), dtype)
    count = int(backbone.config.vocab_size)
    text = Vocabulary.from_tokenizer(str(checkpoint), count) if vocabulary is None else vocabulary
    if text.text_size != count:
        raise ValueError(
            f"the vocabulary must have as many text ids as the embedding in {checkpoint} has rows, {count}, got "
            f"{text.text_size}; make it with Vocabulary.from_tokenizer and rows {count}"
        )
    shared = text.with_codebooks(spec.codebooks)
    if rows == "joined":
        backbone.resize_token_embeddings(shared.size, mean_resizing=False)
    chosen = default_head(spec) if head is None else dict(head)
    fields = _fields(backbone.config)
    config = SharedLMConfig(fields, spec.to_dict(), shared.size, fingerprint, chosen, new_rows=rows == "apart", **parts)
    model = SharedLM(config, shared, backbone)
    for name, part in model.named_children():
        if name != "backbone":  # which would round the frequencies of its rotary embedding too
            part.to(dtype)
    for parameter in model.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    start_rows(model, start, vectors)
    if isinstance(model.embedding, CodebookEmbedding):
        model.embedding.set_vectors(_needed(vectors, spec, "codes that enter by codebook need"))
    if (gap := logit_gap(model, backbone)) > tolerance(dtype):
        raise ValueError(
            f"logits of a backbone must be products of its states with its rows, got a {backbone.config.model_type} "
            f"whose own differ by {gap:.1%}, because it scales, shifts or caps something on the way; use another, such "
            "as llama, qwen2, qwen3, mistral or gpt2"
        )
    return model.eval()


@torch.no_grad()
def start_rows(model: SharedLM, start: Start = "mean", vectors: Mapping[str, Tensor] | None = None) -> None:
    """Set the input and output rows of specials and codes, given those of the text.

    Args:
        model: its text rows are trained; of those only the ones that have a piece count.
        start: ``mean``: all like the mean of the text rows, apart by a hundred-thousandth of their variance, so that
            none of them is likely or unlikely before it is trained
            (https://nlp.stanford.edu/~johnhew/vocab-expansion.html, with the variance by channel in place of the
            covariance). ``random``: normal, as the backbone's weights were drawn. ``codebook``: of codes a random
            projection of ``vectors``, with the mean and the standard deviation of the text rows by channel, so that
            codes that look alike start alike; of specials as ``mean``.
        vectors: of :meth:`VisualTokenizer.code_vectors`, ``[K, C]`` for every codebook.

    Raises:
        ValueError: an unknown start, or ``codebook`` without vectors of every codebook.
    """
    if start not in ("mean", "random", "codebook"):
        raise ValueError(f"new rows start as mean, random or codebook, got {start!r}; choose one of them")
    vocabulary = model.vocabulary
    books = _needed(vectors, model.spec, "rows that start as codebook need") if start == "codebook" else {}
    pieces = vocabulary.pieces.names() if vocabulary.pieces else []
    used = torch.tensor([i for i, name in enumerate(pieces) if name], dtype=torch.int64)
    new = range(vocabulary.text_size, vocabulary.size)
    for table in (model.inputs,) if _tied(model) else (model.inputs, model.outputs):
        old = torch.cat(table.parts(range(vocabulary.text_size)))[used].float()
        noise = torch.randn(len(new), old.shape[1])
        if start == "random":
            made = noise * (getattr(model.backbone.config, "initializer_range", None) or _USUAL_RANGE)
        else:
            made = old.mean(0) + noise * old.std(0, correction=0) * _SPREAD**0.5
        for name, points in books.items():
            block = vocabulary.block(name)
            own = slice(block.start - new.start, block.stop - new.start)
            made[own] = old.mean(0) + _projected(points, old.shape[1]) * old.std(0, correction=0)
        parts = table.parts(new)
        for part, rows in zip(parts, made.split([len(part) for part in parts]), strict=True):
            part.copy_(rows)


@torch.no_grad()
def logit_gap(model: SharedLM, plain: PreTrainedModel) -> float:
    """How far logits that a model computes from its rows are from those of a plain causal language model.

    Args:
        model: its text, specials and codes are read as ids; what it adds for positions is left out.
        plain: with the first of its rows, or all.

    Returns:
        The largest difference over a few ids, as a fraction of the largest logit.
    """
    count = int(plain.config.vocab_size)
    ids = torch.linspace(0, count - 1, min(8, count), device=model.device).long()[None]
    with _evaluated(model), _evaluated(plain):
        own = plain(input_ids=ids, use_cache=False).logits.float()
        states = model.backbone.base_model(inputs_embeds=model.inputs.embed(ids), use_cache=False).last_hidden_state
        found = model.outputs.logits(states, range(count)).float()
    return float((found - own).abs().max() / own.abs().max().clamp_min(1e-12))


def tolerance(dtype: torch.dtype) -> float:
    """The largest :func:`logit_gap` that rounding explains."""
    return max(1e-3, 4 * torch.finfo(dtype).eps)


@contextmanager
def _evaluated(module: nn.Module) -> Generator[None]:
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def _loaded(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"a pretrained language model was expected in the folder {folder}, got no such folder; nothing is "
            "downloaded, so put one there first"
        )
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"{folder} does not hold a readable causal language model ({reason}); save one there with save_pretrained"
        ) from error
    model, report = loaded
    differing = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if differing:
        raise ValueError(
            f"weights in {folder} must be those of a {type(model).__name__} key by key, got {differing}; save it again "
            "as a model with a language modelling head"
        )
    return model


def _fields(config: PretrainedConfig) -> dict[str, Any]:
    """What makes the backbone, without what says where it came from and how it was stored."""
    common = PretrainedConfig().to_dict()
    known = known_fields(str(config.model_type)) - {"_name_or_path"}
    fields = config.to_dict()
    return {name: value for name, value in fields.items() if name in known and name not in common} | {
        "model_type": config.model_type
    }


def _needed(vectors: Mapping[str, Tensor] | None, spec: CodeSpec, what: str) -> Mapping[str, Tensor]:
    given = {} if vectors is None else {name: list(table.shape) for name, table in vectors.items()}
    if any(given.get(book.name, [0])[0] != book.size for book in spec.codebooks):
        expected = ", ".join(f"{book.name} {book.size}" for book in spec.codebooks)
        raise ValueError(f"{what} a vector of every code ({expected}), got {given or None}; give the tokenizer's own")
    return {} if vectors is None else {book.name: vectors[book.name] for book in spec.codebooks}


def _projected(points: Tensor, width: int) -> Tensor:
    """``[K, width]`` float32 of mean 0 and variance near 1: points ``[K, C]``, turned and scaled."""
    centred = points.detach().float().cpu() - points.detach().float().cpu().mean(0)
    scale = centred.std(correction=0).clamp_min(1e-6) * points.shape[1] ** 0.5
    return centred @ torch.randn(points.shape[1], width) / scale


def _tied(model: SharedLM) -> bool:
    return model.inputs.pieces[-1] is model.outputs.pieces[-1]
