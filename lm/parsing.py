"""Sequences read back into the parts that they were built from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..tokenizers.codes import PADDING, CodeSpec
from .sequences import CLASS, TEXT, VECTOR, Caption, Example, Label, Part, Picture, Question, Vectors, Words
from .vocabulary import SPECIALS, Vocabulary


class SequenceReader:
    """Reads one sequence, step by step, from the front.

    Args:
        vocabulary: of the sequence.
        spec: of its codes.
        example: the sequence.
    """

    def __init__(self, vocabulary: Vocabulary, spec: CodeSpec, example: Example) -> None:
        self.vocabulary, self.spec, self.example, self.at = vocabulary, spec, example, 0
        self._taken = {"vectors": 0, "read_as": 0}
        self.slots, self.first = example.slots.tolist(), example.tokens[:, 0].tolist()
        self.brackets = vocabulary.text_size > 0
        self.names = {vocabulary.special(name): name for name in SPECIALS} if self.brackets else {}
        self._offsets = torch.tensor([vocabulary.block(book.name).start for book in spec.columns])

    def parts(self) -> list[Part]:
        """All parts.

        Raises:
            ValueError: a sequence that no parts become.
        """
        found = list[Part]()
        if self.brackets:
            self._take("<bos>")
        while self.at < len(self.slots):
            found.append(self._part())
        return found

    def _part(self) -> Part:
        slot, name = self.slots[self.at], self._name()
        if slot == CLASS:
            self.at += 1
            return Label(self.first[self.at - 1])
        if slot == VECTOR:
            return Vectors(self._carried("vectors", self._run(lambda at: self.slots[at] == VECTOR)))
        if name == "<image>" or slot >= 0:
            return self._picture()
        if name == "<question>":
            self._take("<question>")
            question = self._words()
            self._take("<answer>")
            return Question(question, self._closed())
        if name == "<caption>":
            self._take("<caption>")
            return Caption(self._closed())
        if name is not None:
            raise ValueError(f"a sequence must be one that build makes, got {name} at step {self.at}; build it anew")
        learned = bool(self.example.learned[self.at])
        text = self._words()
        if self.at < len(self.slots) and self._name() == "<eos>":
            self._take("<eos>")
        return Words(text, learned)

    def _picture(self) -> Picture:
        opens = False
        if self.brackets:
            opens = bool(self.example.learned[self.at])
            self._take("<image>")
        start = self.at
        count = self._run(lambda at: self.slots[at] == at - start)
        learned = bool(self.example.learned[start])
        rows = self.example.tokens[start : self.at]
        ids = rows.reshape(-1, self.spec.depth) - self._offsets
        if self.spec.dynamic:
            missing = self.spec.positions - len(ids)
            ids = torch.nn.functional.pad(ids, (0, 0, 0, missing), value=PADDING)
        if self.brackets:
            self._take("</image>")
        read_as = None if self.example.read_as is None else self._carried("read_as", count)
        return Picture(ids, learned, opens, read_as)

    def _carried(self, name: str, count: int) -> Tensor:
        start = self._taken[name]
        self._taken[name] += count
        return getattr(self.example, name)[start : start + count]

    def _words(self) -> str:
        start = self.at
        self._run(lambda at: self.slots[at] == TEXT and self.first[at] not in self.names)
        return self.vocabulary.decode(self.first[start : self.at])

    def _closed(self) -> str:
        text = self._words()
        self._take("<eos>")
        return text

    def _run(self, belongs: Callable[[int], bool]) -> int:
        start = self.at
        while self.at < len(self.slots) and belongs(self.at):
            self.at += 1
        return self.at - start

    def _name(self) -> str | None:
        at = self.at
        return self.names.get(self.first[at]) if at < len(self.slots) and self.slots[at] == TEXT else None

    def _take(self, name: str) -> None:
        if self._name() != name:
            raise ValueError(f"a sequence must be one that build makes, got no {name} at step {self.at}; build it anew")
        self.at += 1
