"""What sequences are made of: parts, the steps they become, and batches of those. Built by :mod:`smalti.lm.layout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .ordering import Ordering
from .plans import PlanRows

#: In ``Batch.slots``: a step of text.
TEXT = -1
#: In ``Batch.slots``: a class; the token is its number.
CLASS = -2
#: In ``Batch.slots``: a vector that comes with the batch.
VECTOR = -3
#: In ``Batch.slots``: a learned vector that stands nowhere; the token is its number.
EXTRA = -4
#: In ``Batch.tokens``: no token, where a step writes fewer than W.
NONE = -1


@dataclass(frozen=True)
class Words:
    """Text. Two in a row would be one."""

    text: str
    learned: bool = True


@dataclass(frozen=True)
class Question:
    """A question and its answer; the answer is learned."""

    question: str
    answer: str


@dataclass(frozen=True)
class Caption:
    """A caption of the pictures before it, learned."""

    text: str


@dataclass(frozen=True, eq=False)
class Picture:
    """The codes of one image."""

    ids: Tensor  #: [N, D] int64, -1 where a dynamic spec has no more positions
    learned: bool = True
    opens: bool = False  #: learn too that a picture begins here
    read_as: Tensor | None = None  #: [n, C], read in place of the embedding's own look-up
    rows: PlanRows | None = None  #: in which order it is written; raster by default

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Picture)
            and torch.equal(self.ids, other.ids)
            and (self.learned, self.opens) == (other.learned, other.opens)
            and _same(self.read_as, other.read_as)
            and self.rows is other.rows
        )

    __hash__ = object.__hash__


@dataclass(frozen=True, eq=False)
class Vectors:
    """Continuous features, read only: of an image that is understood, or of a text by another model."""

    values: Tensor  #: [n, F] floating point

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vectors) and torch.equal(self.values, other.values)

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Label:
    """A class, of models that know their images by class alone."""

    number: int


Part = Words | Question | Caption | Picture | Vectors | Label


@dataclass(frozen=True)
class Rows:
    """Steps to begin a generation with."""

    rows: Tensor  #: [T, W + 1] int64: the tokens of a step, then its slot
    vectors: Tensor | None = None  #: [F, C] of its :data:`VECTOR` steps

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Example:
    """One sequence: what is read and what is learned."""

    tokens: Tensor  #: [T, W] int64 ids of the shared vocabulary, :data:`NONE` where a step writes fewer
    slots: Tensor  #: [T] int64, the step of an image, :data:`TEXT`, :data:`CLASS`, :data:`VECTOR`, :data:`EXTRA` else
    learned: Tensor  #: [T] bool, true where predicting this step is part of the loss
    vectors: Tensor | None = None  #: [F, C] of the :data:`VECTOR` steps, in order
    read_as: Tensor | None = None  #: [M, C] of the code steps that are read, in order
    ordering: Ordering | None = None  #: None for causal sequences

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; under a causal mask no real token sees the padding."""

    tokens: Tensor  #: [B, T, W] int64
    slots: Tensor  #: [B, T] int64
    learned: Tensor  #: [B, T] bool
    documents: Tensor | None = None  #: [B, T] int64, which example of a packed row a step is of; None for one a row
    vectors: Tensor | None = None  #: [F, C] of all :data:`VECTOR` steps, row by row
    read_as: Tensor | None = None  #: [M, C] of all code steps that are read, row by row
    ordering: Ordering | None = None  #: of all rows, [B, T] and [B, T, S]; None for causal ones

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """One sequence of which nothing is learned."""
        tokens, slots = rows.rows[None, :, :-1], rows.rows[None, :, -1]
        return cls(tokens, slots, torch.zeros_like(slots, dtype=torch.bool), vectors=rows.vectors)

    @property
    def codes(self) -> Tensor:
        """``[B, T]`` bool, steps whose codes are read."""
        return self.slots >= 0 if self.ordering is None else (self.slots >= 0) & ~self.ordering.asked

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        parts = (self.tokens, self.slots, self.learned, self.documents, self.vectors, self.read_as)
        moved = [part if part is None else part.to(device) for part in parts]
        ordering = self.ordering if self.ordering is None else self.ordering.to(device)
        return Batch(*moved, ordering)  # type: ignore[arg-type]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
