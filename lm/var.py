"""VAR: next-scale prediction, all codes of one scale in one pass (https://arxiv.org/abs/2404.02905).

Knows nothing about how ids are drawn: :mod:`~smalti.generation.var` does that. Letters: B batch, C width of a code,
W width of the network, L side of the finest grid, M codes of all scales together, M0 codes of the first scale, n codes
of the scales that are looked at, K codebook size, S number of scales, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from math import log
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, initialization

from ..tokenizers.blended import VARQuantizer
from ..tokenizers.codes import CodeSpec
from ..tokenizers.component import build
from .cache import KeyValues
from .conditions import Wanted, condition_encoder
from .saved import SavedModel
from .vocabulary import Vocabulary

#: Largest factor of a head's products of unit queries and keys.
MAX_SCALE = 100.0


class VARConfig(PretrainedConfig):
    """What a :class:`VAR` is made of; a model is made with a vocabulary beside it.

    Args:
        spec: a :class:`CodeSpec` as a dict, laid out as scales.
        quantizer: the :class:`VARQuantizer`, as :meth:`Component.to_spec` writes it.
        vocabulary_size: ids of the vocabulary; 0 for a model of classes.
        tokenizer_fingerprint: which tokenizer the codes come from.
        classes: number of classes; 0 for a model of sentences.
        width: W; 64 for each of ``depth`` in the released sizes.
        depth: number of blocks.
        heads: of the attention; as many as ``depth`` in the released sizes.
        mlp_ratio: width of a feed-forward layer over W.
    """

    model_type = "smalti-var"

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        vocabulary_size: int = 0,
        tokenizer_fingerprint: str = "",
        classes: int = 0,
        width: int = 1024,
        depth: int = 16,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        **kwargs: Any,
    ) -> None:
        self.spec, self.quantizer = spec or {}, quantizer or {}
        self.vocabulary_size, self.tokenizer_fingerprint = vocabulary_size, tokenizer_fingerprint
        self.classes, self.width, self.depth, self.heads = classes, width, depth, heads
        self.mlp_ratio = mlp_ratio
        super().__init__(**kwargs)


class CosineAttention(nn.Module):
    """Self-attention by the cosine of queries and keys, times a learned factor for each head, at most 100.

    Args:
        width: W.
        heads: h.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.empty(heads))  # logarithm of the factor

    def forward(self, states: Tensor, visible: Tensor | None, memory: KeyValues | None) -> Tensor:
        """``[B, n, W]``, shape kept.

        Args:
            states: of the scales that are looked at.
            visible: ``[n, n]`` bool, true where a query may look; everywhere by default.
            memory: of the scales before, which these join.
        """
        query, key, value = (
            part(states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        factor = self.scale.clamp_max(log(MAX_SCALE)).exp()[:, None, None]
        query, key = (F.normalize(query, dim=-1) * factor).to(value), F.normalize(key, dim=-1).to(value)
        if memory is not None:
            key, value = memory.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward layer behind norms that the condition shifts and scales (adaLN, as in DiT,
    https://arxiv.org/abs/2212.09748).

    Args:
        width: W.
        heads: h.
        hidden: width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = CosineAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.gates = nn.Linear(width, 2 * width)
        self.affine = nn.Linear(width, 4 * width)

    def modulation(self, vectors: Tensor) -> Tensor:
        """Gates, scales and shifts of the attention and the feed-forward layer in turn, ``[B, 6, 1, W]``."""
        lit = F.silu(vectors)
        return torch.cat([self.gates(lit), self.affine(lit)], dim=-1).unflatten(-1, (6, 1, -1))

    def forward(
        self, states: Tensor, modulation: Tensor, visible: Tensor | None = None, memory: KeyValues | None = None
    ) -> Tensor:
        """``[B, n, W]``, shape kept; see :meth:`modulation` and :class:`CosineAttention`."""
        gate, gate_mlp, scale, scale_mlp, shift, shift_mlp = modulation.unbind(1)
        states = states + gate * self.attention(_normed(states) * (1 + scale) + shift, visible, memory)
        return states + gate_mlp * self.mlp(_normed(states) * (1 + scale_mlp) + shift_mlp)


@dataclass(frozen=True)
class Prepared:
    """What the conditions alone decide, computed once for all scales."""

    first: Tensor  #: [B, M0, W], what the first scale is predicted from
    blocks: tuple[Tensor, ...]  #: [B, 6, 1, W] each, see :meth:`Block.modulation`
    last: Tensor  #: [B, 2, 1, W], scale and shift of the last norm


class VAR(SavedModel):
    """Next-scale prediction: a transformer that reads the sum of the scales so far, in the size of the next one, and
    writes all codes of that scale at once (https://arxiv.org/abs/2404.02905).

    It holds the quantizer of the tokenizer that it was trained for, frozen: codes are read as what they add to the
    picture, not by embeddings of their own. Not here: the release's one set of scales and shifts for all blocks (its
    512 px model) and the drop path of its training.

    Args:
        config: see :class:`VARConfig`; :meth:`build` makes one from parts.
        vocabulary: of the words of conditions; empty for a model of classes.

    Raises:
        ValueError: codes that are not laid out as scales, with several codes per position or others than the
            quantizer's; heads that do not divide the width; a vocabulary that does not fit the configuration.
    """

    config_class = VARConfig
    base_model_prefix = "var"
    main_input_name = "ids"
    _keep_in_fp32_modules_strict = ["quantizer"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: VARConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.spec, self.vocabulary = CodeSpec.from_dict(config.spec), vocabulary
        with torch.device("cpu"):  # transformers loads into empty weights, which some quantizers cannot start from
            quantizer: VARQuantizer = build(config.quantizer)
        _check(config, vocabulary, self.spec, quantizer)
        width, self.sides = config.width, self.spec.layout.shape
        self.quantizer = quantizer.requires_grad_(requires_grad=False)
        self.conditions = condition_encoder(vocabulary, config.classes, width)
        self.start = nn.Parameter(torch.empty(self.sides[0] ** 2, width))
        self.read = nn.Linear(quantizer.dim, width)
        self.places = nn.Parameter(torch.empty(self.spec.positions, width))
        self.levels = nn.Parameter(torch.empty(len(self.sides), width))
        hidden = round(config.mlp_ratio * width)
        self.blocks = nn.ModuleList(Block(width, config.heads, hidden) for _ in range(config.depth))
        self.last_affine = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, quantizer.size)
        self.post_init()

    @classmethod
    def build(
        cls,
        quantizer: VARQuantizer,
        spec: CodeSpec,
        vocabulary: Vocabulary | None = None,
        fingerprint: str = "",
        *,
        classes: int = 0,
        width: int = 1024,
        depth: int = 16,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> Self:
        """A model from scratch, with a copy of a quantizer.

        Args:
            quantizer: of the tokenizer that makes the codes.
            spec: of the codes.
            vocabulary: of the words of conditions; none by default.
            fingerprint: of the tokenizer.
            classes: number of classes; 0 for a model of sentences.
            width: W.
            depth: number of blocks.
            heads: of the attention; as many as blocks by default.
            mlp_ratio: width of a feed-forward layer over W.
        """
        words = Vocabulary() if vocabulary is None else vocabulary
        sizes: Mapping[str, Any] = {"width": width, "depth": depth, "heads": heads or depth, "mlp_ratio": mlp_ratio}
        config = VARConfig(spec.to_dict(), quantizer.to_spec(), words.size, fingerprint, classes, **sizes)
        model = cls(config, words)
        model.quantizer = deepcopy(quantizer).requires_grad_(requires_grad=False)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """See :meth:`SavedModel.from_pretrained`."""
        model = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        loaded = model.quantizer.state_dict()
        made: VARQuantizer = build(model.config.quantizer)  # transformers empties tables that are not saved
        made.load_state_dict(loaded)
        model.quantizer = made.requires_grad_(requires_grad=False).to(model.device).eval()
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """As the release starts: normal with a variance of 1 / 3W, what ends in a sum or a norm much smaller."""
        scale = (3 * self.config.width) ** -0.5
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(own["weight"], std=scale)
        if isinstance(module, nn.Linear) and "bias" in own:
            initialization.zeros_(own["bias"])
        if isinstance(module, Block):
            initialization.normal_(module.gates.weight, std=1e-5 * scale)
            initialization.normal_(module.affine.weight, std=0.5 * scale)
            for name in ("attention.out.weight", "mlp.2.weight"):
                initialization.normal_(module.get_parameter(name), std=scale * (2 * self.config.depth) ** -0.5)
        if isinstance(module, CosineAttention):
            initialization.constant_(module.scale, log(4))
        if module is self:
            for rows in (self.start, self.places, self.levels):
                initialization.normal_(rows, std=scale)
            initialization.normal_(self.last_affine.weight, std=0.5 * scale)
            initialization.normal_(self.head.weight, std=0.02 * scale)

    def forward(self, ids: Tensor, conditions: Sequence[Wanted]) -> Tensor:
        """Logits ``[B, M, K]`` of every code, each scale predicted from the given ids of those before.

        Args:
            ids: ``[B, M, 1]`` int64 in [0, K).
            conditions: B classes or sentences; None for nothing, which guidance leads away from.

        Raises:
            ValueError: ids of another shape, or another number of conditions.
        """
        if ids.shape != (len(conditions), self.spec.positions, 1):
            raise ValueError(
                f"ids must be [{len(conditions)}, {self.spec.positions}, 1] for {len(conditions)} conditions, got "
                f"{list(ids.shape)}; give the codes of as many pictures as there are conditions"
            )
        with torch.no_grad():
            features = self.quantizer.inputs(ids)
        given = self.prepare(conditions)
        levels = self._levels(ids.device)
        return self.through(torch.cat([given.first, self.enter(features)], dim=1), given, levels[:, None] >= levels)

    def loss(self, ids: Tensor, conditions: Sequence[Wanted]) -> Tensor:
        """Mean cross-entropy of all codes, a scalar in nats; see :meth:`forward`."""
        return F.cross_entropy(self(ids, conditions).flatten(0, 1).float(), ids.flatten())

    def prepare(self, conditions: Sequence[Wanted]) -> Prepared:
        """What B conditions decide for all scales."""
        vectors = self.conditions(conditions)
        last = self.last_affine(F.silu(vectors)).unflatten(-1, (2, 1, -1))
        modulations = tuple(block.modulation(vectors) for block in self._blocks())
        return Prepared(vectors[:, None] + self.start, modulations, last)

    def enter(self, features: Tensor) -> Tensor:
        """``[B, n, W]`` of the features ``[B, n, C]`` that a scale is predicted from."""
        return self.read(features.to(self.read.weight.dtype))

    def memories(self) -> tuple[KeyValues, ...]:
        """Room for the keys and values of pictures in every block, which one call of decoding fills."""
        return tuple(KeyValues(self.spec.positions) for _ in self.blocks)

    def through(
        self,
        entered: Tensor,
        given: Prepared,
        visible: Tensor | None = None,
        memories: Sequence[KeyValues] | None = None,
    ) -> Tensor:
        """Logits ``[B, n, K]`` of n successive codes.

        Args:
            entered: ``[B, n, W]`` from :meth:`enter` or ``given.first``, before places and levels are added.
            given: from :meth:`prepare`.
            visible: ``[n, n]`` bool, true where a query may look; everywhere by default.
            memories: of the codes before, one for each block; none where the codes are the first.
        """
        rows = slice(start := memories[0].filled if memories else 0, start + entered.shape[1])
        states = entered + self.places[rows] + self.levels[self._levels(entered.device)[rows]]
        kept = memories or [None] * len(self.blocks)
        for block, modulation, memory in zip(self._blocks(), given.blocks, kept, strict=True):
            states = block(states, modulation, visible, memory)
        scale, shift = given.last.unbind(1)
        return self.head(_normed(states) * (1 + scale) + shift)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _levels(self, device: torch.device) -> Tensor:
        """``[M]`` int64, the scale of every code."""
        return torch.cat([torch.full((side * side,), scale, device=device) for scale, side in enumerate(self.sides)])


def scale_slices(sides: Sequence[int]) -> list[slice]:
    """Where the codes of each scale stand among the M of all."""
    ends = list(accumulate(side * side for side in sides))
    return [slice(end - side * side, end) for end, side in zip(ends, sides, strict=True)]


def _normed(states: Tensor) -> Tensor:
    return F.layer_norm(states, states.shape[-1:], eps=1e-6)


def _check(config: VARConfig, vocabulary: Vocabulary, spec: CodeSpec, quantizer: VARQuantizer) -> None:
    spec.layout.require("VAR", "scales")
    found = (list(spec.layout.shape), [book.size for book in spec.columns])
    wanted = (quantizer.sides, [quantizer.size])
    if found != wanted:
        raise ValueError(
            f"VAR needs the codes of its quantizer, one per position: sides {wanted[0]} and sizes {wanted[1]}, got "
            f"sides {found[0]} and sizes {found[1]}; take both from one tokenizer"
        )
    if config.width % config.heads:
        raise ValueError(
            f"heads must divide the width, got {config.heads} heads and width {config.width}; change either"
        )
    if vocabulary.size != config.vocabulary_size:
        raise ValueError(
            f"the model was built for {config.vocabulary_size} ids, its vocabulary has {vocabulary.size}; "
            "load both from the same folder"
        )
