"""Answers that are one of several given choices: the prompt that lists them, and reading a letter back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .items import LETTERS, Item, Normalisation, Scores
from .vqa_accuracy import grouped

_LETTER = re.compile(r"\(?([A-J])\)?(?:[.:),]|\s*$)")
_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?:?\s*\(?([A-J])\b", re.IGNORECASE)


def listed(item: Item) -> str:
    """The question with its choices below it, one a line behind its letter."""
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return "\n".join([item.question, *lines])


def letter_of(answer: str, choices: Sequence[str], normalisation: Normalisation) -> str | None:
    """The letter that an answer means.

    Args:
        answer: what was answered.
        choices: texts of the choices, that of A first.
        normalisation: ``official`` takes a letter alone, or one with a mark behind it that begins the answer ("B",
            "(B)", "B. a dog"); ``always`` also takes a lower-case letter alone, "the answer is B", and the text of a
            choice whatever its case and final dot.

    Returns:
        None where it means no choice.
    """
    text, valid = answer.strip(), LETTERS[: len(choices)]
    found = _LETTER.match(text)
    if found is None and normalisation == "always":
        plain = text.removesuffix(".").strip().lower()
        texts = [choice.strip().removesuffix(".").strip().lower() for choice in choices]
        if texts.count(plain) == 1:
            return valid[texts.index(plain)]
        found = _LETTER.match(text.upper()) if len(plain.strip("()")) == 1 else _NAMED.search(text)
    return found[1].upper() if found and found[1].upper() in valid else None


def score_choices(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """Share of questions answered with the right letter, over all and by group; what means no choice is wrong."""
    read = [letter_of(answer, item.choices, normalisation) for item, answer in zip(items, answers, strict=True)]
    each = [float(letter == item.answers[0]) for letter, item in zip(read, items, strict=True)]
    scores = grouped("accuracy", items, each)
    return scores | {"unparsed": sum(letter is None for letter in read) / len(read)}
