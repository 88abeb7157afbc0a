"""Sequences and labels for both directions, built by the library so that nobody builds labels by hand.

text -> image   ``<bos> caption <image> codes </image>``                              loss on the codes
image -> text   ``<bos> <image> codes </image> <question> q <answer> a <eos> ... <caption> caption <eos>``
                loss on answers and caption; questions come first, because a caption before them would answer them
class -> image  ``class codes``, of a vocabulary without text
vectors -> image   ``vectors codes``, likewise
document        ``<bos>`` words, pictures, questions and captions in any order ``<eos>``

A sequence is made of steps. A step of text writes one token; a step of an image writes W columns of a position, one
(the ``flat`` head, codes unrolled position by position) or all of them (``parallel`` and ``depth``). Slot s of an image
is the step that writes columns ``s * W`` to ``(s + 1) * W`` of its codes ``[N * D]``. Codes of dynamic length end where
they end: ``</image>`` is then learned too, as one more choice beside the first column's codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..tokenizers.codes import PADDING, CodeSpec
from .ordering import Ordering, chained, padded
from .parsing import SequenceReader
from .plans import ABSENT, PROMPT, PlanRows
from .sequences import (
    CLASS,
    EXTRA,
    NONE,
    TEXT,
    VECTOR,
    Batch,
    Caption,
    Example,
    Label,
    Part,
    Picture,
    Question,
    Rows,
    Vectors,
    Words,
)
from .vocabulary import Vocabulary


class SequenceLayout:
    """Builds the sequences of one vocabulary and one code spec.

    Args:
        vocabulary: text, special and visual ids.
        spec: the codes; every codebook needs its block in the vocabulary.
        per_step: W, columns that one step writes; divides the spec's D.
        classes: number of classes of a class-conditional model; the class of that number stands for none.

    Rows are ``[T, W + 1]`` int64: the tokens of a step, then its slot.

    Raises:
        ValueError: a vocabulary whose blocks do not fit the spec.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, per_step: int = 1, classes: int = 0) -> None:
        if vocabulary.codebooks != spec.codebooks:
            raise ValueError(
                f"the vocabulary must have the blocks {spec.codebooks} of the tokenizer, got {vocabulary.codebooks}; "
                "make them with vocabulary.with_codebooks"
            )
        self.vocabulary, self.spec, self.per_step, self.classes = vocabulary, spec, per_step, classes
        starts, sizes = [vocabulary.block(book.name).start for book in spec.columns], [b.size for b in spec.columns]
        # On the CPU also while a model is loaded, when transformers makes everything on the meta device.
        self._offsets, self._sizes = torch.tensor(starts, device="cpu"), torch.tensor(sizes, device="cpu")
        self._slots = torch.arange(self.steps, device="cpu")[:, None]

    @property
    def steps(self) -> int:
        """Steps of one image, of the longest where the spec is dynamic."""
        return self.spec.positions * self.spec.depth // self.per_step

    @property
    def brackets(self) -> bool:
        """Whether images stand between ``<image>`` and ``</image>``: where there is text beside them."""
        return self.vocabulary.text_size > 0

    def build(self, parts: Sequence[Part]) -> Example:
        """One sequence of parts in their order; :meth:`parse` is the inverse.

        ``<eos>`` follows words that end a sequence and are learned.

        Raises:
            ValueError: words after words, codes of another shape or outside their codebooks, a class out of range,
                words that the vocabulary lacks.
        """
        pieces, vectors, read_as = _Pieces(), list[Tensor](), list[Tensor]()
        if self.brackets:
            pieces.add(self._special("<bos>"))
        for number, part in enumerate(parts):
            if isinstance(part, Words):
                if number and isinstance(parts[number - 1], Words):
                    raise ValueError("words must not follow words, got two in a row; join them to one text")
                end = "<eos>" if part.learned and number == len(parts) - 1 else None
                pieces.add(self._text(part.text, end), part.learned)
            elif isinstance(part, Question):
                pieces.add(self.question(part.question))
                pieces.add(self._text(part.answer, "<eos>"), True)
            elif isinstance(part, Caption):
                pieces.add(self.caption_opener())
                pieces.add(self._text(part.text, "<eos>"), True)
            elif isinstance(part, Label):
                pieces.add(self._label(part.number))
            elif isinstance(part, Vectors):
                pieces.add(self._vectors(len(part.values)))
                vectors.append(part.values)
            else:
                self._picture(pieces, part)
                read_as += [] if part.read_as is None else [_in_order(part.read_as, part.rows)]
        rows = torch.cat(pieces.rows)
        learned = torch.tensor(pieces.learned)
        ordering = pieces.ordering()
        return Example(rows[:, :-1], rows[:, -1], learned, _joined(vectors), _joined(read_as), ordering)

    def parse(self, example: Example) -> list[Part]:
        """The parts that a sequence was built from.

        Raises:
            ValueError: a sequence that :meth:`build` does not make, or pictures in another order than raster.
        """
        if example.ordering is not None:
            raise ValueError("sequences are parsed in raster order, got one in another; build it without an order")
        return SequenceReader(self.vocabulary, self.spec, example).parts()

    def document(self, parts: Sequence[str | Tensor]) -> Example:
        """Text and pictures in turns, all of it learned: sentences, and codes ``[N, D]``.

        Where a picture begins is learned too, except at the very beginning.
        """
        made = [
            Words(part) if isinstance(part, str) else Picture(part, opens=number > 0)
            for number, part in enumerate(parts)
        ]
        return self.build(made)

    def text_to_image(
        self, caption: str | None, ids: Tensor, read_as: Tensor | None = None, rows: PlanRows | None = None
    ) -> Example:
        """Learn the codes ``[N, D]`` given a caption; ``None`` drops it, for classifier-free guidance."""
        given = [] if caption is None else [Words(caption, learned=False)]
        return self.build([*given, Picture(ids, read_as=read_as, rows=rows)])

    def class_to_image(self, number: int | None, ids: Tensor, rows: PlanRows | None = None) -> Example:
        """Learn the codes ``[N, D]`` given a class; ``None`` drops it, for classifier-free guidance."""
        return self.build([Label(self.classes if number is None else number), Picture(ids, rows=rows)])

    def image_to_text(
        self,
        ids: Tensor,
        caption: str | None,
        questions: Sequence[tuple[str, str]] = (),
        learn_codes: bool = False,
        read_as: Tensor | None = None,
    ) -> Example:
        """Learn the answers to questions and a caption given codes ``[N, D]``.

        Args:
            ids: codes of one image.
            caption: text to learn, or ``None``.
            questions: pairs of question and answer about the image.
            learn_codes: learn the codes too, as an image without a caption.
            read_as: see :class:`Picture`.
        """
        told = [] if caption is None else [Caption(caption)]
        asked = [Question(question, answer) for question, answer in questions]
        return self.build([Picture(ids, learn_codes, read_as=read_as), *asked, *told])

    def prompt(self, condition: str | int | Tensor | None) -> Rows:
        """What the generation of an image starts from.

        Args:
            condition: a caption, a class, vectors ``[n, F]``, or ``None`` for nothing (or the class of none).
        """
        if not self.brackets and (condition is None or isinstance(condition, int)):
            return Rows(self._label(self.classes if condition is None else condition))
        if isinstance(condition, int):
            raise ValueError(f"a model with text takes captions, got class {condition}; describe the image in words")
        rows, vectors = [self._special("<bos>")] if self.brackets else [], None
        if isinstance(condition, str):
            rows.append(self._text(condition))
        elif condition is not None:
            rows, vectors = [*rows, self._vectors(len(condition))], condition
        return Rows(torch.cat([*rows, *([self._special("<image>")] if self.brackets else [])]), vectors)

    def image(self, ids: Tensor) -> Tensor:
        """``<bos> <image> codes </image>`` rows of codes ``[N, D]``: what questions are asked about."""
        return torch.cat([self.prompt(None).rows, self.codes(ids), self._special("</image>")])

    def question(self, question: str) -> Tensor:
        """``<question> q <answer>`` rows."""
        text = self.vocabulary.encode(question)
        return self._rows([self.vocabulary.special("<question>"), *text, self.vocabulary.special("<answer>")])

    def caption_opener(self) -> Tensor:
        """``<caption>`` as a row: what a caption follows."""
        return self._special("<caption>")

    def codes(self, ids: Tensor) -> Tensor:
        """Codes ``[N, D]`` as one row per step; of a dynamic spec, those before the padding.

        Raises:
            ValueError: another number of positions or columns than the spec's, or an id outside its codebook.
        """
        kept = ids[ids[:, 0] != PADDING] if self.spec.dynamic and ids.ndim == 2 else ids
        fits = kept.shape == (self.spec.positions, self.spec.depth)
        if not fits and not (self.spec.dynamic and kept.ndim == 2 and 0 < len(kept) <= self.spec.positions):
            raise ValueError(
                f"codes must be [{self.spec.positions}, {self.spec.depth}] (N, D), got {list(ids.shape)}; "
                "encode the images with the tokenizer of this model"
            )
        if bool(((kept < 0) | (kept >= self._sizes)).any()):
            raise ValueError(
                f"codes must lie in [0, K) with K = {self._sizes.tolist()} by column, got "
                f"{int(kept.min())}..{int(kept.max())}; encode the images with the tokenizer of this model"
            )
        unrolled = (kept + self._offsets).view(-1, self.per_step)
        return torch.cat([unrolled, self._slots[: len(unrolled)]], dim=1)

    def planned(self, codes: Tensor, rows: PlanRows) -> Tensor:
        """Rows ``[N, W + 1]`` of codes in raster order as those ``[R, W + 1]`` of a plan, extras among them."""
        extra = rows.positions < 0
        number = (extra.cumsum(0) - 1)[:, None]
        none = torch.full((len(rows), self.per_step - 1), NONE)
        vectors = torch.cat([number, none, torch.full_like(number, EXTRA)], dim=1)
        return torch.where(extra[:, None], vectors, codes[rows.positions.clamp_min(0)])

    def rows(self, tokens: Tensor, slot: int) -> Tensor:
        """Rows ``[B, 1, W + 1]`` of one step that wrote tokens ``[B, <= W]``."""
        padded = torch.nn.functional.pad(tokens, (0, self.per_step - tokens.shape[1]), value=NONE)
        return torch.nn.functional.pad(padded, (0, 1), value=slot)[:, None]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples on the right to one batch."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([e.tokens for e in examples], True, float(NONE))
        slots, learned = pad([e.slots for e in examples], True, TEXT), pad([e.learned for e in examples], True, False)
        if self.brackets:
            tokens[..., 0].masked_fill_((tokens[..., 0] == NONE) & (slots == TEXT), self.vocabulary.special("<pad>"))
        vectors, read_as = _joined(e.vectors for e in examples), _joined(e.read_as for e in examples)
        return Batch(tokens, slots, learned, None, vectors, read_as, padded([(len(e), e.ordering) for e in examples]))

    def pack(self, examples: Sequence[Example], length: int) -> Batch:
        """Several examples in a row of at most ``length`` steps; none attends to another.

        Each goes into the first row that has room for it, the longest first.

        Raises:
            ValueError: an example of more steps.
        """
        longest = max(map(len, examples), default=0)
        if longest > length:
            raise ValueError(f"a packed row holds {length} steps, got an example of {longest}; raise the length")
        rows = list[list[Example]]()
        for example in sorted(examples, key=len, reverse=True):
            room = next((row for row in rows if sum(map(len, row)) + len(example) <= length), None)
            if room is None:
                rows.append([example])
            else:
                room.append(example)
        batch = self.collate([_concatenated(row) for row in rows])
        numbers = [torch.cat([torch.full((len(e),), at) for at, e in enumerate(row)]) for row in rows]
        padding = max(map(len, rows))
        documents = torch.nn.utils.rnn.pad_sequence(numbers, True, padding)
        return replace(batch, documents=documents)

    def _picture(self, pieces: _Pieces, part: Picture) -> None:
        if self.brackets:
            pieces.add(self._special("<image>"), part.opens)
        codes = self.codes(part.ids)
        if part.rows is None:
            pieces.add(codes, part.learned)
        else:
            self._check_whole(part.rows)
            pieces.add_planned(self.planned(codes, part.rows), part.rows, part.learned)
        if self.brackets:
            pieces.add(self._special("</image>"), part.learned and self.spec.dynamic)

    def _check_whole(self, rows: PlanRows) -> None:
        if self.per_step != self.spec.depth or int(rows.positions.max()) != self.spec.positions - 1:
            raise ValueError(
                f"an order of {int(rows.positions.max()) + 1} positions is for heads that write whole positions of "
                f"codes that have as many, got {self.spec.positions} positions written {self.per_step} of "
                f"{self.spec.depth} columns at a time; use a depth or parallel head and an order of this layout"
            )

    def _rows(self, tokens: Sequence[int], slot: int = TEXT) -> Tensor:
        rest = [NONE] * (self.per_step - 1) + [slot]
        return torch.tensor([[token, *rest] for token in tokens], dtype=torch.int64).view(-1, self.per_step + 1)

    def _special(self, token: str) -> Tensor:
        return self._rows([self.vocabulary.special(token)])

    def _text(self, text: str, end: str | None = None) -> Tensor:
        return self._rows([*self.vocabulary.encode(text), *([] if end is None else [self.vocabulary.special(end)])])

    def _label(self, number: int) -> Tensor:
        if not self.classes or not 0 <= number <= self.classes:
            raise ValueError(
                f"classes must lie in [0, {self.classes}) or be {self.classes} for none, got {number}; "
                "a model is conditioned on classes where its configuration says how many"
            )
        return self._rows([number], CLASS)

    def _vectors(self, count: int) -> Tensor:
        return self._rows([NONE] * count, VECTOR)


@dataclass
class _Pieces:
    """Rows, which of them are learned, and pictures among them that are in an order of their own."""

    rows: list[Tensor] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    planned: list[tuple[int, PlanRows]] = field(default_factory=list)  #: where its rows begin

    def add(self, rows: Tensor, learned: bool = False) -> None:
        self.rows.append(rows)
        self.learned += [learned] * len(rows)

    def add_planned(self, rows: Tensor, plan: PlanRows, learned: bool) -> None:
        self.planned.append((len(self.learned), plan))
        self.rows.append(rows)
        self.learned += (plan.learned & learned).tolist()

    def ordering(self) -> Ordering | None:
        """None where every picture is in raster order."""
        if not self.planned:
            return None
        length, directions = len(self.learned), max(plan.sources.shape[1] for _, plan in self.planned)
        found = Ordering.causal(length, directions)
        ranks, asked, sources = found.ranks, found.asked, found.sources
        for start, plan in self.planned:
            part, behind = slice(start, start + len(plan)), start + len(plan)
            sources[part] = ABSENT
            turned = torch.where(plan.sources == PROMPT, start - 1, plan.sources + start)
            sources[part, : turned.shape[1]] = turned.masked_fill(plan.sources == ABSENT, ABSENT)
            ranks[behind:] += int(plan.ranks.max())
            ranks[part] = plan.ranks + (ranks[start - 1] if start else 0)
            asked[part] = plan.asked
        return found


def _in_order(vectors: Tensor, rows: PlanRows | None) -> Tensor:
    """Vectors ``[N, C]`` of codes in the order in which the codes of a plan are read."""
    return vectors if rows is None else vectors[rows.positions[(rows.positions >= 0) & ~rows.asked]]


def _concatenated(examples: Sequence[Example]) -> Example:
    return Example(
        torch.cat([e.tokens for e in examples]),
        torch.cat([e.slots for e in examples]),
        torch.cat([e.learned for e in examples]),
        _joined(e.vectors for e in examples),
        _joined(e.read_as for e in examples),
        chained([(len(e), e.ordering) for e in examples]),
    )


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
