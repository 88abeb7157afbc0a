"""Worlds, pictures and the image source made of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from smalti.data.scene_layout import compose
from smalti.data.scene_relations import MIRROR, RELATIONS, clear_relation, possible_relations, relations
from smalti.data.scene_render import coverage, render
from smalti.data.scene_requests import TAGS, Request, draw_request, requests
from smalti.data.scene_world import JITTER, PALETTE, SHAPES, Scene, Thing, World
from smalti.data.scenes import Scenes, sample_scene

WORLDS = [World.full(), World.small()]


def picture(*things: Thing, world: World = WORLDS[0]) -> np.ndarray:
    return render(Scene(things, "", "two_object", {}), world)


def test_the_presets_are_those_of_the_benchmark():
    full, small = World.full(), World.named("small")
    assert (full.size, len(full.shapes), len(full.colors), full.max_count) == (64, 8, 10, 4)
    assert (small.size, len(small.shapes), len(small.colors), small.max_count) == (30, 4, 6, 3)


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_survives_json(world):
    assert World.from_dict(json.loads(json.dumps(world.to_dict()))) == world


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shapes": ("circle", "blob", "ring", "star")}, "shapes must come from circle, .* got 'blob'"),
        ({"colors": ("red", "blue", "green", "green")}, "colors must be at least 4 different names"),
        ({"shapes": SHAPES[:5]}, "shapes must be an even number, got 5"),
        ({"max_count": 5}, "max_count must lie in 2 to 4, got 5"),
        ({"size": 8}, "size must be at least 16 pixels, got 8"),
        ({"radius": (0.2, 0.1)}, "radius must be two rising fractions"),
        ({"gap": 0.5}, "gap must be a fraction in"),
        ({"thickness": 0.0}, "thickness must be a fraction in"),
        ({"noise": -1.0}, "noise must be at least 0 gray levels"),
        ({"background": 300}, "background must be a gray level in 0 to 255, got 300"),
    ],
)
def test_impossible_worlds_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        World(**fields)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="world must be one of full, small, got 'tiny'"):
        World.named("tiny")


def test_lookalikes_are_mutual():
    for world in WORLDS:
        for shape in world.shapes:
            other = world.lookalike(shape)
            assert other != shape
            assert world.lookalike(other) == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_touches_all_sides_of_its_box_and_nothing_beyond(shape):
    rows, columns, cover = coverage(shape, 32.0, 30.0, 12.0, size=64, thickness=0.36)
    assert (rows, columns) == (slice(18, 43), slice(20, 45))
    inner, outer = cover[:24, :24], np.concatenate([cover[24], cover[:, 24]])
    assert not outer.any()
    for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]):
        assert side.max() > 0
    assert cover.min() >= 0
    assert cover.max() == 1


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi / 4),
        ("square", 1.0),
        ("triangle", 0.5),
        ("diamond", 0.5),
        ("cross", 2 * 0.36 - 0.36**2),
        ("ring", np.pi / 4 * (1 - 0.64**2)),
    ],
)
def test_covered_area_is_the_shape_s(shape, area):
    _, _, cover = coverage(shape, 40.3, 40.7, 30.0, size=80, thickness=0.36)
    assert cover.sum() / 60**2 == pytest.approx(area, abs=3e-3)


def test_a_square_is_drawn_to_the_pixel():
    image = picture(Thing("square", "red", 20.0, 30.0, 8.0))
    expected = np.full((64, 64, 3), 128, dtype=np.uint8)
    expected[22:38, 12:28] = PALETTE["red"]
    np.testing.assert_array_equal(image, expected)


def test_a_half_covered_pixel_is_mixed_half():
    image = picture(Thing("square", "white", 20.5, 30.0, 8.0))
    assert image[30, 12].tolist() == [round((128 + 245) / 2)] * 3


def test_noise_comes_from_the_scene_s_seed():
    world = World(noise=6.0)
    scene = Scene((Thing("circle", "blue", 30, 30, 8),), "a blue circle", "colors", {}, noise_seed=3)
    first = render(scene, world)
    np.testing.assert_array_equal(first, render(scene, world))
    assert (first != render(replace(scene, noise_seed=4), world)).mean() > 0.5
    assert first[:10].astype(float).std() == pytest.approx(6.0, rel=0.1)


@pytest.mark.parametrize("world", WORLDS)
def test_boxes_keep_their_distance(world):
    for index in range(200):
        things = sample_scene(world, "train", index).things
        boxes = np.asarray([thing.box for thing in things]) / world.size
        assert boxes.min() >= world.gap - 1e-9
        assert boxes.max() <= 1 - world.gap + 1e-9
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            for u0, v0, u1, v1 in boxes[i + 1 :]:
                assert max(u0 - x1, x0 - u1, v0 - y1, y0 - v1) >= world.gap - 1e-9


def test_a_crowded_world_says_so():
    crowded = World(radius=(0.22, 0.22), gap=0.1)
    with pytest.raises(ValueError, match="no room for 'four circles' at radius"):
        compose(Request("counting", ("circle",), (None,), 4), crowded, np.random.default_rng(0), known_only=False)


def test_relations_by_hand():
    box = (10.0, 10.0, 20.0, 20.0)
    assert relations((30.0, 10.0, 40.0, 20.0), box) == {"right of"}
    assert relations((10.0, -20.0, 20.0, -10.0), box) == {"above"}
    assert relations((40.0, 40.0, 50.0, 50.0), box) == {"right of", "below"}
    assert relations((11.9, 10.0, 21.9, 20.0), box) == frozenset()  # within the margin
    assert relations(box, box) == frozenset()


def test_relations_are_mirrored_and_jitter_only_widens():
    rng = np.random.default_rng(0)
    for _ in range(300):
        x, y, u, v = rng.uniform(0, 40, 4)
        one, other = (x, y, x + 10, y + 10), (u, v, u + 12, v + 12)
        held = relations(one, other)
        assert relations(other, one) == {MIRROR[name] for name in held}
        assert held <= possible_relations(one, other, JITTER)
        clear = clear_relation(one, other, JITTER)
        assert clear is None or held == {clear}


def test_captions_by_hand():
    def caption(*fields: object) -> str:
        return Request(*fields).caption

    assert caption("single_object", ("circle",), (None,)) == "a circle"
    assert caption("two_object", ("star", "heart"), (None, None)) == "a star and a heart"
    assert caption("counting", ("ring",), (None,), 3) == "three rings"
    assert caption("counting", ("cross",), (None,), 2) == "two crosses"
    assert caption("counting", ("cross",), (None,), 1) == "one cross"
    assert caption("colors", ("circle",), ("orange",)) == "an orange circle"
    assert caption("position", ("star", "heart"), (None, None), 1, "left of") == "a star left of a heart"
    assert caption("color_attr", ("ring", "cross"), ("blue", "pink")) == "a blue ring and a pink cross"


def test_metadata_by_hand():
    assert Request("counting", ("ring",), (None,), 3).metadata() == {
        "tag": "counting",
        "include": [{"class": "ring", "count": 3}],
        "exclude": [{"class": "ring", "count": 4}],
        "prompt": "three rings",
    }
    assert Request("position", ("star", "heart"), (None, None), 1, "above").metadata() == {
        "tag": "position",
        "include": [{"class": "heart", "count": 1}, {"class": "star", "count": 1, "position": ["above", 0]}],
        "prompt": "a star above a heart",
    }


@pytest.mark.parametrize("tag", TAGS)
def test_requests_are_read_back_from_their_metadata(tag):
    rng = np.random.default_rng(0)
    for _ in range(20):
        request = draw_request(WORLDS[0], tag, held_out=False, generator=rng)
        assert Request.from_metadata(request.metadata()) == request


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"tag": "poetry", "include": []}, "tag must be one of single_object, .* got 'poetry'"),
        (
            {"tag": "two_object", "include": [{"class": "ring", "count": 1}, {"class": "ring", "count": 1}]},
            "a prompt must ask for one shape or for two single ones",
        ),
    ],
)
def test_entries_that_no_scene_can_show_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        Request.from_metadata(entry)


def test_a_task_without_held_out_requests_is_refused():
    with pytest.raises(ValueError, match="single_object has no held-out request in this world; leave it out"):
        draw_request(WORLDS[0], "single_object", held_out=True, generator=np.random.default_rng(0))


@pytest.mark.parametrize("world", WORLDS)
def test_pictures_say_what_their_captions_say(world):
    for split in ("train", "heldout"):
        for index in range(200):
            scene = sample_scene(world, split, index)
            request = Request.from_metadata(scene.metadata)
            assert scene.caption == scene.metadata["prompt"] == request.caption
            assert sorted(thing.shape for thing in scene.things) == sorted(request.shapes * request.count)
            for thing, color in zip(scene.things, request.colors * request.count, strict=True):
                assert color in (None, thing.color)
            if request.relation is not None:
                assert relations(scene.things[0].box, scene.things[1].box) == {request.relation}


def test_position_captions_use_every_relation():
    drawn = {request.relation for request in requests(WORLDS[1], "position", held_out=False)}
    assert drawn == set(RELATIONS)


def test_the_source_has_pictures_captions_and_names():
    source = Scenes("small", "validation", 5, seed=7)
    image = source.picture(3)
    assert len(source) == 5
    assert (image.mode, image.size) == ("RGB", (30, 30))
    np.testing.assert_array_equal(np.asarray(image), source.pixels(3))
    assert source.caption(3) == source.scene(3).caption
    assert source.name(3) == "validation-000003"


def test_the_source_is_repeatable_and_its_splits_and_seeds_differ():
    kinds = [Scenes("small", "train", 40), Scenes("small", "validation", 40), Scenes("small", "train", 40, seed=1)]
    assert [kinds[0].scene(i) for i in range(40)] == [Scenes("small", "train", 40).scene(i) for i in range(40)]
    places = [{(t.x, t.y) for i in range(40) for t in source.scene(i).things} for source in kinds]
    assert not places[0] & places[1]
    assert not places[0] & places[2]


def test_the_source_takes_a_world_a_size_and_weights():
    source = Scenes(World(max_count=2), "train", 30, size=48, weights={"counting": 1.0})
    assert source.pixels(0).shape == (48, 48, 3)
    assert {source.scene(i).tag for i in range(30)} == {"counting"}


def test_default_weights_draw_every_task():
    tags = [sample_scene(WORLDS[1], "train", i).tag for i in range(700)]
    assert {tag: round(tags.count(tag) / 700, 1) for tag in TAGS} == {
        "single_object": 0.1,
        "two_object": 0.1,
        "counting": 0.1,
        "colors": 0.1,
        "position": 0.2,
        "color_attr": 0.2,
    }


def test_bad_arguments_of_the_source_are_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        Scenes("small", count=0)
    with pytest.raises(ValueError, match="split must be one of train, validation, heldout, got 'test'"):
        Scenes("small", "test")
    with pytest.raises(IndexError, match="index must lie in 0 to 4, got 5"):
        Scenes("small", count=5).scene(5)
    with pytest.raises(ValueError, match=r"weights must be given for single_object, .* got 'poetry'"):
        Scenes("small", weights={"poetry": 1.0}).scene(0)
    with pytest.raises(ValueError, match="weights must be above 0 for a task of the heldout split"):
        Scenes("small", "heldout", weights={"single_object": 1.0}).scene(0)
