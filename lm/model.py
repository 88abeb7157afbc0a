"""The shared language model: any ``transformers`` causal LM that reads and writes text and visual codes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, initialization
from transformers.cache_utils import Cache

from ..data.files import atomic_folder
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import CodeSpec
from .adapters import has_adapters, merged_state
from .config import SharedLMConfig, backbone_config
from .embedding import CodebookEmbedding, CodePositions, VectorProjector, code_embedding, embed_tokens, local_ids
from .heads import BlockLoss, code_head, default_head, merged
from .layout import SequenceLayout
from .positions import places
from .sequences import CLASS, NONE, TEXT, VECTOR, Batch, Rows
from .tables import Table
from .vocabulary import Vocabulary, missing_files


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
        backbone: with its weights, see :func:`~smalti.lm.pretrained.from_backbone`; made anew by default.

    Raises:
        ValueError: a vocabulary that does not fit the configuration, a backbone of unknown type or fields, or a head,
            embedding or places of unknown kind or options.
    """

    config_class = SharedLMConfig
    base_model_prefix = "backbone"
    main_input_name = "tokens"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SharedLMConfig, vocabulary: Vocabulary, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.spec, self.vocabulary = CodeSpec.from_dict(config.spec), vocabulary
        if vocabulary.size != config.vocabulary_size:
            raise ValueError(
                f"the model was built for {config.vocabulary_size} ids, its vocabulary has {vocabulary.size}; "
                "load both from the same folder"
            )
        made = backbone_config(config, vocabulary)
        self.backbone: Any = AutoModelForCausalLM.from_config(made) if backbone is None else backbone
        width = int(self.backbone.config.hidden_size)
        self.head = code_head(config.head, vocabulary, self.spec, width)
        per_step = self.head.per_step
        self.layout = SequenceLayout(vocabulary, self.spec, per_step, config.classes)
        self.embedding = code_embedding(config.embedding, self.spec, per_step, width)
        self.positions = CodePositions(self.spec, per_step, width) if config.embedding.get("places", True) else None
        self.classes = nn.Embedding(config.classes + 1, width) if config.classes else None
        self.vectors = None if config.vectors is None else VectorProjector(width=width, **config.vectors)
        if config.new_rows:
            count = vocabulary.size - vocabulary.text_size
            self.new_inputs = nn.Parameter(torch.empty(count, width))
            self.new_outputs = nn.Parameter(torch.empty(count, width))
        self.places = places(config.rotary, self.spec, self.spec.depth // per_step, self.backbone)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.new_rows:
            scale = float(getattr(self.backbone.config, "initializer_range", 0.02))
            for rows in (self.new_inputs, self.new_outputs):
                initialization.normal_(rows, std=scale)  # those of a file that is being loaded are left alone

    @classmethod
    def build(
        cls,
        backbone: Mapping[str, Any],
        vocabulary: Vocabulary,
        spec: CodeSpec,
        fingerprint: str,
        head: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Self:
        """A model from scratch.

        Args:
            backbone: fields of a ``transformers`` configuration, ``model_type`` among them (``llama``, ``qwen2``, ...).
            vocabulary: text ids; blocks for the codebooks of ``spec`` are added.
            spec: the codes it reads and writes.
            fingerprint: of the tokenizer that makes them.
            head: how codes are written, see :func:`~smalti.lm.heads.code_head`; by default ``flat`` where a position
                has one code and ``depth`` where it has several.
            parts: the other fields of :class:`SharedLMConfig`.
        """
        shared = vocabulary.with_codebooks(spec.codebooks)
        chosen = default_head(spec) if head is None else dict(head)
        config = SharedLMConfig(dict(backbone), spec.to_dict(), shared.size, fingerprint, chosen, **parts)
        return cls(config, shared)

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
            for rows in (self.inputs, self.outputs):
                parts = rows.parts(block)
                projection = torch.randn(table.shape[1], parts[0].shape[1]) * table.shape[1] ** -0.5
                made = spread.to(parts[0]) @ projection.to(parts[0]) * self.backbone.config.initializer_range
                for part, new in zip(parts, made.split([len(part) for part in parts]), strict=True):
                    part.copy_(new)
        if isinstance(self.embedding, CodebookEmbedding):
            self.embedding.set_vectors(vectors)

    def embed(self, batch: Batch) -> Tensor:
        """What the backbone reads: ``[B, T, C]``.

        Raises:
            ValueError: steps that this model has no way to read.
        """
        tokens, slots = batch.tokens, batch.slots
        shared = tokens.masked_fill((slots < TEXT)[..., None], NONE)
        embedded = embed_tokens(shared if tokens.shape[-1] > 1 else shared.clamp_min(0), self.inputs)
        if self.embedding is not None:
            code = slots >= 0
            ids = local_ids(tokens[code], slots[code], self.vocabulary, self.spec)
            embedded = _put(embedded, code, self.embedding(ids, slots[code], batch.read_as))
        elif batch.read_as is not None:
            raise ValueError(
                "this model reads codes by their ids, got vectors for them; build it with embedding kind codebook"
            )
        if self.positions is not None:
            embedded = embedded + self.positions(slots)
        return self._with_conditions(embedded, batch)

    def states(self, batch: Batch, **options: Any) -> Tensor:
        """Hidden states ``[B, T, C]`` of the steps of a batch.

        ``options`` go to the backbone (cache, mask, positions).
        """
        return self.backbone.base_model(inputs_embeds=self.embed(batch), **options).last_hidden_state

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

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, T, C]`` of whole sequences, causal; the state at t predicts step t + 1.

        Raises:
            ValueError: sequences longer than the backbone was built for.
        """
        self._check_length(batch.slots.shape[1])
        present = torch.ones_like(batch.slots)
        mask = present if batch.documents is None else self._packed_mask(batch.documents)
        positions = self.places(batch.slots, present.bool(), batch.documents)
        return self.states(batch, attention_mask=mask, position_ids=positions, use_cache=False)

    def text_likelihood(self, batch: Batch) -> Tensor:
        """Log-likelihood ``[B]``, float32 nats, of the text that each sequence learns; codes it learns do not count.

        Args:
            batch: from :meth:`SequenceLayout.collate`.

        Raises:
            ValueError: sequences longer than the backbone was built for.
        """
        words = (batch.learned & (batch.slots == TEXT))[:, 1:]
        logits = self.outputs.logits(self.hidden(batch)[:, :-1][words], self.head.text.ids).float()
        nats = F.cross_entropy(logits, batch.tokens[:, 1:][words][:, 0], reduction="none")
        return -torch.zeros(words.shape, device=nats.device).masked_scatter(words, nats).sum(1)

    def next_state(self, rows: Batch, cache: Cache, slots: Tensor, mask: Tensor) -> Tensor:
        """The state that predicts the next step, with keys and values of new steps added to the cache.

        Args:
            rows: T steps, those that the cache has not seen.
            cache: of the earlier steps; extended in place.
            slots: ``[B, S + T]`` int64, of all steps.
            mask: ``[B, S + T]`` int64, 0 where a step is padding.

        Returns:
            ``[B, C]``.

        Raises:
            ValueError: a sequence longer than the backbone was built for.
        """
        return self.states_after(self.embed(rows), cache, slots, mask)[:, -1]

    def states_after(self, embedded: Tensor, cache: Cache, slots: Tensor, mask: Tensor) -> Tensor:
        """States of new steps, whose keys and values are added to the cache.

        Args:
            embedded: ``[B, T, C]`` of :meth:`embed`, steps that the cache has not seen.
            cache: see :meth:`next_state`, as for the others.
            slots: ``[B, S + T]`` int64.
            mask: ``[B, S + T]`` int64.

        Returns:
            ``[B, T, C]``.

        Raises:
            ValueError: a sequence longer than the backbone was built for.
        """
        self._check_length(mask.shape[1])
        options = {
            "attention_mask": mask,
            "position_ids": self.places(slots, mask.bool())[..., -embedded.shape[1] :],
            "past_key_values": cache,
            "use_cache": True,
        }
        return self.backbone.base_model(inputs_embeds=embedded, **options).last_hidden_state

    def logits(self, state: Tensor, written: Tensor, slot: int) -> Tensor:
        """Logits of the next token of a step.

        Args:
            state: ``[B, C]`` from :meth:`next_state`.
            written: ``[B, J]`` tokens that the step has written so far, ``J < W``; ``[B, 0]`` for text.
            slot: of the step, which decides the block.

        Returns:
            ``[B, len(block)]`` float32, of ``head.at(slot)[J]``.
        """
        if slot < 0:
            return self.outputs.logits(state, self.head.text.ids).float()
        column = slot * self.head.per_step % self.spec.depth + written.shape[1]
        found = self.head(state, self.inputs.embed(written))[:, -1]
        return self.head.column_logits(found, self.outputs, column).float()

    @property
    def context(self) -> int:
        """Steps of the longest sequence that the backbone was built for."""
        return int(self.backbone.config.max_position_embeddings)

    @property
    def inputs(self) -> Table:
        """Input rows of the V ids."""
        own = self.backbone.get_input_embeddings().weight
        return Table(own, self.new_inputs) if self.config.new_rows else Table(own)

    @property
    def outputs(self) -> Table:
        """Output rows of the V ids."""
        own = self.backbone.get_output_embeddings().weight
        return Table(own, self.new_outputs) if self.config.new_rows else Table(own)

    def unconditional(self, condition: str | int | Tensor) -> Rows:
        """The prompt that stands for nothing, beside one of a condition: what guidance leads away from.

        Raises:
            ValueError: vectors of a model that was trained without any to stand for none, or more than it has.
        """
        if not isinstance(condition, Tensor):
            return self.layout.prompt(None)
        projector = self.vectors
        null = projector.null if isinstance(projector, VectorProjector) else None
        if null is None or len(condition) > len(null):
            raise ValueError(
                f"guidance needs vectors that stand for none, {len(condition)} of them here, got a model with "
                f"{0 if null is None else len(null)}; sample with guidance 1"
            )
        return self.layout.prompt(null[len(null) - len(condition) :])

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise unless this model was trained with ``tokenizer``.

        Raises:
            ValueError: another fingerprint; the sentence names both.
        """
        expected, found = self.config.tokenizer_fingerprint, tokenizer.fingerprint()
        if not expected:
            raise ValueError(
                f"this language model does not say which tokenizer made its codes ({_describe(self.spec)}), got "
                f"tokenizer {found} ({_describe(tokenizer.spec)}); import it again with --tokenizer and that folder"
            )
        if expected != found:
            raise ValueError(
                f"this language model was trained with tokenizer {expected} ({_describe(self.spec)}), got tokenizer "
                f"{found} ({_describe(tokenizer.spec)}); load the tokenizer it was trained with or train it again"
            )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: what is used of it
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        **kwargs: Any,
    ) -> None:
        """Write weights, configuration and vocabulary to a folder, whole or not at all.

        Adapters are written as part of the weights that they stand beside, and stay as they are in this model.

        Args:
            save_directory: the folder; what it held is replaced.
            is_main_process: of several that call this, the one that writes.
            state_dict: weights to write in place of the model's own.
            push_to_hub: not here; see ``push_to_hub`` of this class.
            max_shard_size: of a file of weights, in bytes or as ``5GB``.
            kwargs: the other arguments of ``transformers``.

        Raises:
            ValueError: ``push_to_hub``.
        """
        if push_to_hub:
            raise ValueError("save_pretrained writes a folder alone, got push_to_hub; call push_to_hub(repo_id)")
        if not is_main_process:
            return
        state = merged_state(self) if state_dict is None and has_adapters(self) else state_dict
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size, **kwargs)
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
        if differing := _differences(report, model.config):
            raise ValueError(f"weights in {folder} must match its configuration key by key, got {differing}")
        return model.eval()

    def _packed_mask(self, documents: Tensor) -> Tensor:
        """``[B, 1, T, T]``: causal, and within a document alone."""
        length, attention = documents.shape[1], self.backbone.config._attn_implementation
        same = documents[:, None, :, None] == documents[:, None, None, :]
        allowed = same & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
        if attention == "sdpa":
            return allowed
        if attention == "eager":
            zeros = torch.zeros(allowed.shape, dtype=self.inputs.pieces[0].dtype, device=documents.device)
            return zeros.masked_fill(~allowed, torch.finfo(zeros.dtype).min)
        raise ValueError(f"packed rows need attention sdpa or eager, got {attention}; set attn_implementation to sdpa")

    def _losses(self, batch: Batch) -> dict[str, BlockLoss]:
        return self.head.losses(self.hidden(batch), self.inputs, self.outputs, batch)

    def _with_conditions(self, embedded: Tensor, batch: Batch) -> Tensor:
        for kind, slot in (("classes", CLASS), ("vectors", VECTOR)):
            chosen, module = batch.slots == slot, getattr(self, kind)
            if not bool(chosen.any()):
                continue
            if module is None:
                raise ValueError(f"this model has no {kind} to be conditioned on; build it with {kind}")
            given = batch.tokens[chosen][:, 0] if slot == CLASS else batch.vectors
            embedded = _put(embedded, chosen, module(given))
        return embedded

    def _check_length(self, length: int) -> None:
        limit = self.context
        if length > limit:
            raise ValueError(
                f"sequences of this model have at most {limit} tokens, got {length}; "
                "raise max_position_embeddings of the backbone or shorten the text"
            )


def _put(embedded: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
    """``embedded`` ``[B, T, C]`` with rows ``[M, C]`` where ``chosen`` ``[B, T]`` is true."""
    return embedded.masked_scatter(chosen[..., None], values.to(embedded.dtype))


def _differences(report: Mapping[str, Any], config: SharedLMConfig) -> str:
    """What was found otherwise than expected when weights were loaded; empty where all is well."""
    found, parts = list[str](), set[str]()
    for kind, items in report.items():
        keys = sorted(item if isinstance(item, str) else str(item[0]) for item in items)
        parts |= {key.partition(".")[0] for key in keys}
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found.append(f"{kind} {', '.join(keys[:3])}{more}")
    if "head" in parts:
        found.append(f"while its config.json says head {config.head}, which must be the one it was trained with")
    return ", ".join(found)


def _check_folder(folder: Path) -> None:
    missing = [name for name in ("config.json", *_weight_files(folder)) if not (folder / name).is_file()]
    missing += missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} should hold a language model but lacks {', '.join(missing)}; save or train it again"
        )


def _weight_files(folder: Path) -> list[str]:
    """One file, or as many as its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} does not hold a readable language model ({index.name} is damaged); save it again"
        ) from error


def _describe(spec: CodeSpec) -> str:
    books = ", ".join(f"{book.name} {book.size}x{book.depth}" for book in spec.codebooks)
    return f"{spec.layout.kind} {'x'.join(map(str, spec.layout.shape))}: {books}"
