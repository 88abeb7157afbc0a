"""How predictions leave the language model, and the loss on them.

A head decides how many columns of a position one step of the sequence writes. ``flat``: one; every column of every
position is a step of its own. ``depth``: all of them; a small causal transformer over the columns turns the state of a
step into one state per column, each seeing the codes before it (the depth transformer of https://arxiv.org/abs/2203.01941).

Logits are computed per vocabulary block, so that no visual position pays for text logits and no text position for
visual ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.codes import CodeSpec
from .layout import TEXT, Batch
from .vocabulary import SPECIALS, Vocabulary


@dataclass(frozen=True)
class BlockLoss:
    """Cross-entropy of one vocabulary block."""

    mean: Tensor  #: scalar, nats per token; 0 where the batch has none
    tokens: Tensor  #: scalar int64, number of tokens it is the mean of


def merged(parts: Sequence[Mapping[str, BlockLoss]]) -> dict[str, BlockLoss]:
    """The losses of several batches as those of one: means over the tokens of all."""
    if len(parts) == 1:
        return dict(parts[0])
    found: dict[str, BlockLoss] = {}
    for name in parts[0]:
        tokens = torch.stack([part[name].tokens for part in parts])
        means = torch.stack([part[name].mean for part in parts])
        found[name] = BlockLoss((means * tokens).sum() / tokens.sum().clamp_min(1), tokens.sum())
    return found


class CodeHead(nn.Module):
    """Blocks of the output matrix, which block predicts which token, and from which state.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
        per_step: W, columns that one step writes; divides the spec's D.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, per_step: int) -> None:
        super().__init__()
        self.spec, self.per_step = spec, per_step
        self.text = range(vocabulary.text_size + len(SPECIALS))
        self.blocks = {book.name: vocabulary.block(book.name) for book in spec.codebooks}
        self.columns = [book.name for book in spec.columns]

    @abstractmethod
    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """States that predict the columns of a step.

        Args:
            hidden: ``[M, C]`` states of the steps before.
            before: ``[M, J, C]`` input embeddings of the codes that the step has written so far, ``J < W``.

        Returns:
            ``[M, J + 1, C]``: state j predicts column j of the step.
        """

    def at(self, slot: int) -> list[range]:
        """The blocks of what a step writes: one of text, or W of codes."""
        if slot == TEXT:
            return [self.text]
        first = slot * self.per_step % self.spec.depth
        return [self.blocks[name] for name in self.columns[first : first + self.per_step]]

    def losses(self, hidden: Tensor, embeddings: Tensor, outputs: Tensor, batch: Batch) -> dict[str, BlockLoss]:
        """Cross-entropy per block: ``text`` and every codebook by name.

        Args:
            hidden: ``[B, T, C]`` states; the state at t predicts the tokens of step t + 1.
            embeddings: ``[V, C]`` input embeddings.
            outputs: ``[V, C]`` output matrix.
            batch: tokens, slots and which of them are learned.
        """
        tokens, slots, learned = batch.tokens[:, 1:], batch.slots[:, 1:], batch.learned[:, 1:]
        hidden = hidden[:, :-1]
        words, codes = learned & (slots == TEXT), learned & (slots != TEXT)
        found = {"text": _cross_entropy(hidden[words], outputs, tokens[words][:, 0], self.text)}
        written = tokens[codes]
        states = self(hidden[codes], F.embedding(written[:, :-1], embeddings))
        columns = slots[codes][:, None] * self.per_step % self.spec.depth + torch.arange(self.per_step).to(slots)
        for name, part in self.spec.slices().items():
            chosen = (columns >= part.start) & (columns < part.stop)
            found[name] = _cross_entropy(states[chosen], outputs, written[chosen], self.blocks[name])
        return found


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


class DepthHead(CodeHead):
    """All columns of a position in one step, one after the other through a small causal transformer.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
        hidden_size: C of the backbone.
        width: of the small transformer.
        layers: of it.
        heads: of its attention.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(
        self, vocabulary: Vocabulary, spec: CodeSpec, hidden_size: int, width: int, layers: int = 1, heads: int = 4
    ) -> None:
        super().__init__(vocabulary, spec, spec.depth)
        if width % heads:
            raise ValueError(f"the depth head's width must be a multiple of its heads, got {width} and {heads}")
        self.enter_state = nn.Linear(hidden_size, width, bias=False)
        self.enter_code = nn.Linear(hidden_size, width, bias=False)
        self.column = nn.Embedding(spec.depth, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """See :class:`CodeHead`."""
        entered = torch.cat([self.enter_state(hidden)[:, None], self.enter_code(before)], dim=1)
        length = entered.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        states = self.layers(entered + self.column.weight[:length], mask=mask, is_causal=True)
        return self.leave(states)


#: Heads by the name they have in a configuration.
HEADS = ("flat", "depth")


def code_head(fields: Mapping[str, Any], vocabulary: Vocabulary, spec: CodeSpec, hidden_size: int) -> CodeHead:
    """The head that a configuration asks for.

    Args:
        fields: ``kind`` (``flat`` by default, or ``depth``) and the arguments of its class; the width of ``depth`` is
            ``hidden_size`` where none is given.
        vocabulary: the shared vocabulary.
        spec: the codes.
        hidden_size: C of the backbone.

    Raises:
        ValueError: an unknown kind, or arguments that it does not have.
    """
    options = dict(fields)
    kind = options.pop("kind", HEADS[0])
    if kind not in HEADS:
        raise ValueError(f"the code head must be one of {', '.join(HEADS)}, got {kind!r}")
    try:
        if kind == "flat":
            return FlatHead(vocabulary, spec, **options)
        return DepthHead(vocabulary, spec, hidden_size, **{"width": hidden_size} | options)
    except TypeError as error:
        raise ValueError(
            f"a {kind} head takes {'width, layers and heads' if kind == 'depth' else 'no options'}, got "
            f"{', '.join(options)}; correct or remove them"
        ) from error


def block_logits(states: Tensor, outputs: Tensor, block: range) -> Tensor:
    """Logits ``[..., len(block)]`` of states ``[..., C]`` under the output matrix ``[V, C]``."""
    return F.linear(states, outputs[block.start : block.stop])


def _cross_entropy(states: Tensor, outputs: Tensor, tokens: Tensor, block: range) -> BlockLoss:
    logits = block_logits(states, outputs, block).float()
    total = F.cross_entropy(logits, tokens - block.start, reduction="sum")
    return BlockLoss(total / max(1, len(tokens)), torch.tensor(len(tokens), device=tokens.device))
