"""Sequences and labels for both directions, built by the library so that nobody builds labels by hand.

text -> image   ``<bos> caption <image> codes </image>``                              loss on the codes
image -> text   ``<bos> <image> codes </image> <question> q <answer> a <eos> ... <caption> caption <eos>``
                loss on answers and caption; questions come first, because a caption before them would answer them

A sequence is made of steps. A step of text writes one token; a step of an image writes W columns of a position, one
(the ``flat`` head, codes unrolled position by position) or all of them (the ``depth`` head). Slot s of an image is the
step that writes columns ``s * W`` to ``(s + 1) * W`` of its codes ``[N * D]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokenizers.codes import CodeSpec
from .vocabulary import Vocabulary

#: In ``Batch.slots``: a step of text.
TEXT = -1
#: In ``Batch.tokens``: no token, where a step writes fewer than W.
NONE = -1


@dataclass(frozen=True)
class Example:
    """One sequence: what is read and what is learned."""

    tokens: Tensor  #: [T, W] int64 ids of the shared vocabulary, :data:`NONE` where a step writes fewer
    slots: Tensor  #: [T] int64, the step of an image, :data:`TEXT` elsewhere
    learned: Tensor  #: [T] bool, true where predicting this step is part of the loss


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; under a causal mask no real token sees the padding."""

    tokens: Tensor  #: [B, T, W] int64
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
        per_step: W, columns that one step writes; divides the spec's D.

    Rows are ``[T, W + 1]`` int64: the tokens of a step, then its slot.

    Raises:
        ValueError: a vocabulary whose blocks do not fit the spec.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, per_step: int = 1) -> None:
        if vocabulary.codebooks != spec.codebooks:
            raise ValueError(
                f"the vocabulary must have the blocks {spec.codebooks} of the tokenizer, got {vocabulary.codebooks}; "
                "make them with vocabulary.with_codebooks"
            )
        self.vocabulary, self.spec, self.per_step = vocabulary, spec, per_step
        starts, sizes = [vocabulary.block(book.name).start for book in spec.columns], [b.size for b in spec.columns]
        # On the CPU also while a model is loaded, when transformers makes everything on the meta device.
        self._offsets, self._sizes = torch.tensor(starts, device="cpu"), torch.tensor(sizes, device="cpu")
        self._slots = torch.arange(self.steps, device="cpu")[:, None]

    @property
    def steps(self) -> int:
        """Steps of one image."""
        return self.spec.positions * self.spec.depth // self.per_step

    def text_to_image(self, caption: str | None, ids: Tensor) -> Example:
        """Learn the codes ``[N, D]`` given a caption; ``None`` drops it, for classifier-free guidance."""
        return _join([(self.prompt(caption), False), (self.codes(ids), True), (self._special("</image>"), False)])

    def image_to_text(
        self, ids: Tensor, caption: str | None, questions: Sequence[tuple[str, str]] = (), learn_codes: bool = False
    ) -> Example:
        """Learn the answers to questions and a caption given codes ``[N, D]``.

        Args:
            ids: codes of one image.
            caption: text to learn, or ``None``.
            questions: pairs of question and answer about the image.
            learn_codes: learn the codes too, as an image without a caption.
        """
        parts = [(self.prompt(None), False), (self.codes(ids), learn_codes), (self._special("</image>"), False)]
        for question, answer in questions:
            parts += [(self.question(question), False), (self._text(answer, "<eos>"), True)]
        if caption is not None:
            parts += [(self.caption_opener(), False), (self._text(caption, "<eos>"), True)]
        return _join(parts)

    def prompt(self, caption: str | None) -> Tensor:
        """``<bos> caption <image>`` as rows: what generation starts from."""
        text = [] if caption is None else self.vocabulary.encode(caption)
        return self._rows([self.vocabulary.special("<bos>"), *text, self.vocabulary.special("<image>")])

    def image(self, ids: Tensor) -> Tensor:
        """``<bos> <image> codes </image>`` rows of codes ``[N, D]``: what questions are asked about."""
        return torch.cat([self.prompt(None), self.codes(ids), self._special("</image>")])

    def question(self, question: str) -> Tensor:
        """``<question> q <answer>`` rows."""
        text = self.vocabulary.encode(question)
        return self._rows([self.vocabulary.special("<question>"), *text, self.vocabulary.special("<answer>")])

    def caption_opener(self) -> Tensor:
        """``<caption>`` as a row: what a caption follows."""
        return self._special("<caption>")

    def codes(self, ids: Tensor) -> Tensor:
        """Codes ``[N, D]`` as one row per step.

        Raises:
            ValueError: another number of positions or columns than the spec's, or an id outside its codebook.
        """
        if ids.shape != (self.spec.positions, self.spec.depth):
            raise ValueError(
                f"codes must be [{self.spec.positions}, {self.spec.depth}] (N, D), got {list(ids.shape)}; "
                "encode the images with the tokenizer of this model"
            )
        if bool(((ids < 0) | (ids >= self._sizes)).any()):
            raise ValueError(
                f"codes must lie in [0, K) with K = {self._sizes.tolist()} by column, got "
                f"{int(ids.min())}..{int(ids.max())}; encode the images with the tokenizer of this model"
            )
        return torch.cat([(ids + self._offsets).view(self.steps, self.per_step), self._slots], dim=1)

    def rows(self, tokens: Tensor, slot: int) -> Tensor:
        """Rows ``[B, 1, W + 1]`` of one step that wrote tokens ``[B, <= W]``."""
        padded = torch.nn.functional.pad(tokens, (0, self.per_step - tokens.shape[1]), value=NONE)
        return torch.nn.functional.pad(padded, (0, 1), value=slot)[:, None]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples on the right to one batch."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([e.tokens for e in examples], True, float(NONE))
        slots, learned = pad([e.slots for e in examples], True, TEXT), pad([e.learned for e in examples], True, False)
        tokens[..., 0].masked_fill_(tokens[..., 0] == NONE, self.vocabulary.special("<pad>"))
        return Batch(tokens, slots, learned)

    def _rows(self, tokens: Sequence[int]) -> Tensor:
        rest = [NONE] * (self.per_step - 1) + [TEXT]
        return torch.tensor([[token, *rest] for token in tokens])

    def _special(self, token: str) -> Tensor:
        return self._rows([self.vocabulary.special(token)])

    def _text(self, text: str, end: str) -> Tensor:
        return self._rows([*self.vocabulary.encode(text), self.vocabulary.special(end)])


def _join(parts: list[tuple[Tensor, bool]]) -> Example:
    rows = torch.cat([rows for rows, _ in parts])
    learned = torch.tensor([learn for rows, learn in parts for _ in range(rows.shape[0])])
    return Example(rows[:, :-1], rows[:, -1], learned)
