"""Answer scores by hand, and how little the questions of both worlds say about their answers."""

import json

import pytest

from smalti.data.scene_questions import Question
from smalti.data.scenes import Scenes
from smalti.eval.qa import blind_baseline, score_answers

YES_NO = ("yes", "no")
COLORS = ("blue", "green", "red")


def ask(kind: str, text: str, answer: str) -> Question:
    return Question(kind, text, answer, COLORS if kind == "color" else YES_NO)


QUESTIONS = [
    ask("existence", "is there a star", "yes"),
    ask("existence", "is there a ring", "no"),
    ask("existence", "is there a heart", "no"),
    ask("color", "what color is the star", "red"),
]


def test_scores_by_hand():
    scores = score_answers(QUESTIONS, ["yes", "yes", "no", "blue"])
    assert scores.overall == 0.5
    assert scores.kinds == {"color": 0.0, "existence": 2 / 3}
    assert scores.counts == {"color": 1, "existence": 3}
    assert scores.yes_rate == 2 / 3
    assert json.loads(json.dumps(scores.to_dict())) == scores.to_dict()


def test_case_and_outer_spaces_are_forgiven_and_nothing_else():
    assert score_answers(QUESTIONS[:2], [" Yes", "NO\n"]).overall == 1
    assert score_answers(QUESTIONS[:2], ["yes.", "no it is not"]).overall == 0


def test_without_yes_no_questions_there_is_no_yes_rate():
    assert score_answers(QUESTIONS[3:], ["red"]).yes_rate is None


def test_every_question_needs_an_answer():
    with pytest.raises(ValueError, match="got 1 answers for 4 questions; answer every question once"):
        score_answers(QUESTIONS, ["yes"])
    with pytest.raises(ValueError, match="got 0 answers for 0 questions"):
        score_answers([], [])


def test_the_blind_baseline_knows_the_words_then_the_kind_then_the_alphabet():
    train = [
        ask("color", "what color is the star", "red"),
        ask("color", "what color is the star", "red"),
        ask("color", "what color is the star", "blue"),
        ask("color", "what color is the ring", "blue"),
        ask("color", "what color is the ring", "green"),
        ask("color", "what color is the cross", "green"),
        ask("color", "what color is the cross", "green"),
    ]

    def right(text: str, answer: str) -> bool:
        return blind_baseline(train, [ask("color", text, answer)]).overall == 1

    assert right("what color is the star", "red")
    assert right("what color is the ring", "blue")  # a tie
    assert right("what color is the heart", "green")  # new words; green is the kind's most frequent answer
    assert not right("what color is the heart", "red")


def test_the_blind_baseline_needs_every_kind():
    with pytest.raises(
        ValueError, match="expected training questions of every kind, got none of kind 'existence'; add"
    ):
        blind_baseline(QUESTIONS[3:], QUESTIONS)


@pytest.mark.parametrize("world", ["full", "small"])
def test_scenes_cannot_be_guessed_from_their_questions(world):
    def asked(split: str, count: int) -> list[Question]:
        source = Scenes(world, split, count)
        return [question for i in range(count) for question in source.questions(i)]

    train, test = asked("train", 2000), asked("validation", 700)
    blind = blind_baseline(train, test)
    assert blind.overall <= 0.45
    assert max(blind.kinds.values()) <= 0.58
    assert max(blind.kinds[kind] for kind in ("color", "relation", "count")) <= 0.45
    assert score_answers(test, [question.answer for question in test]).overall == 1
