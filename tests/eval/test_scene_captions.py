"""Captions judged on pictures: the world's own hold, all others do not."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.data.scene_world import World
from smalti.data.scenes import Scenes
from smalti.eval.scene_captions import score_captions, sentences

WORLD = World.small()


@pytest.fixture(scope="module")
def scenes():
    return Scenes("small", "validation", 40)


@pytest.fixture(scope="module")
def images(scenes):
    return np.stack([scenes.pixels(index) for index in range(len(scenes))])


def test_the_captions_that_pictures_were_drawn_for_hold(scenes, images):
    scores = score_captions([scenes.caption(index) for index in range(40)], images, WORLD)
    assert scores.true == 1.0
    assert scores.verdicts == (True,) * 40
    assert scores.chance < 0.3


def test_another_caption_may_hold_as_well(scenes, images):
    index = next(i for i in range(40) if scenes.scene(i).tag == "color_attr")
    first, second = scenes.scene(index).things
    shown = np.stack([images[index]] * 5)
    told = [
        f"a {second.color} {second.shape} and a {first.color} {first.shape}",
        f"a {first.shape} and a {second.shape}",
        f"a {first.shape}",  # leaves something out
        f"a {second.color} {first.shape} and a {first.color} {second.shape}",
        f"{first.shape} {second.shape} and",  # no sentence of the world
    ]
    assert score_captions(told, shown, WORLD).verdicts == (True, True, False, False, False)


def test_every_sentence_has_its_metadata():
    known = sentences(WORLD)
    assert known["two circles"]["exclude"] == [{"class": "circle", "count": 3}]
    assert all(entry["prompt"] == caption for caption, entry in known.items())


def test_one_caption_for_each_of_two_pictures_is_needed(images):
    with pytest.raises(ValueError, match="expected one caption for each of at least two pictures, got 1 captions for"):
        score_captions(["a circle"], images[:2], WORLD)
    with pytest.raises(ValueError, match="got 1 captions for 1 pictures; caption every picture once"):
        score_captions(["a circle"], images[:1], WORLD)
