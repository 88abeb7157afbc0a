"""Sequences and labels for both directions, built by the library so that nobody builds labels by hand.

text -> image   ``<bos> caption <image> codes </image>``                      loss on the codes
image -> text   ``<bos> <image> codes </image> <caption> caption <eos>``        loss on the caption
questions       ``... <question> q <answer> a <eos> <question> q <answer> a <eos>``   loss on the answers

Codes are unrolled position by position, columns in the order of the spec (the ``flat`` head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokenizers.codes import CodeSpec
from .vocabulary import Vocabulary

#: In ``Batch.slots``: a token that is no visual code.
TEXT = -1


@dataclass(frozen=True)
class Example:
    """One sequence: what is read and what is learned."""

    tokens: Tensor  #: [T] int64 ids of the shared vocabulary
    slots: Tensor  #: [T] int64, ``position * D + column`` of a visual code, :data:`TEXT` elsewhere
    learned: Tensor  #: [T] bool, true where predicting this token is part of the loss


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; under a causal mask no real token sees the padding."""

    tokens: Tensor  #: [B, T] int64
    slots: Tensor  #: [B, T] int64
    learned: Tensor  #: [B, T] bool

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.tokens.to(device), self.slots.to(device), self.learned.to(device))


class SequenceLayout:
    """Builds the sequences of one vocabulary and one code spec.

    Args:
        vocabulary: text, special and visual ids.
        spec: the codes; every codebook needs its block in the vocabulary.

    Raises:
        ValueError: a vocabulary whose blocks do not fit the spec.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec) -> None:
        if vocabulary.codebooks != spec.codebooks:
            raise ValueError(
                f"the vocabulary must have the blocks {spec.codebooks} of the tokenizer, got {vocabulary.codebooks}; "
                "make them with vocabulary.with_codebooks"
            )
        self.vocabulary, self.spec = vocabulary, spec
        self.offsets = [vocabulary.block(book.name).start for book in spec.columns]

    def text_to_image(self, caption: str | None, ids: Tensor, questions: Sequence[tuple[str, str]] = ()) -> Example:
        """Learn the codes ``[N, D]`` given a caption; ``None`` drops it, for classifier-free guidance.

        Args:
            caption: what is read first.
            ids: codes of one image.
            questions: pairs of question and answer that follow the image; the answers are learned too.
        """
        parts = [(self.prompt(caption), False), (self.codes(ids), True), (self._special("</image>"), False)]
        return _join(parts + self._answered(questions))

    def image_to_text(
        self, ids: Tensor, caption: str | None, questions: Sequence[tuple[str, str]] = (), learn_codes: bool = False
    ) -> Example:
        """Learn a caption and the answers to questions given codes ``[N, D]``.

        Args:
            ids: codes of one image.
            caption: text to learn, or ``None``.
            questions: pairs of question and answer about the image.
            learn_codes: learn the codes too, as an image without a caption.
        """
        parts = [(self.prompt(None), False), (self.codes(ids), learn_codes), (self._special("</image>"), False)]
        if caption is not None:
            parts += [(self.caption_opener(), False), (self._text(caption, "<eos>"), True)]
        return _join(parts + self._answered(questions))

    def prompt(self, caption: str | None) -> Tensor:
        """``<bos> caption <image>`` as ``[T, 2]`` (token, slot) rows: what generation starts from."""
        text = [] if caption is None else self.vocabulary.encode(caption)
        return _text_rows([self.vocabulary.special("<bos>"), *text, self.vocabulary.special("<image>")])

    def image(self, ids: Tensor) -> Tensor:
        """``<bos> <image> codes </image>`` rows of codes ``[N, D]``: what questions are asked about."""
        return torch.cat([self.prompt(None), self.codes(ids), self._special("</image>")])

    def question(self, question: str) -> Tensor:
        """``<question> q <answer>`` rows."""
        text = self.vocabulary.encode(question)
        return _text_rows([self.vocabulary.special("<question>"), *text, self.vocabulary.special("<answer>")])

    def caption_opener(self) -> Tensor:
        """``<caption>`` as a row: what a caption follows."""
        return self._special("<caption>")

    def codes(self, ids: Tensor) -> Tensor:
        """Codes ``[N, D]`` unrolled to ``[N * D, 2]`` rows.

        Raises:
            ValueError: another number of positions or columns than the spec's, or an id outside its codebook.
        """
        if ids.shape != (self.spec.positions, self.spec.depth):
            raise ValueError(
                f"codes must be [{self.spec.positions}, {self.spec.depth}] (N, D), got {list(ids.shape)}; "
                "encode the images with the tokenizer of this model"
            )
        sizes = [book.size for book in self.spec.columns]
        if bool(((ids < 0) | (ids >= torch.tensor(sizes))).any()):
            raise ValueError(
                f"codes must lie in [0, K) with K = {sizes} by column, got {int(ids.min())}..{int(ids.max())}; "
                "encode the images with the tokenizer of this model"
            )
        return torch.stack([(ids + torch.tensor(self.offsets)).flatten(), torch.arange(ids.numel())], dim=1)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples on the right to one batch."""
        pad = torch.nn.utils.rnn.pad_sequence
        return Batch(
            pad([e.tokens for e in examples], True, float(self.vocabulary.special("<pad>"))),
            pad([e.slots for e in examples], True, float(TEXT)),
            pad([e.learned for e in examples], True, False),
        )

    def _answered(self, questions: Sequence[tuple[str, str]]) -> list[tuple[Tensor, bool]]:
        pairs = [((self.question(q), False), (self._text(a, "<eos>"), True)) for q, a in questions]
        return [part for pair in pairs for part in pair]

    def _special(self, token: str) -> Tensor:
        return _text_rows([self.vocabulary.special(token)])

    def _text(self, text: str, end: str) -> Tensor:
        return _text_rows([*self.vocabulary.encode(text), self.vocabulary.special(end)])


def _text_rows(tokens: list[int]) -> Tensor:
    return torch.tensor([(token, TEXT) for token in tokens])


def _join(parts: list[tuple[Tensor, bool]]) -> Example:
    rows = torch.cat([rows for rows, _ in parts])
    learned = torch.cat([torch.full((len(rows),), learn) for rows, learn in parts])
    return Example(rows[:, 0], rows[:, 1], learned)
