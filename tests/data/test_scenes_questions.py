"""Questions are true, their words few, and their answers not to be guessed."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from smalti.data.scene_questions import KINDS, Question, questions
from smalti.data.scene_requests import COUNT_WORDS, requests
from smalti.data.scene_world import PALETTE, SHAPES, Scene, Thing, World
from smalti.data.scenes import Scenes

SIZE = 2500

#: More counting and more pairs than by default, so that every kind is asked some hundred times.
WEIGHTS = {"counting": 2.0, "color_attr": 2.0, "position": 1.0}


@pytest.fixture(scope="module", params=["full", "small"])
def source(request: pytest.FixtureRequest) -> Scenes:
    return Scenes(request.param, "train", SIZE, weights=WEIGHTS)


@pytest.fixture(scope="module")
def asked(source: Scenes) -> list[tuple[Scene, Question]]:
    return [(source.scene(i), question) for i in range(SIZE) for question in source.questions(i)]


def singular(word: str) -> str:
    return word if word in SHAPES else word.removesuffix("es") if word.removesuffix("es") in SHAPES else word[:-1]


def truth(scene: Scene, question: Question) -> str:
    """The answer, read from the words of the question alone."""
    words = question.question.split()
    if question.kind in ("existence", "adversarial"):
        return "yes" if words[-1] in {thing.shape for thing in scene.things} else "no"
    if question.kind == "binding":
        return "yes" if (words[-2], words[-1]) in {(thing.color, thing.shape) for thing in scene.things} else "no"
    if question.kind == "color":
        (thing,) = (thing for thing in scene.things if thing.shape == words[-1])
        return thing.color
    if question.kind == "count":
        return COUNT_WORDS[sum(thing.shape == singular(words[-1]) for thing in scene.things)]
    (target,) = (thing for thing in scene.things if thing.shape == words[4])
    (subject,) = (thing for thing in scene.things if thing.shape == words[-1])
    across, down = subject.x - target.x, subject.y - target.y
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "below" if down > 0 else "above"


def test_every_answer_is_true_and_a_choice(asked):
    assert {question.kind for _, question in asked} == set(KINDS)
    for scene, question in asked:
        assert question.answer == truth(scene, question)
        assert question.answer in question.choices


@pytest.mark.parametrize("split", ["train", "validation", "heldout"])
def test_no_constant_answer_does_well(source, asked, split):
    drawn = [question for _, question in asked]
    if split != "train":
        other = Scenes(source.world, split, SIZE, weights=WEIGHTS)
        drawn = [question for i in range(SIZE) for question in other.questions(i)]
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in drawn:
        answers[question.kind][question.answer] += 1
    assert set(answers) == set(KINDS)
    assert min(counts.total() for counts in answers.values()) > 250
    for kind, counts in answers.items():
        limit = 0.55 if kind in ("existence", "adversarial", "binding") else 0.30
        if (source.world.max_count, split, kind) == (3, "heldout", "count"):
            limit = 0.52  # two of the three counts that the small world holds out are of three things
        share = counts.most_common(1)[0][1] / counts.total()
        assert share <= limit, (kind, counts)


def test_words_are_few_and_plain(source, asked):
    captions = [request.caption for tag in ("counting", "position") for request in requests(source.world, tag, False)]
    texts = [f"{question.question} {question.answer}" for _, question in asked] + captions
    words = {word for text in texts for word in text.split()}
    assert len(words) <= 60
    assert all(word.isalpha() and word.islower() for word in words)


def test_questions_do_not_depend_on_when_they_are_asked(source):
    fresh = Scenes(source.world, "train", SIZE, weights=WEIGHTS)
    assert [source.questions(i) for i in (5, 3)] == [fresh.questions(i) for i in (5, 3)]


def test_a_scene_by_hand():
    world = World.full()
    ring, heart = Thing("ring", "blue", 15, 20, 8), Thing("heart", "red", 50, 20, 8)
    scene = Scene((ring, heart), "", "color_attr", {})
    drawn = [q for seed in range(200) for q in questions(scene, world, np.random.default_rng(seed))]
    assert {(q.question, q.answer) for q in drawn if q.kind == "color"} == {
        ("what color is the ring", "blue"),
        ("what color is the heart", "red"),
    }
    assert {(q.question, q.answer) for q in drawn if q.kind == "relation"} == {
        ("which side of the ring is the heart", "right"),
        ("which side of the heart is the ring", "left"),
    }
    assert {(q.question, q.answer) for q in drawn if q.kind == "adversarial"} == {
        ("is there a ring", "yes"),
        ("is there a heart", "yes"),
        ("is there a circle", "no"),
        ("is there a triangle", "no"),
    }
    assert {(q.question, q.answer) for q in drawn if q.kind == "binding"} == {
        ("is there a blue ring", "yes"),
        ("is there a red heart", "yes"),
        ("is there a red ring", "no"),
        ("is there a blue heart", "no"),
    }
    assert not [q for q in drawn if q.kind == "count"]


def test_a_scene_of_everything_is_not_asked_for_absent_things():
    world = World.full()
    things = tuple(Thing(shape, tuple(PALETTE)[i], 8 * i, 8 * i, 3) for i, shape in enumerate(SHAPES))
    kinds = {q.kind for q in questions(Scene(things, "", "two_object", {}), world, np.random.default_rng(0))}
    assert kinds.isdisjoint({"existence", "adversarial"})
