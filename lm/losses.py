"""The loss on what language models predict, block by block of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .heads import CodeHead
from .sequences import TEXT, Batch
from .tables import Table


@dataclass(frozen=True)
class BlockLoss:
    """Cross-entropy of one vocabulary block."""

    mean: Tensor  #: scalar, nats per token; 0 where the batch has none
    tokens: Tensor  #: scalar int64, number of tokens it is the mean of


#: A code head of each direction of prediction and its output rows.
Heads = Sequence[tuple[CodeHead, Table]]


@dataclass(frozen=True)
class Predictors:
    """What predicts M steps."""

    states: Tensor  #: [M, S, C], one state for each direction
    shares: Tensor | None  #: [M, S], of each direction in the mean of the logits; None where there is one direction

    def leaving(self, heads: Heads, before: Tensor) -> list[Tensor]:
        """What each direction's head makes of its states, ``[M, J + 1, width]``, after codes ``[M, J, C]``."""
        return [head(self.states[:, direction], before) for direction, (head, _) in enumerate(heads)]


def mean_logits(
    heads: Heads, states: Sequence[Tensor], shares: Tensor | None, column: int, guidance: float | None = None
) -> Tensor:
    """Logits of one column of M steps: the mean over the directions that predict them, of raw logits.

    Classifiers are linear and have no bias, so shares and guidance are applied to what they read, which is exact
    and classifies half as many rows.

    Args:
        heads: S code heads and their output rows.
        states: of their heads, ``[M, width]`` each, for this column; with guidance those of steps that are given a
            condition, and behind them of those that are given nothing.
        shares: ``[M, S]`` of each direction; None where there is one.
        column: of the D columns.
        guidance: s in ``u + s (c - u)`` (https://arxiv.org/abs/2207.12598).

    Returns:
        ``[M, len(block)]`` float32, or of half the rows with guidance.
    """
    total: Tensor | None = None
    for direction, ((head, table), state) in enumerate(zip(heads, states, strict=True)):
        if shares is not None:
            state = state * shares[:, direction, None].to(state.dtype)
        if guidance is not None:
            given, free = state.chunk(2)
            state = free + guidance * (given - free)
        logits = head.column_logits(state, table, column).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total


def predictors_of(chosen: Tensor, hidden: Tensor, batch: Batch) -> Predictors:
    """What predicts the chosen steps of a batch.

    Args:
        chosen: ``[B, T]`` bool; no first step of a causal sequence.
        hidden: ``[B, T, S, C]`` states of the steps.
        batch: of the sequences.
    """
    if batch.ordering is None:
        return Predictors(hidden[:, :-1][chosen[:, 1:]], None)
    row, step = chosen.nonzero(as_tuple=True)
    sources = batch.ordering.sources[row, step]
    directions = torch.arange(sources.shape[1], device=hidden.device)
    states = hidden[row[:, None], sources.clamp_min(0), directions]
    present = (sources >= 0).to(hidden.dtype)
    return Predictors(states, present / present.sum(1, keepdim=True) if sources.shape[1] > 1 else None)


def block_losses(heads: Heads, hidden: Tensor, inputs: Table, batch: Batch) -> dict[str, BlockLoss]:
    """Cross-entropy per block: ``text``, where the vocabulary has any, and every codebook by name.

    Logits exist for the block that a step chooses from alone: no visual position pays for text, no text for codes.

    Args:
        heads: S code heads and their output rows; text leaves by the first.
        hidden: ``[B, T, S, C]`` states; in causal sequences the state at t predicts the tokens of step t + 1.
        inputs: input rows.
        batch: tokens, slots and which of them are learned. No step is predicted from another document.
    """
    (head, outputs), found = heads[0], dict[str, BlockLoss]()
    tokens, slots, learned = batch.tokens, batch.slots, batch.learned.clone()
    if batch.ordering is None:
        learned[:, 0] = False
    ends = learned & (slots == TEXT) & (tokens[..., 0] == head.stop) if head.stop is not None else ~learned & learned
    words, codes = learned & (slots == TEXT) & ~ends, learned & (slots >= 0)
    if len(head.text):
        states = predictors_of(words, hidden, batch).states[:, 0]
        logits = outputs.logits(states, head.text.ids).float()
        found["text"] = _mean(F.cross_entropy(logits, tokens[words][:, 0], reduction="sum"), len(states))
    predicting, written, places = predictors_of(codes, hidden, batch), tokens[codes], slots[codes]
    leaving = predicting.leaving(heads, inputs.embed(written[:, :-1]))
    sums, counts = dict[str, list[Tensor]](), dict.fromkeys((book.name for book in head.spec.codebooks), 0)
    for column, book in enumerate(head.spec.columns):
        step, offset = divmod(column, head.per_step)
        states, shares, targets = [part[:, offset] for part in leaving], predicting.shares, written[:, offset]
        if head.per_step != head.spec.depth:
            chosen = places * head.per_step % head.spec.depth == step * head.per_step
            states, targets = [part[chosen] for part in states], targets[chosen]
            shares = None if shares is None else shares[chosen]
        if column == 0 and head.stop is not None:
            closing = predictors_of(ends, hidden, batch).states[:, 0]
            states = [torch.cat([states[0], head(closing, closing[:, None][:, :0])[:, 0]])]
            targets = torch.cat([targets, tokens[ends][:, 0]])
        logits = mean_logits(heads, states, shares, column)
        total = F.cross_entropy(logits, head.blocks[column].choices(targets), reduction="sum")
        sums.setdefault(book.name, []).append(total)
        counts[book.name] += len(targets)
    for name, parts in sums.items():
        found[name] = _mean(torch.stack(parts).sum(), counts[name])
    return found


def total_loss(blocks: Mapping[str, BlockLoss], weights: Mapping[str, float] | None = None) -> Tensor:
    """The weighted sum of block losses, a scalar; weights are 1 where absent."""
    return torch.stack([(weights or {}).get(name, 1.0) * block.mean for name, block in blocks.items()]).sum()


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


def _mean(total: Tensor, count: int) -> BlockLoss:
    return BlockLoss(total / max(1, count), torch.tensor(count, device=total.device))
