"""Copies of training pictures are found, and new pictures are as far away as pictures are from each other."""

import numpy as np
import pytest

from smalti.data.scene_render import render
from smalti.data.scene_world import World
from smalti.data.scenes import sample_scene
from smalti.eval.scene_memory import nearest_training

SMALL = World.small()


def pictures(split: str, indices: range) -> np.ndarray:
    return np.stack([render(sample_scene(SMALL, split, index), SMALL) for index in indices])


def test_copies_are_at_distance_zero():
    found = nearest_training(pictures("train", range(254, 260)), SMALL, 260)
    assert found.distances.tolist() == [0.0] * 6
    assert found.indices.tolist() == list(range(254, 260))


def test_a_copy_beyond_the_count_is_not_found():
    assert nearest_training(pictures("train", range(30, 31)), SMALL, 30).distances[0] > 5


def test_distances_by_a_slow_loop():
    images, shown = pictures("heldout", range(5)), pictures("train", range(20))
    slow = [[np.sqrt(((a.astype(float) - b) ** 2).mean()) for b in shown] for a in images]
    found = nearest_training(images, SMALL, 20)
    assert found.distances == pytest.approx(np.min(slow, axis=1), rel=1e-12)
    assert found.indices.tolist() == np.argmin(slow, axis=1).tolist()
    assert found.distances.min() > 5


def test_noise_on_a_copy_is_its_distance():
    copy = pictures("train", range(1)).astype(int)
    copy[:, ::2] += np.where(copy[:, ::2] < 250, 4, -4)
    found = nearest_training(copy.astype(np.uint8), SMALL, 10)
    assert found.indices[0] == 0
    assert found.distances[0] == pytest.approx(4 * 0.5**0.5)


def test_pictures_of_another_world_are_refused():
    with pytest.raises(ValueError, match=r"pictures \(N, 30, 30, 3\).*, got uint8 \(1, 64, 64, 3\) and 4"):
        nearest_training(np.zeros((1, 64, 64, 3), np.uint8), SMALL, 4)
    with pytest.raises(ValueError, match=r"got float64 .* and 4; pass what"):
        nearest_training(np.zeros((1, 30, 30, 3)), SMALL, 4)
    with pytest.raises(ValueError, match="and 0; pass what"):
        nearest_training(np.zeros((1, 30, 30, 3), np.uint8), SMALL, 0)
