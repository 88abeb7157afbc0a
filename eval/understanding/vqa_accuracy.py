"""VQA accuracy: agreement with ten annotators, and the text processing of the official script.

The processing keeps the script's quirks, because they move published numbers: see :func:`without_punctuation`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .items import Item, Normalisation, Scores

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_DIGITS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}

# The script maps forms that lack one of their apostrophes to the whole ones, of these words only.
_WHOLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _short_forms(word: str) -> list[str]:
    """The word without one of its apostrophes, for each of them."""
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {short: word for word in _WHOLE.split() for short in _short_forms(word)} | {"somebody'd": "somebodyd"}

# Meant as a look-behind for a digit, "(?!<=\d)" looks ahead for "<=" and is always true, so that the dot of "3. " goes.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_COMMA = re.compile(r"(\d)(,)(\d)")


def without_punctuation(text: str) -> str:
    """The official script's treatment of marks.

    A mark goes where it stands beside a space somewhere in the text, or where the text has a comma between digits; else
    it becomes a space. Dots go unless a digit follows, but 32 of them at most: the script passes a flag as the count.
    """
    numbers = _COMMA.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside or numbers else " ")
    return _PERIOD.sub("", out, count=int(re.UNICODE))


def with_plain_words(text: str) -> str:
    """Lower case, number words up to ten as digits, no articles, contractions with their apostrophes."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def processed(text: str) -> str:
    """Both treatments, in the script's order."""
    return with_plain_words(without_punctuation(text))


def vqa_accuracy(answer: str, truths: Sequence[str], normalisation: Normalisation = "official") -> float:
    """Mean over the leave-one-out subsets of the annotators' answers of ``min(matches / 3, 1)``.

    With ten annotators one match gives 0.3, two 0.6, three 0.9, more 1.

    Args:
        answer: what was answered.
        truths: the annotators' answers, usually ten.
        normalisation: ``official`` processes the text only where the annotators do not all agree, as the official
            script does, so that "Yes." is wrong where ten said "yes"; ``always`` processes it always.

    Raises:
        ValueError: no annotators.
    """
    if not truths:
        raise ValueError("expected the answers of at least one annotator, got none; score questions that have some")
    given, said = _flat(answer), [_flat(truth) for truth in truths]
    if normalisation == "always" or len(set(said)) > 1:
        given, said = processed(given), [processed(truth) for truth in said]
    matches = said.count(given)
    left = (matches - (truth == given) for truth in said)
    return sum(min(1.0, count / 3) for count in left) / len(said)


def score_vqa(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """Mean VQA accuracy in [0, 1], over all questions and by type of answer."""
    each = [vqa_accuracy(answer, item.answers, normalisation) for item, answer in zip(items, answers, strict=True)]
    return grouped("accuracy", items, each)


def grouped(name: str, items: Sequence[Item], each: Sequence[float]) -> Scores:
    """The mean of a score, and its means by group where there is more than one."""
    groups: dict[str, list[float]] = {}
    for item, value in zip(items, each, strict=True):
        groups.setdefault(item.group, []).append(value)
    scores: Scores = {name: sum(each) / len(each)}
    if len(groups) > 1:
        scores["groups"] = {group: sum(values) / len(values) for group, values in sorted(groups.items())}
    return scores


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
