"""Which scenes a model is scored on, and what the answers are compared with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from smalti.data.scene_prompts import prompts
from smalti.data.scene_world import World, held_out_facts
from smalti.eval.new_scenes import NewScenes
from smalti.eval.suite import Evidence, SuiteSettings, spread

SIDE = {"small": 30, "full": 64}


def drawn(world="small", side=30, pictures=40) -> NewScenes:
    return NewScenes.drawn(SuiteSettings(world=world, pictures=pictures), SimpleNamespace(image_size=(side, side)))


@pytest.mark.parametrize("world", ["small", "full"])
def test_unseen_combinations_are_as_frequent_as_among_the_prompts(world):
    scenes = drawn(world, SIDE[world], 200)
    known = [entry["seen"] for entry in prompts(World.named(world))]
    assert len(scenes.seen) + len(scenes.unseen) == 200
    assert len(scenes.unseen) / 200 == pytest.approx(known.count(False) / len(known), abs=0.003)
    assert 0.1 < len(scenes.unseen) / 200 < 0.5


def test_scenes_are_what_they_are_counted_as():
    scenes = drawn()
    for part, expected in ((scenes.seen, False), (scenes.unseen, True)):
        for index in range(len(part)):
            assert bool(held_out_facts(part.scene(index).things, scenes.world)) == expected


def test_questions_know_their_picture():
    scenes = drawn()
    first = len(scenes.seen)
    for index, question in scenes.questions():
        part, local = (scenes.seen, index) if index < first else (scenes.unseen, index - first)
        assert question in part.questions(local)
    assert scenes.pixels().shape == (40, 30, 30, 3)
    assert (scenes.pixels()[first] == scenes.unseen.pixels(0)).all()
    assert scenes.captions()[first] == scenes.unseen.caption(0)


def test_a_model_for_another_size_is_an_error():
    with pytest.raises(ValueError, match="the full world has pictures of 64x64 pixels, the model takes 30x30; name"):
        drawn("full", 30)


def test_both_kinds_of_scenes_are_there_however_few():
    scenes = drawn(pictures=2)
    assert (len(scenes.seen), len(scenes.unseen)) == (1, 1)


def test_spread_covers_the_range():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 12) == [0, 1, 2]


def test_pictures_are_kept_however_they_lie_in_memory(tmp_path):  # those that a GPU decoded lie channel by channel
    pictures = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5).transpose(0, 2, 3, 1)
    Evidence(pictures, pictures, pictures, [], [], [], {}).save(tmp_path)
    assert all(np.array_equal(kept, pictures) for kept in load_file(tmp_path / "evidence.safetensors").values())
