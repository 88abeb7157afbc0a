"""What a shared language model is made of, as its configuration says it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from .vocabulary import Vocabulary


class SharedLMConfig(PretrainedConfig):
    """What a :class:`SharedLM` is made of.

    Args:
        backbone: fields of a ``transformers`` configuration, ``model_type`` among them.
        spec: a :class:`CodeSpec` as a dict.
        vocabulary_size: V, ids of text, specials and codes together.
        tokenizer_fingerprint: which tokenizer the codes come from.
        head: how codes are written: ``kind`` and its options, see :func:`~smalti.lm.heads.code_head`.
        embedding: how codes enter: ``kind`` (``sum`` by default) and its options, see
            :func:`~smalti.lm.embedding.code_embedding`; ``places``, false for no learned positions and columns.
        rotary: where steps stand for the backbone's attention, see :mod:`~smalti.lm.positions`.
        classes: number of classes, for models that are conditioned on one; 0 for none.
        vectors: fields of a :class:`~smalti.lm.embedding.VectorProjector`, for models that read continuous features.
        new_rows: keep the rows of specials and codes apart from the backbone's own, which then has its pretrained size.
        sampling: how codes are drawn where nobody says otherwise: fields of
            :class:`~smalti.generation.sampling.Sampling`.
        order: in which order images are written: ``kind`` and its options, see
            :func:`~smalti.generation.orders.order_of`; raster by default.
        directions: that the order predicts in.
        queries: learned vectors that the order needs.
    """

    model_type = "smalti"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        spec: dict[str, Any] | None = None,
        vocabulary_size: int = 0,
        tokenizer_fingerprint: str = "",
        head: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        embedding: dict[str, Any] | None = None,
        rotary: str = "sequence",
        classes: int = 0,
        vectors: dict[str, Any] | None = None,
        new_rows: bool = False,
        order: dict[str, Any] | None = None,
        directions: int = 1,
        queries: int = 0,
        **kwargs: Any,
    ) -> None:
        self.backbone, self.spec, self.head = backbone or {}, spec or {}, head or {}
        self.sampling, self.embedding, self.rotary = sampling or {}, embedding or {}, rotary
        self.classes, self.vectors, self.new_rows = classes, vectors, new_rows
        self.order, self.directions, self.queries = order or {}, directions, queries
        self.vocabulary_size, self.tokenizer_fingerprint = vocabulary_size, tokenizer_fingerprint
        super().__init__(**kwargs)


def known_fields(kind: str) -> set[str]:
    """Names of the fields that the configuration of a ``model_type`` has."""
    family = CONFIG_MAPPING[kind]
    return {*family().to_dict(), *family.attribute_map, "rope_theta"}


def backbone_config(config: SharedLMConfig, vocabulary: Vocabulary) -> PretrainedConfig:
    """The configuration of the backbone, with as many rows as it has of its own.

    Raises:
        ValueError: a model type or a field that transformers does not know; near ones are named.
    """
    fields = config.backbone
    kind = str(fields.get("model_type"))
    if kind not in CONFIG_MAPPING:
        near = ", ".join(get_close_matches(kind, CONFIG_MAPPING, 3)) or "llama, qwen2, gpt2"
        raise ValueError(f"a backbone needs a model_type that transformers knows, got {kind!r}; near are {near}")
    family = CONFIG_MAPPING[kind]
    known = known_fields(kind)  # transformers takes unknown ones in silence
    for name in fields:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 3)) or "none"
            raise ValueError(f"a {kind} backbone must have fields of its configuration, got {name!r}; near are {near}")
    size = vocabulary.text_size if config.new_rows else vocabulary.size
    ids: dict[str, int | None] = {}
    if config.new_rows:  # specials have no rows in the backbone's own matrix
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    elif vocabulary.text_size:
        ids = {f"{name}_token_id": vocabulary.special(f"<{name}>") for name in ("bos", "eos")}
    complete: dict[str, Any] = {**fields, **ids, "vocab_size": size}
    return family(**complete)
