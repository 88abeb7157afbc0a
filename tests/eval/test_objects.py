"""Objects in pictures of scenes: exact on renders, none on plain pictures, counted by hand where they differ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smalti.data.scene_world import World
from smalti.data.scenes import Scenes
from smalti.eval.objects import (
    detect_objects,
    judge_objects,
    object_accuracy,
    scene_objects,
    wilson_interval,
)


def drawn(world, count, split="validation"):
    source = Scenes(world, split, count)
    scenes = [source.scene(index) for index in range(count)]
    return source.world, scenes, np.stack([source.pixels(index) for index in range(count)])


@pytest.mark.parametrize("world", ["small", "full"])
def test_renders_show_all_their_objects(world):
    world, scenes, images = drawn(world, 40)
    found = object_accuracy(images, scenes, world)
    assert (found.right, found.found, found.scenes) == (1.0, 1.0, 40)
    assert found.objects == sum(len(scene.things) for scene in scenes)
    assert found.interval[1] == 1.0
    assert found.chance is not None
    assert found.chance < 0.1


def test_plain_pictures_show_nothing():
    world, scenes, images = drawn("small", 6)
    found = object_accuracy(np.full_like(images, world.background), scenes, world)
    assert (found.right, found.found, found.chance) == (0.0, 0.0, 0.0)
    assert found.interval[0] == 0.0


def test_pictures_of_other_scenes_are_wrong():
    world, scenes, images = drawn("small", 12)
    shuffled = object_accuracy(np.roll(images, 1, axis=0), scenes, world)
    assert shuffled.right <= 1 / 12
    assert shuffled.verdicts.count(True) == round(shuffled.right * 12)


def test_shares_are_those_counted_by_hand():
    red, blue = ("circle", "red"), ("square", "blue")
    true = [Counter({red: 1}), Counter({red: 2}), Counter({red: 1, blue: 1}), Counter({blue: 1})]
    seen = [
        Counter({red: 1}),  # right
        Counter({red: 3}),  # one too many; both that are meant are there
        Counter({red: 1, ("square", None): 1}),  # a colour of none
        Counter({red: 1}),  # another one; it is what the first scene shows
    ]
    found = judge_objects(seen, true)
    assert found.verdicts == (True, False, False, False)
    assert found.right == 0.25
    assert found.found == (1 + 2 + 1 + 0) / 6
    assert found.chance == 1 / 12  # the last picture under the first scene
    assert found.to_dict()["chance"] == found.chance
    assert found.to_dict()["objects"] == 6


def test_one_scene_has_no_chance():
    found = judge_objects([Counter()], [Counter({("circle", "red"): 1})])
    assert found.chance is None
    assert "chance" not in found.to_dict()


def test_truth_is_the_scene_not_its_caption():
    source = Scenes("full", "validation", 30)
    scene = next(scene for scene in map(source.scene, range(30)) if len(scene.things) > 2)
    assert scene_objects(scene).total() == len(scene.things)
    assert detect_objects(source.pixels(0)[None], source.world) == [scene_objects(source.scene(0))]


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (81, 263, 0.25529, 0.36621)],
)
def test_wilsons_interval_as_published(successes, count, low, high):
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-5)


def test_what_does_not_fit_is_refused():
    world, scenes, images = drawn("small", 3)
    with pytest.raises(ValueError, match="got 2 pictures for 3 scenes; pass one for each"):
        object_accuracy(images[:2], scenes, world)
    with pytest.raises(ValueError, match="got 0 pictures for 0 scenes"):
        judge_objects([], [])
    with pytest.raises(ValueError, match=r"image must be uint8 \(64, 64, 3\)"):
        object_accuracy(images, scenes, World.full())
    with pytest.raises(ValueError, match="an interval needs trials and no more successes, got 3 of 2"):
        wilson_interval(3, 2)
