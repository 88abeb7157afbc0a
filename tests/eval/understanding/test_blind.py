"""What is learned from questions alone."""

import pytest

from smalti.eval.understanding.benchmarks import BENCHMARKS, score_beside_blind
from smalti.eval.understanding.blind import Habits, blind_answers
from smalti.eval.understanding.items import Item


def ask(image, question, answer, kind="all"):
    return Item(f"{image} {question}", image, question, (answer,), kind, kind)


def test_words_then_kind_then_anything():
    habits = Habits([("color", "of the star", "red"), ("color", "of the ring", "blue"), ("color", "of it", "blue")])
    assert habits.answer("color", "of the star") == "red"
    assert habits.answer("color", "of the heart") == "blue"
    assert habits.answer("count", "how many") == "blue"
    with pytest.raises(ValueError, match="at least one answered question, got none; give some"):
        Habits([]).answer("color", "of it")


def test_a_constant_is_guessed_and_a_new_answer_is_not():
    items = [ask(str(n), "is it", "yes") for n in range(10)]
    assert blind_answers(items) == ["yes"] * 10
    own = [ask(str(n), "who is it", f"name {n}") for n in range(10)]
    guesses = blind_answers(own)
    assert all(guess != item.answers[0] for guess, item in zip(guesses, own, strict=True))


def test_no_question_helps_with_those_of_its_own_picture():
    """Two questions of the same words about each of two pictures, whose answers differ between the pictures."""
    items = [ask(image, "is it", answer) for image, answer in (("a", "yes"), ("b", "no")) for _ in range(2)]
    assert blind_answers(items) == ["no", "no", "yes", "yes"]


def test_splits_have_habits_of_their_own():
    items = [ask(str(n), "is there a dog", "yes" if kind == "x" else "no", kind) for n in range(8) for kind in "xy"]
    assert blind_answers(items) == ["yes", "no"] * 8


def test_a_typical_caption():
    said = ["a red ring", "a red ring", "a blue ring", "a red star"] * 3
    items = [Item(str(n), str(n), "", (text,), "all", "all") for n, text in enumerate(said)]
    assert set(blind_answers(items)) == {"a red ring"}


def test_one_picture_alone_has_no_baseline():
    items = [ask("a", "is it", "yes"), ask("a", "or not", "no")]
    assert blind_answers(items) is None
    assert score_beside_blind(BENCHMARKS["gqa"], items, ["yes", "yes"], "official") == ({"accuracy": 0.5}, None)


def test_only_captions_may_be_tokenised_already():
    with pytest.raises(
        ValueError, match="GQA is scored with normalisation official or always, got 'tokenised'; choose"
    ):
        score_beside_blind(BENCHMARKS["gqa"], [ask("a", "q", "yes"), ask("b", "q", "yes")], ["no"] * 2, "tokenised")


def test_every_question_needs_an_answer():
    with pytest.raises(ValueError, match="got 1 answers for 2 questions; answer every question once"):
        score_beside_blind(BENCHMARKS["gqa"], [ask("a", "q", "yes"), ask("b", "q", "yes")], ["yes"], "official")
