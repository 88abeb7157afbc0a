"""What someone scores who never looks: answers from the words of the questions alone.

A score says little without it: balanced as a benchmark may be, its questions give much of their answers away.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from .cider import References, plain_words
from .items import LETTERS, Item

_CANDIDATES, _JUDGES = 64, 128  # captions tried, and pictures whose captions they are compared with


class Habits:
    """The most frequent answers to the same words, or, where the words are new, to the same kind of question.

    Args:
        answered: kind, question and answer of what the habits are learned from; repeated answers weigh more.
    """

    def __init__(self, answered: Iterable[tuple[str, str, str]]) -> None:
        self._texts: dict[str, Counter[str]] = {}
        self._kinds: dict[str, Counter[str]] = {}
        for kind, question, answer in answered:
            self._texts.setdefault(question, Counter())[answer] += 1
            self._kinds.setdefault(kind, Counter())[answer] += 1

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of question that have been seen."""
        return frozenset(self._kinds)

    def answer(self, kind: str, question: str) -> str:
        """The usual answer; ties go to the first in the alphabet. A kind that was never seen is taken for any kind.

        Raises:
            ValueError: nothing was ever seen.
        """
        return usual(self._texts.get(question) or self._kinds.get(kind) or self._any())

    def _any(self) -> Counter[str]:
        if not self._kinds:
            raise ValueError("habits are learned from at least one answered question, got none; give some")
        return sum(self._kinds.values(), Counter[str]())


def usual(answers: Counter[str]) -> str:
    """The most frequent of at least one answer, of equals the first in the alphabet."""
    return min(answers, key=lambda answer: (-answers[answer], answer))


def blind_answers(items: Sequence[Item]) -> list[str] | None:
    """An answer to every question from questions about other pictures.

    The pictures are put into halves, every group of questions about evenly; each half is answered with the habits of
    the other. Open and yes-no questions get the usual answer (`Habits`). Of choices the one is taken whose text was
    right most often, to the same words, else to the same kind of question, else the usual letter. A caption is that of
    the other half which is most like all its captions.

    Args:
        items: questions with their answers.

    Returns:
        One answer for each, or None where all questions are about one picture.
    """
    first = _first_half(items)
    if not first or len(first) == len({item.image for item in items}):
        return None
    found: dict[int, str] = {}
    for side in (True, False):
        known = [item for item in items if (item.image in first) == side]
        asked = [(at, item) for at, item in enumerate(items) if (item.image in first) != side]
        given = _answered(known, [item for _, item in asked])
        found |= {at: answer for (at, _), answer in zip(asked, given, strict=True)}
    return [found[at] for at in range(len(items))]


def _first_half(items: Sequence[Item]) -> set[str]:
    """Every second picture, those of one group of questions beside each other, in an order that says nothing."""
    groups = {item.image: item.group for item in reversed(items)}
    order = sorted(groups, key=lambda image: (groups[image], hashlib.sha256(image.encode()).digest()))
    return set(order[::2])


def _answered(known: Sequence[Item], asked: Sequence[Item]) -> list[str]:
    if not known[0].question:
        return [_typical(known)] * len(asked)
    if known[0].lettered:
        return _lettered(known, asked)
    habits = Habits((item.kind, _words(item), answer) for item in known for answer in item.answers)
    return [habits.answer(item.kind, _words(item)) for item in asked]


def _words(item: Item) -> str:
    """The question, told apart from the same words of another kind: the splits of POPE have habits of their own."""
    return f"{item.kind}: {item.question}"


def _lettered(known: Sequence[Item], asked: Sequence[Item]) -> list[str]:
    letters = usual(Counter(item.answers[0] for item in known))
    right = [(item, item.choices[LETTERS.index(item.answers[0])]) for item in known]
    texts = Counter((item.question, choice) for item, choice in right)
    kinds = Counter((item.kind, choice) for item, choice in right)

    def best(item: Item) -> str:
        def rank(letter: str) -> tuple[int, int, bool]:
            choice = item.choices[LETTERS.index(letter)]
            return texts[item.question, choice], kinds[item.kind, choice], letter == letters

        return max(LETTERS[: len(item.choices)], key=rank)

    return [best(item) for item in asked]


def _typical(known: Sequence[Item]) -> str:
    judges = References([[plain_words(text) for text in item.answers] for item in _spread(known, _JUDGES)])
    captions = sorted({item.answers[0] for item in _spread(known, _CANDIDATES)})
    return max(captions, key=lambda caption: sum(judges.score(plain_words(caption), range(judges.pictures))))


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    return items[:: max(1, -(-len(items) // count))]
