"""The shared language model: any ``transformers`` causal LM that reads and writes text and visual codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, initialization
from transformers.cache_utils import Cache

from ..tokenizers.codes import CodeSpec
from .attention import attention_mask, use_attention
from .config import SharedLMConfig, backbone_config
from .directions import Direction, Directions
from .embedding import CodebookEmbedding, CodePositions, VectorProjector, code_embedding, embed_tokens, local_ids
from .heads import CodeHead, code_head, default_head
from .layout import SequenceLayout
from .losses import BlockLoss, block_losses, merged, total_loss
from .ordering import causal
from .packing import PackedRows, packed
from .positions import images, places
from .saved import SavedModel
from .sequences import CLASS, EXTRA, NONE, TEXT, VECTOR, Batch, Rows
from .tables import Table
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class LMOutput:
    """Result of a training pass."""

    loss: Tensor  #: scalar, weighted sum of the block losses
    blocks: Mapping[str, BlockLoss]  #: ``text`` and every codebook


class SharedLM(SavedModel):
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
        use_attention(self.backbone)
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
        self.queries = nn.Embedding(config.queries, width) if config.queries else None
        more = config.directions - 1
        self.directions = Directions(more, self.backbone, config.head, vocabulary, self.spec) if more else None
        self.packed: PackedRows | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.new_rows:
            scale = float(getattr(self.backbone.config, "initializer_range", 0.02))
            for rows in (self.new_inputs, self.new_outputs):
                initialization.normal_(rows, std=scale)  # those of a file that is being loaded are left alone
        if isinstance(module, Direction):
            initialization.normal_(module.rows, std=float(getattr(self.backbone.config, "initializer_range", 0.02)))

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
            for rows in (self.inputs, *(table for _, table in self.heads)):
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
            code = batch.codes
            ids = local_ids(tokens[code], slots[code], self.vocabulary, self.spec)
            embedded = _put(embedded, code, self.embedding(ids, slots[code], batch.read_as))
        elif batch.read_as is not None:
            raise ValueError(
                "this model reads codes by their ids, got vectors for them; build it with embedding kind codebook"
            )
        placed = None if self.positions is None else self.positions(slots)
        embedded = embedded if placed is None else embedded + placed
        if batch.ordering is not None and bool(batch.ordering.asked.any()):
            if self.queries is None:
                raise ValueError(
                    "this model was built without queries, got steps that are asked for; build it with some"
                )
            query = self.queries.weight[0]
            queries = _of_unit_scale(query if placed is None else query + placed)
            embedded = torch.where(batch.ordering.asked[..., None], queries.to(embedded.dtype), embedded)
        if self.queries is not None and torch.is_grad_enabled():
            # Processes that train together reduce the same gradients, also where one's batch asks for nothing.
            embedded = embedded + (0 * self.queries.weight.sum()).to(embedded.dtype)
        return self._with_conditions(embedded, batch)

    def through(
        self, embedded: Tensor, places: Tensor, allowed: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """States of new steps; their keys and values are added to the cache, where there is one.

        Args:
            embedded: ``[B, T, C]`` of :meth:`embed`, steps that the cache has not seen.
            places: position ids of ``self.places``, ``[B, T]`` or ``[3, B, T]``.
            allowed: bool, broadcast to ``[B, 1, T, S + T]``, what they see. By default a pass over an empty cache is
                causal, and otherwise every new step sees all that is cached and all new ones.
            cache: of S earlier steps.

        Returns:
            ``[B, T, directions, C]``.

        Raises:
            ValueError: a backbone whose attention takes no masks, where one is needed.
        """
        trunk, options = self.backbone.base_model, dict[str, Any]()
        before = 0 if cache is None else cache.get_seq_length()
        if allowed is None and self.backbone.config._attn_implementation in ("sdpa", "eager"):
            steps = embedded.shape[1]
            every = torch.ones(1, 1, steps, before + steps, dtype=torch.bool, device=embedded.device)
            allowed = every if before else every.tril()
        options["attention_mask"] = None if allowed is None else attention_mask(allowed, self.backbone)
        options |= {"past_key_values": cache, "use_cache": cache is not None}
        if allowed is None and before:
            options["is_causal"] = False  # read by the flash kernels
        found = trunk(inputs_embeds=embedded, position_ids=places, **options).last_hidden_state
        if self.directions is None:
            return found[..., None, :]
        return self.directions(found, trunk.rotary_emb, places, **options)

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
        return LMOutput(total_loss(blocks, weights), blocks)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, T, C]`` of whole sequences, causal; the state at t predicts step t + 1.

        Raises:
            ValueError: sequences longer than the backbone was built for.
        """
        return self.directed(batch)[..., 0, :]

    def directed(self, batch: Batch) -> Tensor:
        """As :meth:`hidden`, ``[B, T, directions, C]``, seen as the batch's ordering says."""
        self.check_length(self._length(batch))
        allowed = None if batch.ordering is None else batch.ordering.allowed()
        if batch.documents is not None:
            length = batch.documents.shape[1]
            same = batch.documents[:, :, None] == batch.documents[:, None, :]
            causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
            allowed = same & (causal if allowed is None else allowed)
        places = self.places(batch.slots, torch.ones_like(batch.slots).bool(), batch.documents)
        return self.through(self.embed(batch), places, None if allowed is None else allowed[:, None])

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
        self.check_length(mask.shape[1])
        new = embedded.shape[1]
        places = self.places(slots, mask.bool())[..., -new:]
        return self.through(embedded, places, causal(mask.bool(), new), cache)[..., 0, :]

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

    def pack(self) -> Self:
        """Lay matrices out for sampling on a CPU, in place: they can be saved, not trained or moved again.

        The output rows of codes are kept as they were beside their packed copies.

        Raises:
            ValueError: a model on another device, in another type than float32 and bfloat16, or compiled.
        """
        if any(module._compiled_call_impl is not None for module in self.modules()):
            raise ValueError("compiled blocks cannot be packed, got a compiled model; load it again and do either")
        packed(self.eval().backbone.base_model)
        self.packed = PackedRows(self.outputs, self.head)
        for part in () if self.directions is None else self.directions.beyond:
            part.block, part.packed = packed(part.block), PackedRows(part.table, part.head)
        return self

    def compile_blocks(self) -> Self:
        """Compile norms and feed-forward parts of the blocks with ``torch.compile`` when they are first run, in place.

        Attention is left out: graphs that count steps would be made anew for every layer and length. Needs what
        ``torch.compile`` needs, on CPUs a C++ compiler; nothing here does without being asked.

        Raises:
            ValueError: a packed model.
        """
        blocks = [*self.backbone.base_model.layers]
        blocks += [] if self.directions is None else [part.block for part in self.directions.beyond]
        if self.packed is not None:
            raise ValueError("packed blocks cannot be compiled, got a packed model; load it again and do either")
        for block in blocks:
            for name in ("input_layernorm", "mlp", "post_attention_layernorm"):
                getattr(block, name).compile(dynamic=True)
        return self

    @property
    def heads(self) -> list[tuple[CodeHead, Table]]:
        """The code head and the output rows of every direction."""
        more = [] if self.directions is None else self.directions.beyond
        return [(self.head, self.outputs), *((part.head, part.table) for part in more)]

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
        pieces = (own, self.new_outputs) if self.config.new_rows else (own,)
        return Table(*pieces, packed=None if self.packed is None else self.packed.products)

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

    def _length(self, batch: Batch) -> int:
        """Steps of the longest sequence as the backbone counts them: an image has as many however it is written."""
        if batch.ordering is None:
            return batch.slots.shape[1]
        inside, closes = images(batch.slots, batch.documents)
        pad = self.vocabulary.special("<pad>") if self.layout.brackets else NONE
        text = ~inside & ~((batch.slots == TEXT) & (batch.tokens[..., 0] == pad))
        return int((text + closes * self.layout.steps).sum(1).max())

    def _losses(self, batch: Batch) -> dict[str, BlockLoss]:
        return block_losses(self.heads, self.directed(batch), self.inputs, batch)

    def _with_conditions(self, embedded: Tensor, batch: Batch) -> Tensor:
        for kind, slot in (("classes", CLASS), ("vectors", VECTOR), ("queries", EXTRA)):
            chosen, module = batch.slots == slot, getattr(self, kind)
            if not bool(chosen.any()):
                continue
            if module is None:
                raise ValueError(f"this model has no {kind} to be conditioned on; build it with {kind}")
            given = batch.vectors if slot == VECTOR else batch.tokens[chosen][:, 0]
            embedded = _put(embedded, chosen, module(given))
        return embedded

    def check_length(self, length: int) -> None:
        """Raise unless a sequence of so many steps fits.

        Raises:
            ValueError: it is longer than the backbone was built for.
        """
        limit = self.context
        if length > limit:
            raise ValueError(
                f"sequences of this model have at most {limit} tokens, got {length}; "
                "raise max_position_embeddings of the backbone or shorten the text"
            )


def _of_unit_scale(queries: Tensor) -> Tensor:
    """Queries with a root mean square of 1. All that tells many of them apart is where they stand, and the first block
    adds the same to all: at the scale of an initial table, a fiftieth, that would drown it (masked models have a norm
    behind their embeddings: BERT, MaskGIT, https://arxiv.org/abs/2202.04200).
    """
    return F.rms_norm(queries, queries.shape[-1:], eps=1e-12)


def _put(embedded: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
    """``embedded`` ``[B, T, C]`` with rows ``[M, C]`` where ``chosen`` ``[B, T]`` is true."""
    return embedded.masked_scatter(chosen[..., None], values.to(embedded.dtype))
