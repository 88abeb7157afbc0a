"""How predictions leave the language model, and the loss on them.

The ``flat`` head: every column of every position is a step of the sequence. Logits are computed per vocabulary block,
so that no visual position pays for text logits and no text position for visual ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tokenizers.codes import CodeSpec
from .layout import TEXT, Batch
from .vocabulary import SPECIALS, Vocabulary


@dataclass(frozen=True)
class BlockLoss:
    """Cross-entropy of one vocabulary block."""

    mean: Tensor  #: scalar, nats per token; 0 where the batch has none
    tokens: Tensor  #: scalar int64, number of tokens it is the mean of


class FlatHead:
    """Blocks of the output matrix and which block predicts which token.

    Args:
        vocabulary: the shared vocabulary.
        spec: the codes.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec) -> None:
        self.spec = spec
        self.text = range(vocabulary.text_size + len(SPECIALS))
        self.blocks = {book.name: vocabulary.block(book.name) for book in spec.codebooks}
        self.columns = [book.name for book in spec.columns]

    def block(self, slot: int) -> range:
        """Ids that can stand at a slot."""
        return self.text if slot == TEXT else self.blocks[self.columns[slot % self.spec.depth]]

    def logits(self, hidden: Tensor, weight: Tensor, block: range) -> Tensor:
        """Logits ``[..., len(block)]`` of hidden states ``[..., C]`` under the output matrix ``[V, C]``."""
        return F.linear(hidden, weight[block.start : block.stop])

    def losses(self, hidden: Tensor, weight: Tensor, batch: Batch) -> dict[str, BlockLoss]:
        """Cross-entropy per block: ``text`` and every codebook by name.

        Args:
            hidden: ``[B, T, C]`` states; the state at t predicts token t + 1.
            weight: ``[V, C]`` output matrix.
            batch: tokens, slots and which of them are learned.
        """
        tokens, slots, learned = batch.tokens[:, 1:], batch.slots[:, 1:], batch.learned[:, 1:]
        hidden = hidden[:, :-1]
        found = {"text": self._loss(hidden, weight, tokens, learned & (slots == TEXT), self.text)}
        column = torch.where(slots == TEXT, TEXT, slots % self.spec.depth)
        for name, part in self.spec.slices().items():
            chosen = learned & (column >= part.start) & (column < part.stop)
            found[name] = self._loss(hidden, weight, tokens, chosen, self.blocks[name])
        return found

    def _loss(self, hidden: Tensor, weight: Tensor, tokens: Tensor, chosen: Tensor, block: range) -> BlockLoss:
        count = chosen.sum()
        logits = self.logits(hidden[chosen], weight, block).float()
        total = F.cross_entropy(logits, tokens[chosen] - block.start, reduction="sum")
        return BlockLoss(total / count.clamp_min(1), count)
