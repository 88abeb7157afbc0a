"""Where a step stands, as the attention of the backbone sees it: position ids of text, conditions and codes.

``sequence``: one number a step, as every language model has. ``axial``: row and column, as in LlamaGen
(https://arxiv.org/abs/2406.06525); a text step at place t is at (t, t), an image that opens at t covers (t, t) to
(t + h - 1, t + w - 1), what follows goes on at t + max(h, w), and conditions (classes, vectors) stand nowhere: their
queries and keys are zero. ``multimodal``: time, row and column, for backbones built for it (Qwen2-VL,
https://arxiv.org/abs/2409.12191), by the same rule, where conditions count as text. ``none``: nothing turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..tokenizers.codes import CodeSpec
from .sequences import EXTRA, TEXT

#: Rows and columns of an axial place are packed into one id: ``row * AXIS + column``.
AXIS = 1 << 20
#: The axial id of a step that stands nowhere.
NOWHERE = -1


class Places(ABC):
    """Position ids of steps."""

    @abstractmethod
    def __call__(self, slots: Tensor, present: Tensor, documents: Tensor | None = None) -> Tensor:
        """Position ids for a backbone.

        Args:
            slots: ``[B, T]`` int64, see :mod:`smalti.lm.layout`, from the first step on.
            present: ``[B, T]`` bool, false where a step is padding.
            documents: ``[B, T]`` int64, which document of a packed row a step belongs to; each counts from 0.

        Returns:
            ``[B, T]`` int64, or ``[3, B, T]`` for multimodal places.
        """


class SequencePlaces(Places):
    """The number of steps before, in the same document; steps of an image count in raster order, however it is written.

    Args:
        spec: the codes.
        steps: steps that write one position.
    """

    def __init__(self, spec: CodeSpec, steps: int) -> None:
        self.length = None if spec.dynamic else spec.positions * steps

    def __call__(self, slots: Tensor, present: Tensor, documents: Tensor | None = None) -> Tensor:
        """See :class:`Places`."""
        image, closes = images(slots, documents)
        length = slots + 1 if self.length is None else self.length
        return _before((present & ~image) + closes * length, documents) + slots * (slots >= 0)


class GridPlaces(Places):
    """Rows and columns of codes in a grid, or in scales: the middle of a cell of theirs, on the grid of the finest.

    Args:
        spec: the codes.
        steps: steps that write one position.

    Raises:
        ValueError: codes that have no rows and columns.
    """

    def __init__(self, spec: CodeSpec, steps: int) -> None:
        spec.layout.require("a rotary embedding of rows and columns", "grid", "scales")
        shape = spec.layout.shape
        if spec.layout.kind == "scales":
            finest = max(shape)
            middles = [((2 * _places(side) + 1) * finest) // (2 * side) for side in shape]
            cells = torch.cat([torch.cartesian_prod(middle, middle).view(-1, 2) for middle in middles])
            self.longest = finest
        elif len(shape) == 2:
            cells = torch.cartesian_prod(*map(_places, shape)).view(-1, 2)
            self.longest = max(shape)
        else:
            raise ValueError(f"rows and columns need a grid of (h, w), got {shape}; use sequence places")
        self.cells = cells.repeat_interleave(steps, dim=0)  # by slot

    def axes(self, slots: Tensor, counted: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Place at which each step or its image opens, and the row and column beyond it: ``[B, T]`` int64 each.

        Args:
            slots: as in :class:`Places`.
            counted: ``[B, T]`` bool, text that takes one place each.
            documents: as in :class:`Places`.
        """
        code, (_, closes) = slots >= 0, images(slots, documents)
        start = _before(counted + closes * self.longest, documents)
        rows, columns = self.cells.to(slots.device)[slots.clamp_min(0)].unbind(-1)
        return start, rows * code, columns * code


class AxialPlaces(GridPlaces):
    """Row and column in one id, :data:`NOWHERE` for conditions; pairs with :class:`AxialRotary`."""

    def __call__(self, slots: Tensor, present: Tensor, documents: Tensor | None = None) -> Tensor:
        """See :class:`Places`."""
        start, rows, columns = self.axes(slots, present & (slots == TEXT), documents)
        return ((start + rows) * AXIS + start + columns).masked_fill(slots < TEXT, NOWHERE)


class MultimodalPlaces(GridPlaces):
    """Time, row and column, for backbones whose rotary embedding takes three."""

    def __call__(self, slots: Tensor, present: Tensor, documents: Tensor | None = None) -> Tensor:
        """See :class:`Places`."""
        start, rows, columns = self.axes(slots, present & ~images(slots, documents)[0], documents)
        return torch.stack([start, start + rows, start + columns])


class AxialRotary(nn.Module):
    """Rotary embedding of rows and columns, in the place of a Llama-like backbone's own.

    The first half of the channel pairs turns by the row, the second by the column, with frequencies
    ``base^(-2k / (head_dim / 2))``. Cosine and sine are zero for :data:`NOWHERE`, so that queries and keys vanish.

    Args:
        head_dim: channels of an attention head, divisible by 4.
        base: of the frequencies.

    Raises:
        ValueError: heads whose channels are not divisible by 4.
    """

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(
                f"rows and columns share the channels of a head four by four, got {head_dim} channels; "
                "change hidden_size or num_attention_heads of the backbone"
            )
        self.head_dim, self.base = head_dim, base

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine ``[B, T, head_dim]`` in the type of ``states`` for ids ``[B, T]``, computed in float32."""
        exponents = torch.arange(0, self.head_dim, 4, device=states.device, dtype=torch.float32) / self.head_dim
        frequencies = self.base ** -(exponents * 1.0)
        present = (position_ids >= 0)[..., None]
        ids = position_ids.clamp_min(0)[..., None]
        turns = torch.cat([ids // AXIS * frequencies, ids % AXIS * frequencies], dim=-1)
        angles = torch.cat([turns, turns], dim=-1)
        return (angles.cos() * present).to(states.dtype), (angles.sin() * present).to(states.dtype)


class NoRotary(nn.Module):
    """Cosine 1 and sine 0 for every place, in the place of a Llama-like backbone's own rotary embedding.

    Args:
        head_dim: channels of an attention head.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine ``[B, T, head_dim]`` in the type of ``states``."""
        cosine = states.new_ones(*position_ids.shape, self.head_dim)
        return cosine, torch.zeros_like(cosine)


def places(kind: str, spec: CodeSpec, steps: int, backbone: PreTrainedModel) -> Places:
    """The places that a configuration asks for; the backbone gets the rotary embedding that goes with them.

    Args:
        kind: ``sequence``, ``axial``, ``multimodal`` or ``none``.
        spec: the codes.
        steps: steps that write one position.
        backbone: a causal language model.

    Raises:
        ValueError: an unknown kind, or one that the backbone or the codes do not allow.
    """
    if kind not in _KINDS:
        raise ValueError(f"rotary must be one of {', '.join(_KINDS)}, got {kind!r}; choose one of them")
    return _KINDS[kind](spec, steps, backbone)


def _sequence(spec: CodeSpec, steps: int, backbone: PreTrainedModel) -> Places:
    return SequencePlaces(spec, steps)


def _axial(spec: CodeSpec, steps: int, backbone: PreTrainedModel) -> Places:
    found, trunk = AxialPlaces(spec, steps), backbone.base_model
    head_dim = _plain_head("axial", backbone)
    rope = getattr(backbone.config, "rope_parameters", None) or {}
    trunk.rotary_emb = AxialRotary(head_dim, float(rope.get("rope_theta") or 10000.0))
    return found


def _none(spec: CodeSpec, steps: int, backbone: PreTrainedModel) -> Places:
    backbone.base_model.rotary_emb = NoRotary(_plain_head("no", backbone))
    return SequencePlaces(spec, steps)


def _plain_head(kind: str, backbone: PreTrainedModel) -> int:
    """Channels of a head of a backbone whose rotary embedding can be replaced."""
    config = backbone.config
    if not plain_rotary(backbone):
        raise ValueError(
            f"{kind} places need a backbone with a plain rotary embedding, such as llama or qwen2, got "
            f"{config.model_type}; use sequence places"
        )
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _multimodal(spec: CodeSpec, steps: int, backbone: PreTrainedModel) -> Places:
    if not hasattr(getattr(backbone.base_model, "rotary_emb", None), "mrope_section"):
        raise ValueError(
            f"multimodal places need a backbone whose rotary embedding takes time, row and column, got "
            f"{backbone.config.model_type}; use sequence or axial places"
        )
    return MultimodalPlaces(spec, steps)


_KINDS: dict[str, Callable[[CodeSpec, int, PreTrainedModel], Places]] = {
    "sequence": _sequence,
    "axial": _axial,
    "multimodal": _multimodal,
    "none": _none,
}


def plain_rotary(backbone: PreTrainedModel) -> bool:
    """Whether a backbone has blocks like Llama's, with one rotary embedding for all of them."""
    return type(getattr(backbone.base_model, "rotary_emb", None)).__name__ in _ROTARY


#: Rotary embeddings that take nothing but position ids: one number each that turns all channels, and those from here.
_ROTARY = (
    "LlamaRotaryEmbedding",
    "Qwen2RotaryEmbedding",
    "Qwen3RotaryEmbedding",
    "MistralRotaryEmbedding",
    "AxialRotary",
    "NoRotary",
)


def _places(side: int) -> Tensor:
    """``[side]``, on the CPU also while a model is loaded, when transformers makes everything on the meta device."""
    return torch.arange(side, device="cpu")


def images(slots: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which steps ``[B, T]`` belong to an image, and which are the last of one: bool ``[B, T]`` each."""
    inside = (slots >= 0) | (slots == EXTRA)
    follows = torch.zeros_like(inside)
    follows[:, :-1] = inside[:, 1:]
    if documents is not None:
        follows[:, :-1] &= documents[:, 1:] == documents[:, :-1]
    return inside, inside & ~follows


def _before(counts: Tensor, documents: Tensor | None) -> Tensor:
    """``[B, T]``: the sum of ``counts`` before each step, from the beginning of its document."""
    before = counts.cumsum(1) - counts
    if documents is None:
        return before
    opens = torch.ones_like(documents, dtype=torch.bool)
    opens[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return before - torch.where(opens, before, 0).cummax(1).values
