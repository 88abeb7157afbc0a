"""How predictions leave the language model.

A head decides how many columns of a position one step of the sequence writes. ``flat``: one; every column of every
position is a step of its own. ``parallel``: all of them at once, each by a classifier of its own. ``depth``: all of
them, one after the other: a small causal transformer over the columns turns the state of a step into one state per
column, each seeing the codes before it (the depth transformer of https://arxiv.org/abs/2203.01941).

Logits are computed per vocabulary block, so that no visual position pays for text logits and no text position for
visual ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.codes import CodeSpec
from .tables import Table
from .vocabulary import Vocabulary

Classifiers = Literal["rows", "column"]
Inputs = Literal["each", "sum"]


@dataclass(frozen=True)
class Block:
    """What one column of a step chooses from: ids in a row, and perhaps the end of the image."""

    ids: range  #: of the shared vocabulary
    stop: int | None = None  #: one more id, chosen last; None where an image always has all its positions

    def __len__(self) -> int:
        return len(self.ids) + (self.stop is not None)

    def tokens(self, chosen: Tensor) -> Tensor:
        """Ids of the shared vocabulary for choices in ``[0, len)``."""
        found = chosen + self.ids.start
        return found if self.stop is None else found.masked_fill(chosen == len(self.ids), self.stop)

    def choices(self, tokens: Tensor) -> Tensor:
        """The inverse of :meth:`tokens`."""
        found = tokens - self.ids.start
        return found if self.stop is None else found.masked_fill(tokens == self.stop, len(self.ids))


class CodeHead(nn.Module):
    """Which block predicts which token, from which state, and by which classifier.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
        per_step: W, columns that one step writes; divides the spec's D.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, per_step: int) -> None:
        super().__init__()
        self.spec, self.per_step = spec, per_step
        self.text = Block(range(vocabulary.text_size + len(vocabulary.specials)))
        self.stop = vocabulary.special("</image>") if spec.dynamic else None
        self.blocks = [Block(vocabulary.block(book.name)) for book in spec.columns]
        self.blocks[0] = replace(self.blocks[0], stop=self.stop)

    @abstractmethod
    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """States that predict the columns of a step.

        Args:
            hidden: ``[M, C]`` states of the steps before.
            before: ``[M, J, C]`` input embeddings of the codes that the step has written so far, ``J < W``.

        Returns:
            ``[M, J + 1, width]``: state j predicts column j of the step.
        """

    def classifier(self, column: int) -> Tensor | None:
        """``[K, width]`` of one of the D columns; None where the rows of the output matrix classify."""
        return None

    def at(self, slot: int) -> list[Block]:
        """The blocks of what a step writes: one of text, or W of codes."""
        if slot < 0:
            return [self.text]
        first = slot * self.per_step % self.spec.depth
        return self.blocks[first : first + self.per_step]

    def column_logits(self, states: Tensor, outputs: Table, column: int) -> Tensor:
        """Logits ``[..., len(block)]`` of one of the D columns from states ``[..., width]``."""
        block, own = self.blocks[column], self.classifier(column)
        found = outputs.logits(states, block.ids) if own is None else F.linear(states, own)
        return found if block.stop is None else torch.cat([found, self._stop_logit(states, outputs, own)], dim=-1)

    def _stop_logit(self, states: Tensor, outputs: Table, own: Tensor | None) -> Tensor:
        if self.stop is None or own is not None:
            raise ValueError(
                "codes of dynamic length are classified by rows of the output matrix; use classifiers rows"
            )
        return outputs.logits(states, range(self.stop, self.stop + 1))


class FlatHead(CodeHead):
    """One column per step, predicted by the state of the step before.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec) -> None:
        super().__init__(vocabulary, spec, 1)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """See :class:`CodeHead`."""
        return hidden[:, None]


class ParallelHead(CodeHead):
    """All columns of a position at once from one state, independently of each other.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes; of fixed length.
        hidden_size: C of the backbone.

    Raises:
        ValueError: codes of dynamic length.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, hidden_size: int) -> None:
        super().__init__(vocabulary, spec, spec.depth)
        _need_fixed("a parallel head", spec)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, book.size, bias=False) for book in spec.columns)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """See :class:`CodeHead`."""
        return hidden[:, None].expand(-1, before.shape[1] + 1, -1)

    def classifier(self, column: int) -> Tensor:
        """See :class:`CodeHead`."""
        return _weight(self.classifiers[column])


class DepthHead(CodeHead):
    """All columns of a position in one step, one after the other through a small causal transformer.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
        hidden_size: C of the backbone.
        width: of the small transformer; C by default.
        layers: of it.
        heads: of its attention.
        classifiers: ``rows`` of the output matrix, which columns of one codebook share (as in UniTok), or one for each
            ``column`` (as in DualToken).
        inputs: what a column reads: the code before it (``each``), or the sum of all codes before it (``sum``, as in
            DualToken).

    Raises:
        ValueError: a width that the heads do not divide, or classifiers by column for codes of dynamic length.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        spec: CodeSpec,
        hidden_size: int,
        width: int | None = None,
        layers: int = 1,
        heads: int = 4,
        classifiers: Classifiers = "rows",
        inputs: Inputs = "each",
    ) -> None:
        super().__init__(vocabulary, spec, spec.depth)
        width = width or hidden_size
        if width % heads:
            raise ValueError(f"the depth head's width must be a multiple of its heads, got {width} and {heads}")
        self.summed = inputs == "sum"
        self.enter_state = nn.Linear(hidden_size, width, bias=False)
        self.enter_code = nn.Linear(hidden_size, width, bias=False)
        self.column = nn.Embedding(spec.depth, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classifiers = None
        if classifiers == "column":
            _need_fixed("classifiers by column", spec)
            self.classifiers = nn.ModuleList(nn.Linear(width, book.size, bias=False) for book in spec.columns)
        else:
            self.leave = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """See :class:`CodeHead`."""
        codes = before.cumsum(1) if self.summed else before
        entered = torch.cat([self.enter_state(hidden)[:, None], self.enter_code(codes)], dim=1)
        rows, length = entered.shape[:2]
        entered = (
            entered if rows else F.pad(entered, (0, 0, 0, 0, 0, 1))
        )  # on CUDA, attention to no rows returns nothing
        mask = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        states = self.layers(entered + self.column.weight[:length], mask=mask, is_causal=True)[:rows]
        return self.leave(states) if self.classifiers is None else states

    def classifier(self, column: int) -> Tensor | None:
        """See :class:`CodeHead`."""
        return None if self.classifiers is None else _weight(self.classifiers[column])


class ApartHead(CodeHead):
    """A depth transformer for each codebook, which sees nothing of the others (DualToken's visual heads).

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes; of fixed length.
        hidden_size: C of the backbone.
        width: see :class:`DepthHead`.
        layers: see :class:`DepthHead`; 3 in the paper.
        heads: see :class:`DepthHead`.
        classifiers: see :class:`DepthHead`.
        inputs: see :class:`DepthHead`.

    Raises:
        ValueError: codes of dynamic length, or as :class:`DepthHead`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        spec: CodeSpec,
        hidden_size: int,
        width: int | None = None,
        layers: int = 3,
        heads: int = 4,
        classifiers: Classifiers = "column",
        inputs: Inputs = "sum",
    ) -> None:
        super().__init__(vocabulary, spec, spec.depth)
        _need_fixed("depth transformers apart", spec)
        alone = [replace(spec, codebooks=(book,)) for book in spec.codebooks]
        options = (hidden_size, width, layers, heads, classifiers, inputs)
        self.parts = nn.ModuleList(DepthHead(vocabulary, part, *options) for part in alone)
        self._owners = [(part, column) for part, one in enumerate(alone) for column in range(one.depth)]

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """See :class:`CodeHead`."""
        wanted = before.shape[1] + 1
        found = [
            part(hidden, before[:, columns.start : min(columns.stop, wanted) - 1])
            for part, columns in zip(self.parts, self.spec.slices().values(), strict=True)
            if columns.start < wanted
        ]
        return torch.cat(found, dim=1)

    def classifier(self, column: int) -> Tensor | None:
        """See :class:`CodeHead`."""
        part, own = self._owners[column]
        head = self.parts[part]
        return head.classifier(own) if isinstance(head, CodeHead) else None


#: Heads by the name they have in a configuration.
HEADS: Mapping[str, type[CodeHead]] = {
    "flat": FlatHead,
    "parallel": ParallelHead,
    "depth": DepthHead,
    "apart": ApartHead,
}


def default_head(spec: CodeSpec) -> dict[str, Any]:
    """The head for codes of a kind: ``flat`` where a position has one code, ``depth`` where it has several."""
    return {"kind": "flat" if spec.depth == 1 else "depth"}


def code_head(fields: Mapping[str, Any], vocabulary: Vocabulary, spec: CodeSpec, hidden_size: int) -> CodeHead:
    """The head that a configuration asks for.

    Args:
        fields: ``kind`` (``flat`` by default, ``parallel``, ``depth`` or ``apart``) and the arguments of its class.
        vocabulary: the shared vocabulary.
        spec: the codes.
        hidden_size: C of the backbone.

    Raises:
        ValueError: an unknown kind, or arguments that it does not have.
    """
    options = dict(fields)
    kind = options.pop("kind", "flat")
    if kind not in HEADS:
        raise ValueError(f"the code head must be one of {', '.join(HEADS)}, got {kind!r}; choose one of them")
    known = [name for name in signature(HEADS[kind]).parameters if name not in ("vocabulary", "spec", "hidden_size")]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"a {kind} head takes {', '.join(known) or 'no options'}, got {', '.join(unknown)}; correct or remove them"
        )
    sizes = {} if kind == "flat" else {"hidden_size": hidden_size}
    return HEADS[kind](vocabulary, spec, **sizes, **options)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _need_fixed(what: str, spec: CodeSpec) -> None:
    if spec.dynamic:
        raise ValueError(f"{what} cannot end an image, which codes of dynamic length need; use a flat or depth head")
