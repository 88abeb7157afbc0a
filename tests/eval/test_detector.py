"""The analytic detector reads clean pictures exactly and loses confidence, not honesty, on bad ones."""

import numpy as np
import pytest

from smalti.data.scene_render import render
from smalti.data.scene_world import Scene, Thing, World
from smalti.data.scenes import sample_scene
from smalti.eval.detector import COUNTING_THRESHOLD, THRESHOLD, SceneDetector, regions

WORLDS = [World.full(), World.small()]


@pytest.fixture(scope="module", params=WORLDS, ids=["full", "small"])
def detector(request: pytest.FixtureRequest) -> SceneDetector:
    return SceneDetector(request.param)


def draw(world: World, *things: Thing) -> np.ndarray:
    return render(Scene(things, "", "two_object", {}), world)


def flood(mask: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """Connected regions by the plain method."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found: list[frozenset[tuple[int, int]]] = []
    while left:
        front = [left.pop()]
        region = set(front)
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            region |= near
            front += near
        found.append(frozenset(region))
    return found


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.8])
def test_regions_equal_a_flood_fill(density):
    rng = np.random.default_rng(round(10 * density))
    for _ in range(10):
        mask = rng.random((17, 23)) < density
        found = regions(mask, 1, 1000)
        pixels = [
            frozenset(
                (int(y) + r.rows.start, int(x) + r.columns.start) for y, x in zip(*np.nonzero(r.pixels), strict=True)
            )
            for r in found
        ]
        assert set(pixels) == set(flood(mask))
        assert [len(p) for p in pixels] == sorted((len(p) for p in pixels), reverse=True)
        for region in found:
            assert region.pixels[0].any()
            assert region.pixels[-1].any()
            assert region.pixels[:, 0].any()
            assert region.pixels[:, -1].any()


def test_small_regions_and_all_but_the_largest_are_left_out():
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, 0] = mask[3, 0:2] = mask[5:8, 4:8] = True
    assert [int(r.pixels.sum()) for r in regions(mask, 2, 10)] == [12, 2]
    assert [int(r.pixels.sum()) for r in regions(mask, 1, 1)] == [12]
    assert regions(np.zeros((4, 4), dtype=bool), 1, 10) == []


def test_every_shape_in_every_colour_is_read(detector):
    world = detector.world
    rng = np.random.default_rng(0)
    for shape in world.shapes:
        for color in world.colors:
            radius = rng.uniform(*world.radius) * world.size
            x, y = rng.uniform(radius + 2, world.size - radius - 2, 2)
            thing = Thing(shape, color, float(x), float(y), float(radius))
            found = detector.detect(draw(world, thing))
            assert list(found) == [shape]
            (detection,) = found[shape]
            assert detection.color == color
            assert detection.score > COUNTING_THRESHOLD > THRESHOLD
            assert np.abs(np.subtract(detection.box, thing.box)).max() < 1.5


def test_whole_scenes_are_read(detector):
    world = detector.world
    for index in range(300):
        scene = sample_scene(world, "validation", index)
        found = detector.detect(render(scene, world))
        read = sorted((shape, d.color) for shape, ds in found.items() for d in ds if d.score > COUNTING_THRESHOLD)
        assert read == sorted((thing.shape, thing.color) for thing in scene.things)


def test_detections_are_sorted_by_confidence(detector):
    world = detector.world
    scene = next(s for s in (sample_scene(world, "train", i) for i in range(500)) if len(s.things) == world.max_count)
    (found,) = detector.detect(render(scene, world)).values()
    scores = [detection.score for detection in found]
    assert len(scores) == world.max_count
    assert scores == sorted(scores, reverse=True)


def test_blank_and_noise_show_nothing(detector):
    size = detector.world.size
    rng = np.random.default_rng(0)
    assert detector.detect(np.full((size, size, 3), 90, dtype=np.uint8)) == {}
    for _ in range(5):
        found = detector.detect(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        assert all(d.score < THRESHOLD for ds in found.values() for d in ds)


def test_a_colour_off_the_palette_is_not_named():
    world = World.small()
    image = draw(world, Thing("circle", "white", 16, 16, 5.5))
    image[image[..., 0] > 128] = (128, 255, 255)
    (detection,) = SceneDetector(world).detect(image)["circle"]
    assert detection.color is None


def test_merged_things_whose_median_is_the_background_are_no_obstacle():
    image = np.full((64, 64, 3), 100, dtype=np.uint8)
    image[10:30, 20:30], image[10:30, 30:40] = 0, 200
    (detections,) = SceneDetector(World(background=100)).detect(image).values()
    assert detections[0].score < COUNTING_THRESHOLD


def test_long_regions_lose_half_their_confidence():
    world = World.full()
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    image[20:30, 20:44] = (220, 30, 30)
    (detections,) = SceneDetector(world).detect(image).values()
    assert detections[0].score < THRESHOLD
    image[20:30, 30:44] = 128
    (detection,) = SceneDetector(world).detect(image)["square"]
    assert detection.score > 0.95


@pytest.mark.parametrize("level", [60, 200])
def test_the_background_may_be_another_gray(level):
    world = World(background=level)
    detector = SceneDetector(world)
    for index in range(60):
        scene = sample_scene(world, "validation", index)
        found = detector.detect(render(scene, world))
        assert sorted(s for s, ds in found.items() for _ in ds) == sorted(thing.shape for thing in scene.things)


def test_other_sizes_and_dtypes_are_refused(detector):
    size = detector.world.size
    with pytest.raises(ValueError, match=rf"image must be uint8 \({size}, {size}, 3\), got uint8 \(5, 5, 3\); convert"):
        detector.detect(np.zeros((5, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        detector.detect(np.zeros((size, size, 3), dtype=np.float32))
