"""VQA accuracy by hand, with the quirks of the official script."""

import pytest

from smalti.eval.understanding.items import Item
from smalti.eval.understanding.vqa_accuracy import processed, score_vqa, vqa_accuracy, without_punctuation


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_agreement_with_ten_annotators(matches, expected):
    truths = ["red"] * matches + [f"other{number}" for number in range(10 - matches)]
    assert vqa_accuracy("red", truths) == pytest.approx(expected)


@pytest.mark.parametrize(("answer", "truth"), [("Yes", "yes"), ("Yes.", "yes"), ("two", "2"), ("a dog", "dog")])
def test_unanimous_answers_are_compared_as_they_are_by_the_official_script(answer, truth):
    assert vqa_accuracy(answer, [truth] * 10) == 0
    assert vqa_accuracy(answer, [truth] * 10, "always") == 1
    assert vqa_accuracy(answer, [truth] * 9 + ["something else"]) == 1


def test_line_breaks_and_outer_spaces_never_count():
    assert vqa_accuracy(" red\t\n", ["red"] * 10) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red-blue", "red blue"),
        ("red - blue", "red  blue"),
        ("1,000 m/s", "1000 ms"),
        ("3.5", "3.5"),
        ("3.a", "3a"),  # a look-behind for a digit would have kept the dot
        ("." * 40, "." * 8),  # the flag passed as the count
    ],
)
def test_marks(text, expected):
    assert without_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("hell", "hell"),  # the script does not know "he'll"
        ("Im", "im"),  # nor "Im", after lower case
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
    ],
)
def test_words(text, expected):
    assert processed(text) == expected


def test_scores_by_type_of_answer():
    def item(number: int, group: str) -> Item:
        return Item(str(number), "1", "what", ("red",) * 10, group, group)

    items = [item(1, "other"), item(2, "other"), item(3, "number")]
    assert score_vqa(items, ["red", "blue", "red"], "official") == {
        "accuracy": pytest.approx(2 / 3),
        "groups": {"number": 1.0, "other": 0.5},
    }


def test_annotators_are_needed():
    with pytest.raises(ValueError, match="at least one annotator, got none; score questions that have some"):
        vqa_accuracy("red", [])
