"""The shared language model: any ``transformers`` causal LM that reads and writes text and visual codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from ..data.files import atomic_folder
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import CodeSpec
from .embedding import CodePositions, embed_tokens
from .heads import BlockLoss, block_logits, code_head, merged
from .layout import TEXT, Batch, SequenceLayout
from .vocabulary import LAYOUT_FILE, MODEL_FILE, Vocabulary


class SharedLMConfig(PretrainedConfig):
    """What a :class:`SharedLM` is made of.

    Args:
        backbone: fields of a ``transformers`` configuration, ``model_type`` among them.
        spec: a :class:`CodeSpec` as a dict.
        vocabulary_size: V, ids of text, specials and codes together.
        tokenizer_fingerprint: which tokenizer the codes come from.
        head: how codes are written: ``kind`` (``flat`` by default, or ``depth``) and its options, see
            :func:`~smalti.lm.heads.code_head`.
        sampling: how codes are drawn where nobody says otherwise: fields of
            :class:`~smalti.generation.sampler.Sampling`.
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
        **kwargs: Any,
    ) -> None:
        self.backbone, self.spec, self.head = backbone or {}, spec or {}, head or {}
        self.sampling = sampling or {}
        self.vocabulary_size, self.tokenizer_fingerprint = vocabulary_size, tokenizer_fingerprint
        super().__init__(**kwargs)


@dataclass(frozen=True)
class LMOutput:
    """Result of a training pass."""

    loss: Tensor  #: scalar, weighted sum of the block losses
    blocks: Mapping[str, BlockLoss]  #: ``text`` and every codebook


class SharedLM(PreTrainedModel):
    """A causal LM over one vocabulary of text, specials and codes.

    ``save_pretrained`` and ``from_pretrained`` keep weights, code spec, vocabulary and the fingerprint of the tokenizer
    together in one folder.

    Args:
        config: see :class:`SharedLMConfig`; :meth:`build` makes one from parts.
        vocabulary: text pieces and code blocks.

    Raises:
        ValueError: a vocabulary that does not fit the configuration, a backbone of unknown type or fields, or a head of
            unknown kind or options.
    """

    config_class = SharedLMConfig
    base_model_prefix = "backbone"
    main_input_name = "tokens"

    def __init__(self, config: SharedLMConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.spec, self.vocabulary = CodeSpec.from_dict(config.spec), vocabulary
        if vocabulary.size != config.vocabulary_size:
            raise ValueError(
                f"the model was built for {config.vocabulary_size} ids, its vocabulary has {vocabulary.size}; "
                "load both from the same folder"
            )
        self.backbone = AutoModelForCausalLM.from_config(_backbone_config(config.backbone, vocabulary))
        width = int(self.backbone.config.hidden_size)
        self.head = code_head(config.head, vocabulary, self.spec, width)
        self.layout = SequenceLayout(vocabulary, self.spec, self.head.per_step)
        self.positions = CodePositions(self.spec, self.head.per_step, width)
        self.post_init()

    @classmethod
    def build(
        cls,
        backbone: Mapping[str, Any],
        vocabulary: Vocabulary,
        spec: CodeSpec,
        fingerprint: str,
        head: Mapping[str, Any] | None = None,
    ) -> Self:
        """A model from scratch.

        Args:
            backbone: fields of a ``transformers`` configuration, ``model_type`` among them (``llama``, ``qwen2``, ...).
            vocabulary: text ids; blocks for the codebooks of ``spec`` are added.
            spec: the codes it reads and writes.
            fingerprint: of the tokenizer that makes them.
            head: how codes are written, see :func:`~smalti.lm.heads.code_head`; ``flat`` by default.
        """
        shared = vocabulary.with_codebooks(spec.codebooks)
        return cls(SharedLMConfig(dict(backbone), spec.to_dict(), shared.size, fingerprint, dict(head or {})), shared)

    @torch.no_grad()
    def start_from_codebooks(self, vectors: Mapping[str, Tensor]) -> None:
        """Set the input and output rows of the codes to a random projection of what the codes stand for.

        Codes that look alike then start alike, which spares the model learning it from examples.

        Args:
            vectors: of :meth:`VisualTokenizer.code_vectors`, ``[K, C]`` for every codebook.
        """
        for name, table in vectors.items():
            block = self.vocabulary.block(name)
            spread = (table - table.mean(0)) / table.std().clamp_min(1e-6)
            for matrix in (self.input_matrix, self.output_matrix):
                projection = torch.randn(table.shape[1], matrix.shape[1]) * table.shape[1] ** -0.5
                rows = spread.to(matrix) @ projection.to(matrix) * self.backbone.config.initializer_range
                matrix[block.start : block.stop] = rows

    def states(self, tokens: Tensor, slots: Tensor, **options: Any) -> Tensor:
        """Hidden states ``[B, T, C]`` of tokens ``[B, T, W]`` at slots ``[B, T]``.

        ``options`` go to the backbone (cache, mask, positions).
        """
        embedded = embed_tokens(tokens, self.input_matrix) + self.positions(slots)
        return self.backbone.base_model(inputs_embeds=embedded, **options).last_hidden_state

    def forward(self, batch: Batch | Sequence[Batch], weights: Mapping[str, float] | None = None) -> LMOutput:
        """Loss of a batch, right-padded and causal.

        Args:
            batch: from :meth:`SequenceLayout.collate`. Several count as one, and need no padding to a common length.
            weights: of the block losses ``text`` and every codebook; 1 where absent.

        Raises:
            ValueError: sequences longer than the backbone was built for.
        """
        batches = [batch] if isinstance(batch, Batch) else batch
        blocks = merged([self._losses(part) for part in batches])
        total = torch.stack([(weights or {}).get(name, 1.0) * block.mean for name, block in blocks.items()]).sum()
        return LMOutput(total, blocks)

    def text_likelihood(self, batch: Batch) -> Tensor:
        """Log-likelihood ``[B]``, float32 nats, of the text that each sequence learns; codes it learns do not count.

        Args:
            batch: from :meth:`SequenceLayout.collate`.

        Raises:
            ValueError: sequences longer than the backbone was built for.
        """
        words = (batch.learned & (batch.slots == TEXT))[:, 1:]
        logits = block_logits(self._hidden(batch)[:, :-1][words], self.output_matrix, self.head.text).float()
        nats = F.cross_entropy(logits, batch.tokens[:, 1:][words][:, 0] - self.head.text.start, reduction="none")
        return -torch.zeros(words.shape, device=nats.device).masked_scatter(words, nats).sum(1)

    def next_state(self, rows: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """The state that predicts the next step, with keys and values of ``rows`` added to the cache.

        Args:
            rows: ``[B, T, W + 1]`` (tokens, slot), the part the cache has not seen.
            cache: of the earlier steps; extended in place.
            mask: ``[B, S + T]`` int64, 0 where a row is padded on its left.

        Returns:
            ``[B, C]``.

        Raises:
            ValueError: a sequence longer than the backbone was built for.
        """
        self._check_length(mask.shape[1])
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -rows.shape[1] :]
        options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        return self.states(rows[..., :-1], rows[..., -1], **options)[:, -1]

    def logits(self, state: Tensor, written: Tensor, slot: int) -> Tensor:
        """Logits of the next token of a step.

        Args:
            state: ``[B, C]`` from :meth:`next_state`.
            written: ``[B, J]`` tokens that the step has written so far, ``J < W``; ``[B, 0]`` for text.
            slot: of the step, which decides the block.

        Returns:
            ``[B, len(block)]`` float32, of ``head.at(slot)[J]``.
        """
        block = self.head.at(slot)[written.shape[1]]
        if slot != TEXT:
            state = self.head(state, F.embedding(written, self.input_matrix))[:, -1]
        return block_logits(state, self.output_matrix, block).float()

    @property
    def input_matrix(self) -> Tensor:
        """``[V, C]``."""
        return self.backbone.get_input_embeddings().weight

    @property
    def output_matrix(self) -> Tensor:
        """``[V, C]``."""
        return self.backbone.get_output_embeddings().weight

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise unless this model was trained with ``tokenizer``.

        Raises:
            ValueError: another fingerprint; the sentence names both.
        """
        expected, found = self.config.tokenizer_fingerprint, tokenizer.fingerprint()
        if expected != found:
            raise ValueError(
                f"this language model was trained with tokenizer {expected} ({_describe(self.spec)}), got tokenizer "
                f"{found} ({_describe(tokenizer.spec)}); load the tokenizer it was trained with or train it again"
            )

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write weights, configuration and vocabulary to a folder, whole or not at all; the rest is transformers'."""
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)
            self.vocabulary.save_pretrained(folder)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: no name, nothing to load
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a model from a local folder, strictly, in float32 unless ``dtype`` says otherwise.

        Raises:
            FileNotFoundError: no folder, or a file of it is missing.
            ValueError: weights that are damaged or do not match the configuration key by key.
        """
        folder = Path(pretrained_model_name_or_path)
        _check_folder(folder)
        options: dict[str, Any] = {
            "dtype": torch.float32,
            **kwargs,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }  # reported
        options["vocabulary"] = Vocabulary.from_pretrained(str(folder))
        try:
            loaded: Any = super().from_pretrained(folder, **options)
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"{folder} does not hold a readable language model ({reason}); save it again") from error
        model, report = loaded
        differing = {kind: keys for kind, keys in report.items() if keys}
        if differing:
            raise ValueError(f"weights in {folder} must match its configuration key by key, got {differing}")
        return model.eval()

    def _hidden(self, batch: Batch) -> Tensor:
        self._check_length(batch.slots.shape[1])
        mask = torch.ones_like(batch.slots)
        return self.states(batch.tokens, batch.slots, attention_mask=mask, use_cache=False)

    def _losses(self, batch: Batch) -> dict[str, BlockLoss]:
        return self.head.losses(self._hidden(batch), self.input_matrix, self.output_matrix, batch)

    def _check_length(self, length: int) -> None:
        limit = int(self.backbone.config.max_position_embeddings)
        if length > limit:
            raise ValueError(
                f"sequences of this model have at most {limit} tokens, got {length}; "
                "raise max_position_embeddings of the backbone or shorten the text"
            )


def _backbone_config(fields: Mapping[str, Any], vocabulary: Vocabulary) -> PretrainedConfig:
    kind = str(fields.get("model_type"))
    if kind not in CONFIG_MAPPING:
        near = ", ".join(get_close_matches(kind, CONFIG_MAPPING, 3)) or "llama, qwen2, gpt2"
        raise ValueError(f"a backbone needs a model_type that transformers knows, got {kind!r}; near are {near}")
    family = CONFIG_MAPPING[kind]
    known = {*family().to_dict(), *family.attribute_map, "rope_theta"}  # transformers takes unknown fields in silence
    for name in fields:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 3)) or "none"
            raise ValueError(f"a {kind} backbone must have fields of its configuration, got {name!r}; near are {near}")
    ids = {f"{name}_token_id": vocabulary.special(f"<{name}>") for name in ("bos", "eos")}
    complete: dict[str, Any] = {**fields, **ids, "vocab_size": vocabulary.size}
    return family(**complete)


def _check_folder(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set[str]()
    missing = [name for name in ("config.json", "model.safetensors", MODEL_FILE, LAYOUT_FILE) if name not in names]
    if "model.safetensors.index.json" in names:
        missing = [name for name in missing if name != "model.safetensors"]
    if missing:
        raise FileNotFoundError(
            f"{folder} should hold a language model but lacks {', '.join(missing)}; save or train it again"
        )


def _describe(spec: CodeSpec) -> str:
    books = ", ".join(f"{book.name} {book.size}x{book.depth}" for book in spec.codebooks)
    return f"{spec.layout.kind} {'x'.join(map(str, spec.layout.shape))}: {books}"
