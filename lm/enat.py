"""The network of ENAT, masked prediction that encodes what is visible and decodes what is not
(https://arxiv.org/abs/2411.06959; LeapLabTHU/ENAT). Knows neither how positions are chosen nor how they are drawn.

Letters: B batch, N positions, D codes per position, P visible positions, M of them new, C width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, initialization

from ..tokenizers.codes import CodeSpec
from .conditions import condition_encoder
from .saved import SavedModel
from .vocabulary import Vocabulary


class ENATConfig(PretrainedConfig):
    """What an :class:`ENAT` is made of; the defaults are ENAT-B.

    Args:
        spec: a :class:`CodeSpec` as a dict.
        tokenizer_fingerprint: which tokenizer the codes come from.
        text_size: pieces of the vocabulary that conditions are written in.
        classes: number of classes, for models that are conditioned on one; 0 for sentences.
        width: C.
        encoder_blocks: that visible positions go through; 15 in S and B, 22 in L.
        decoder_blocks: that hidden positions go through; 1 in S and B, 2 in L.
        heads: of the attention.
        dropout: of embedded codes.
        sampling: how codes are drawn where nobody says otherwise: fields of
            :class:`~smalti.generation.enat.MaskedSampling`.
    """

    model_type = "smalti-enat"

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        tokenizer_fingerprint: str = "",
        text_size: int = 0,
        classes: int = 0,
        width: int = 768,
        encoder_blocks: int = 15,
        decoder_blocks: int = 1,
        heads: int = 8,
        dropout: float = 0.1,
        sampling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.spec, self.tokenizer_fingerprint, self.text_size = spec or {}, tokenizer_fingerprint, text_size
        self.classes, self.width, self.heads, self.dropout = classes, width, heads, dropout
        self.encoder_blocks, self.decoder_blocks, self.sampling = encoder_blocks, decoder_blocks, sampling or {}
        super().__init__(**kwargs)


class Modulation(nn.Linear):
    """Shifts, scales and gates of a block; zero at first, so that the block is the identity."""


class ContextBlock(nn.Module):
    """A DiT block (https://arxiv.org/abs/2212.09748) whose tokens attend to one another and to a context.

    Keys and values of the context have a projection and a modulation of their own.

    Args:
        width: C, a multiple of ``heads``.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = Modulation(width, 8 * width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.own, self.context = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.mlp = _feed_forward(width)

    def forward(self, tokens: Tensor, conditions: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens ``[B, M, C]``, shape kept; ``conditions`` is ``[B, C]`` and ``context`` ``[B, P, C]``."""
        parts = self.modulation(F.silu(conditions))[:, None].chunk(8, -1)
        shift, scale, context_shift, context_scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        own = _modulated(tokens, shift, scale)
        memory = self.own(own)
        if context is not None:
            memory = torch.cat([self.context(_modulated(context, context_shift, context_scale)), memory], dim=1)
        key, value = memory.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(own).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate * self.out(mixed)
        return tokens + mlp_gate * self.mlp(_modulated(tokens, mlp_shift, mlp_scale))


class Renewal(nn.Module):
    """Features of an earlier pass, to be looked at in a later one.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), _feed_forward(width)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, P, C]``, shape kept."""
        return features + self.mlp(self.norm(features))


@dataclass(frozen=True)
class Pass:
    """What a pass found. Given to the next one, the positions visible here are not encoded there again."""

    features: Tensor  #: [B, N, C], before the final norm
    visible: Tensor  #: [B, P] int64 positions
    hidden: Tensor  #: [B, N - P] int64, all others

    def of_hidden(self) -> Tensor:
        """Features ``[B, N - P, C]`` of the hidden positions."""
        return rows_at(self.features, self.hidden)


class ENAT(SavedModel):
    """Predicts the codes of hidden positions of a grid from those of visible ones, for a class or a sentence.

    Visible positions see one another alone; hidden ones see one another and what became of the visible ones. Codes of
    several columns enter as the sum of their rows and leave through a classifier for each column, whose weights are the
    rows themselves, without gradient. Rows begin as large as the published ones, 0.02, from width 768 on, and larger
    below, where they would be too short for a classifier that is sure.

    Args:
        config: see :class:`ENATConfig`; :meth:`build` makes one from parts.
        vocabulary: that sentences are written in.

    Raises:
        ValueError: codes that are no grid of a fixed size, another vocabulary than the configuration says, heads that
            do not divide the width, a number of blocks below 1, or neither classes nor text.
    """

    config_class = ENATConfig
    main_input_name = "ids"
    _supports_sdpa = True

    def __init__(self, config: ENATConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.spec, self.vocabulary = CodeSpec.from_dict(config.spec), vocabulary
        _check(config, self.spec, vocabulary)
        width = config.width
        self.conditions = condition_encoder(vocabulary, config.classes, width)
        #: One row more than codes: of a hidden position.
        self.words: Any = nn.ModuleList(nn.Embedding(book.size + 1, width) for book in self.spec.columns)
        self.places = nn.Embedding(self.spec.positions, width)
        self.entry = nn.Sequential(nn.LayerNorm(width, 1e-6), nn.Dropout(config.dropout))
        self.renewal = Renewal(width)
        self.encoder = nn.ModuleList(ContextBlock(width, config.heads) for _ in range(config.encoder_blocks))
        self.decoder = nn.ModuleList(ContextBlock(width, config.heads) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.biases = nn.ParameterList(torch.zeros(book.size) for book in self.spec.columns)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Modulation):
            initialization.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding) and module in (*self.words, self.places):
            initialization.normal_(module.weight, std=max(0.02, 15 / self.config.width))

    @classmethod
    def build(cls, spec: CodeSpec, fingerprint: str, vocabulary: Vocabulary | None = None, **parts: Any) -> Self:
        """A model from scratch.

        Args:
            spec: the codes it reads and writes.
            fingerprint: of the tokenizer that makes them.
            vocabulary: that sentences are written in; None for a model of classes.
            parts: the other fields of :class:`ENATConfig`.
        """
        texts = vocabulary or Vocabulary()
        return cls(ENATConfig(spec.to_dict(), fingerprint, texts.text_size, **parts), texts)

    def forward(self, ids: Tensor, new: Tensor, conditions: Tensor, earlier: Pass | None = None) -> Pass:
        """Features of all positions.

        Args:
            ids: ``[B, N, D]`` int64, read at the new positions alone.
            new: ``[B, M]`` int64, positions that are visible and were not in ``earlier``; M may be 0.
            conditions: ``[B, C]`` of :attr:`conditions`.
            earlier: the pass before, of the same model or, in training, of its average; without one all visible
                positions are new. No gradient goes through it.
        """
        visible = new if earlier is None else torch.cat([earlier.visible, new], dim=1)
        hidden = _others(visible, self.spec.positions)
        known = self._embedded(ids, new)
        if earlier is None or not earlier.visible.shape[1]:
            known = _through(self.encoder, known, conditions, None)
        else:
            old = self.renewal(rows_at(earlier.features.detach(), earlier.visible))
            known = torch.cat([old, _through(self.encoder, known, conditions, old)], dim=1)
        masked = _through(self.decoder, self._embedded(None, hidden), conditions, known)
        order = torch.cat([visible, hidden], dim=1).argsort(1)
        return Pass(rows_at(torch.cat([known, masked], dim=1), order), visible, hidden)

    def logits(self, features: Tensor) -> list[Tensor]:
        """Logits ``[..., K]`` float32 of each of the D columns, from features ``[..., C]``."""
        states = self.head(self.norm(features))
        return [
            F.linear(states, table.weight[:-1].detach(), bias).float()
            for table, bias in zip(self.words, self.biases, strict=True)
        ]

    def _embedded(self, ids: Tensor | None, places: Tensor) -> Tensor:
        """``[B, M, C]`` of positions ``[B, M]``, hidden ones without ids."""
        found = self.places(places)
        chosen = None if ids is None else rows_at(ids, places)
        for column, table in enumerate(self.words):
            found = found + (table.weight[-1] if chosen is None else table(chosen[..., column]))
        return self.entry(found)


def rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Rows ``[B, M, C]`` of ``[B, N, C]`` at positions ``[B, M]``."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _check(config: ENATConfig, spec: CodeSpec, vocabulary: Vocabulary) -> None:
    if spec.layout.kind != "grid" or spec.dynamic:
        size = " of a size that varies" if spec.dynamic else ""
        raise ValueError(
            f"masked generation needs a grid of codes of a fixed size, got a {spec.layout.kind} of {spec.layout.shape}"
            f"{size}; legal here are tokenizers with a grid (VQ, IBQ, dual, UniTok, TokenFlow), or use a language model"
        )
    if vocabulary.text_size != config.text_size:
        raise ValueError(
            f"the model was built for {config.text_size} text pieces, its vocabulary has {vocabulary.text_size}; "
            "load both from the same folder"
        )
    if min(config.encoder_blocks, config.decoder_blocks) < 1:
        raise ValueError(
            "masked generation needs at least 1 block to encode and 1 to decode, got "
            f"{config.encoder_blocks} and {config.decoder_blocks}; 15 and 1 are ENAT-B"
        )
    if config.width % config.heads:
        raise ValueError(
            f"heads must divide the width, got {config.heads} heads and width {config.width}; change either"
        )


def _through(blocks: Iterable[nn.Module], tokens: Tensor, conditions: Tensor, context: Tensor | None) -> Tensor:
    for block in blocks if tokens.shape[1] else ():
        tokens = block(tokens, conditions, context)
    return tokens


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _others(places: Tensor, count: int) -> Tensor:
    """Positions in ``[0, count)`` that are not among ``[B, P]`` different ones, in order: ``[B, count - P]``."""
    taken = torch.zeros(len(places), count, dtype=torch.uint8, device=places.device).scatter(1, places, 1)
    return taken.argsort(dim=1, stable=True)[:, : count - places.shape[1]]
