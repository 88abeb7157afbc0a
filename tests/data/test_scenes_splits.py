"""Nothing held out is ever shown in training, everything it is made of is, and the prompt file asks for both."""

import json
from collections import Counter
from itertools import combinations, permutations, product

import pytest

from smalti.data.scene_prompts import prompts, prompts_sha256, read_prompts, to_jsonl, write_prompts
from smalti.data.scene_relations import MIRROR, RELATIONS, relations
from smalti.data.scene_requests import TAGS, requests
from smalti.data.scene_world import Scene, Thing, World, held_out_facts
from smalti.data.scenes import sample_scene

FULL, SMALL = World.full(), World.small()
SCENES = 2000


@pytest.fixture(scope="module", params=[FULL, SMALL], ids=["full", "small"])
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def shown(world: World) -> list[Scene]:
    return [sample_scene(world, "train", i) for i in range(SCENES)]


def test_the_full_world_holds_out_the_counted_combinations():
    pairs = list(permutations(FULL.shapes, 2))
    assert sum(FULL.color_held_out(*pair) for pair in product(FULL.shapes, FULL.colors)) == 20
    assert sum(FULL.count_held_out(*pair) for pair in product(FULL.shapes, (2, 3, 4))) == 8
    assert sum(FULL.pair_held_out(*pair) for pair in pairs) == 2 * 4
    assert sum(FULL.relation_held_out(a, name, b) for (a, b), name in product(pairs, RELATIONS)) == 56


def test_one_thing_is_never_held_out(world):
    assert not any(world.count_held_out(shape, 1) for shape in world.shapes)


def test_mirrored_relations_are_held_out_together(world):
    for (one, other), name in product(permutations(world.shapes, 2), RELATIONS):
        assert world.relation_held_out(one, name, other) == world.relation_held_out(other, MIRROR[name], one)


def test_training_never_shows_a_held_out_combination(world, shown):
    for scene in shown + [sample_scene(world, "validation", i) for i in range(300)]:
        assert held_out_facts(scene.things, world) == []


def test_an_independent_count_of_the_pictures_finds_no_leak(world, shown):
    """The same claim from colours, counts, pairs and boxes read here, not by ``held_out_facts``."""
    for scene in shown:
        counts = Counter(thing.shape for thing in scene.things)
        assert not any(world.color_held_out(thing.shape, thing.color) for thing in scene.things)
        assert not any(world.count_held_out(shape, count) for shape, count in counts.items())
        for one, other in permutations(scene.things, 2):
            if one.shape != other.shape:
                assert not world.pair_held_out(one.shape, other.shape)
                held = relations(one.box, other.box)
                assert not any(world.relation_held_out(one.shape, name, other.shape) for name in held)


def test_no_training_scene_has_a_held_out_relation_or_its_mirror(world, shown):
    """Boxes of training and prompts, both read as ``left of`` or ``above``."""

    def read(subject: str, name: str, target: str) -> tuple[str, str, str]:
        return (target, MIRROR[name], subject) if name in ("right of", "below") else (subject, name, target)

    held = {read(r.shapes[0], str(r.relation), r.shapes[1]) for r in requests(world, "position", held_out=True)}
    known = {read(r.shapes[0], str(r.relation), r.shapes[1]) for r in requests(world, "position", held_out=False)}
    drawn = {
        read(one.shape, name, other.shape)
        for scene in shown
        for one, other in permutations(scene.things, 2)
        if one.shape != other.shape
        for name in relations(one.box, other.box)
    }
    assert held
    assert not held & known
    assert not held & drawn
    assert drawn == known


def test_held_out_scenes_show_what_their_caption_asks_for(world):
    for index in range(300):
        scene = sample_scene(world, "heldout", index)
        assert scene.tag != "single_object"
        assert held_out_facts(scene.things, world)


def test_facts_by_hand():
    star = Thing("star", "orange", 20, 20, 6)
    assert held_out_facts((star,), FULL) == []  # star 6, orange 1
    assert held_out_facts((Thing("star", "yellow", 20, 20, 6),), FULL) == ["yellow star"]  # 6 + 2
    assert held_out_facts((star, Thing("star", "orange", 20, 40, 6), Thing("star", "orange", 40, 20, 6)), FULL) == [
        "3 star"  # 6 + 3
    ]
    triangle = Thing("triangle", "orange", 20, 50, 6)
    assert "triangle and star" in held_out_facts((triangle, star), FULL)  # 2 and 6
    left, right = Thing("square", "red", 10, 20, 6), Thing("circle", "orange", 50, 20, 6)
    assert held_out_facts((left, right), FULL) == []  # 1 + 2 * 0
    swapped = Thing("circle", "orange", 10, 20, 6), Thing("triangle", "orange", 50, 20, 6)
    assert held_out_facts(swapped, FULL) == ["circle left of triangle"]  # 0 + 2 * 2
    assert held_out_facts(swapped[::-1], FULL) == ["triangle right of circle"]


def test_every_marginal_is_covered(world, shown):
    things = [thing for scene in shown for thing in scene.things]
    colored = {(thing.shape, thing.color) for thing in things}
    expected = {pair for pair in product(world.shapes, world.colors) if not world.color_held_out(pair[0], pair[1])}
    assert colored == expected
    counts = {(shape, n) for s in shown for shape, n in Counter(t.shape for t in s.things).items()}
    assert counts == {
        (shape, n)
        for shape, n in product(world.shapes, range(1, world.max_count + 1))
        if not world.count_held_out(shape, n)
    }
    pairs = {frozenset(t.shape for t in s.things) for s in shown if len({t.shape for t in s.things}) == 2}
    assert pairs == {frozenset(p) for p in combinations(world.shapes, 2) if not world.pair_held_out(*p)}
    for shape in world.shapes:
        placed = {
            request.relation for request in requests(world, "position", held_out=False) if shape in request.shapes
        }
        assert placed == set(RELATIONS)


def test_the_full_prompt_file_has_the_published_sizes():
    entries = prompts(FULL)
    assert [sum(entry["tag"] == tag for entry in entries) for tag in TAGS] == [8, 45, 24, 80, 77, 98]
    assert prompts_sha256(entries) == prompts_sha256(prompts(FULL, seed=0))
    assert prompts_sha256(entries) != prompts_sha256(prompts(FULL, seed=1))


def test_prompts_are_different_and_mixed(world):
    entries = prompts(world)
    assert len({entry["prompt"] for entry in entries}) == len(entries)
    for tag in TAGS:
        seen = [entry["seen"] for entry in entries if entry["tag"] == tag]
        assert any(seen)
        assert all(seen) == (tag == "single_object")
    assert {entry["include"][0]["count"] for entry in entries if entry["tag"] == "counting"} == set(
        range(2, world.max_count + 1)
    )


def test_seen_means_that_training_has_the_caption(world):
    known = {request.caption for tag in TAGS for request in requests(world, tag, held_out=False)}
    for entry in prompts(world):
        assert (entry["prompt"] in known) == entry["seen"]


def test_prompt_files_are_read_back(tmp_path):
    path = tmp_path / "prompts.jsonl"
    entries = prompts(SMALL)
    write_prompts(path, entries)
    assert read_prompts(path) == entries
    assert path.read_text() == to_jsonl(entries)
    assert list(json.loads(path.read_text().splitlines()[0])) == ["tag", "include", "prompt", "seen"]


def test_bad_prompt_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a prompt file at .*absent\.jsonl, found none"):
        read_prompts(tmp_path / "absent.jsonl")
    path = tmp_path / "bad.jsonl"
    for line in ("not json", "[1]", '{"tag": "colors"}'):
        path.write_text('{"tag": "colors", "include": [], "prompt": ""}\n' + line)
        with pytest.raises(ValueError, match=r"bad.jsonl:2 must be an object with tag, include and prompt"):
            read_prompts(path)
