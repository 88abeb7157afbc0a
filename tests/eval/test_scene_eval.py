"""The ends of the scale: oracle one, near miss nothing, everything at once strictly nothing; and what lies between."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.data.scene_prompts import prompts
from smalti.data.scene_render import render
from smalti.data.scene_world import Scene, Thing, World
from smalti.eval import scene_eval
from smalti.eval.scene_eval import (
    ceiling,
    chance,
    references,
    render_near_miss,
    render_prompt,
    score_images,
)

TASKS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
SMALL = World.small()


@pytest.fixture(scope="module", params=[World.full(), SMALL], ids=["full", "small"])
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def entries() -> list[dict[str, object]]:
    return prompts(SMALL)


@pytest.fixture(scope="module")
def pictures(entries: list[dict[str, object]]) -> np.ndarray:
    return np.stack([render_prompt(entry, SMALL, np.random.default_rng(i)) for i, entry in enumerate(entries)])


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    distance = np.subtract.outer(np.arange(images.shape[1]), np.arange(images.shape[1]))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights /= weights.sum(1, keepdims=True)
    return np.rint(np.einsum("ab,nbcd,ec->naed", weights, images, weights, optimize=True)).astype(np.uint8)


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(images.shape)
    return np.clip(np.rint(images + sigma * noise), 0, 255).astype(np.uint8)


def test_oracle_is_one_and_near_miss_nothing(world):
    scores = references(world, prompts(world, seed=3), per_prompt=2, seed=5)
    oracle, near_miss = scores["oracle"], scores["near_miss"]
    assert [oracle.overall, oracle.strict, oracle.seen, oracle.unseen, oracle.correct_prompts] == [1.0] * 5
    assert oracle.interval == (1.0, 1.0)
    assert list(oracle.tasks) == TASKS
    assert near_miss.overall == 0
    assert near_miss.strict == 0
    assert all(verdict.reason for verdict in near_miss.verdicts)
    assert 0 < scores["chance"].overall < 0.12


def test_everything_at_once_is_strictly_nothing(world):
    """One of each shape, as a generator would draw that does not read its prompt."""
    side = 3
    step = world.size / side
    radius = min(world.radius[0] * world.size, step / 2 - 1)
    things = tuple(
        Thing(shape, world.colors[i % len(world.colors)], (i % side + 0.5) * step, (i // side + 0.5) * step, radius)
        for i, shape in enumerate(world.shapes)
    )
    image = render(Scene(things, "", "two_object", {}), world)
    entries = prompts(world)
    scores = score_images(np.stack([image] * len(entries)), entries, world, resamples=10)
    assert scores.tasks["single_object"] == 1
    assert scores.tasks["two_object"] == 1
    assert scores.overall > 0.3
    assert scores.strict == 0
    assert set(scores.strict_tasks.values()) == {0}


def test_blank_pictures_score_nothing(entries):
    blank = np.full((len(entries), SMALL.size, SMALL.size, 3), 128, dtype=np.uint8)
    assert score_images(blank, entries, SMALL, resamples=10).overall == 0


def test_scores_fall_with_blur_and_noise(entries, pictures):
    by_blur = [
        score_images(blurred(pictures, sigma), entries, SMALL, resamples=10).overall for sigma in (0.5, 1, 1.5, 2)
    ]
    assert by_blur[0] > 0.99
    assert by_blur == sorted(by_blur, reverse=True)
    assert by_blur[-1] < 0.8
    by_noise = [score_images(noisy(pictures, sigma), entries, SMALL, resamples=10).overall for sigma in (4, 40, 80)]
    assert by_noise[0] > 0.99
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_noise[-1] < 0.8


def test_a_mirror_only_spoils_positions_and_rolled_channels_only_colours(entries, pictures):
    """Every shape of the small world is its own mirror image."""
    mirrored = score_images(np.ascontiguousarray(pictures[:, :, ::-1]), entries, SMALL, resamples=10)
    assert {name for name, score in mirrored.tasks.items() if score < 1} == {"position"}
    rolled = score_images(np.roll(pictures, 1, axis=-1), entries, SMALL, resamples=10)
    assert {name for name, score in rolled.tasks.items() if score < 1} == {"colors", "color_attr"}


def test_near_misses_change_one_thing(entries):
    rng = np.random.default_rng(0)
    for entry in entries[::7]:
        assert (render_near_miss(entry, SMALL, rng) != render_prompt(entry, SMALL, rng)).any()


def test_scores_by_hand():
    entry = next(e for e in prompts(SMALL) if e["tag"] == "colors" and e["seen"])
    other = next(e for e in prompts(SMALL) if e["tag"] == "colors" and not e["seen"])
    rng = np.random.default_rng(0)
    right, wrong = render_prompt(entry, SMALL, rng), render_near_miss(entry, SMALL, rng)
    blank = np.full_like(right, 128)
    scores = score_images(np.stack([right, wrong, blank, blank]), [entry, other], SMALL)
    assert (scores.overall, scores.seen, scores.unseen, scores.correct_prompts) == (0.25, 0.5, 0.0, 0.5)
    assert scores.tasks == {"colors": 0.25}
    assert (scores.images, scores.prompts) == (4, 2)
    assert scores.interval == (0.0, 0.5)
    assert [verdict.correct for verdict in scores.verdicts] == [True, False, False, False]
    assert scores.verdicts[0].prompt == entry["prompt"]
    assert json.loads(json.dumps(scores.to_dict()))["interval"] == [0.0, 0.5]
    assert score_images(right[None], [entry], SMALL).unseen is None


def test_prompts_without_the_field_seen_are_sorted_by_the_world(entries, pictures):
    bare = [{key: value for key, value in entry.items() if key != "seen"} for entry in entries]
    broken = pictures.copy()
    broken[[not entry["seen"] for entry in entries]] = 128
    scores = score_images(broken, bare, SMALL, resamples=10)
    assert (scores.seen, scores.unseen) == (1.0, 0.0)


def test_the_interval_is_wider_for_mixed_results(entries, pictures):
    half = pictures.copy()
    half[::2] = 128
    low, high = score_images(half, entries, SMALL).interval
    assert 0.3 < low < 0.5 < high < 0.7


def test_chance_uses_other_prompts_and_its_seed(entries, pictures):
    first = chance(pictures, entries, SMALL, rounds=2, seed=1)
    assert first.images == 2 * len(entries)
    assert first == chance(pictures, entries, SMALL, rounds=2, seed=1)
    assert first.verdicts != chance(pictures, entries, SMALL, rounds=2, seed=2).verdicts
    pair = [entry for entry in entries if entry["tag"] == "counting"][:2]
    own = np.stack([render_prompt(entry, SMALL, np.random.default_rng(0)) for entry in pair])
    assert chance(own, pair, SMALL).overall == 0
    assert score_images(own, pair, SMALL).overall == 1


def test_a_perfect_tokenizer_reaches_the_ceiling_and_a_coarse_one_does_not(entries):
    seen: list[Tensor] = []

    def same(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    def coarse(images: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(images, 5)
        return torch.nn.functional.interpolate(small, scale_factor=5.0)

    assert ceiling(same, SMALL, entries, per_prompt=1, batch_size=50).overall == 1
    assert [len(batch) for batch in seen] == [50, len(entries) - 50]
    assert seen[0].shape == (50, 3, SMALL.size, SMALL.size)
    assert seen[0].dtype == torch.float32
    assert -1 <= min(float(batch.min()) for batch in seen) < max(float(batch.max()) for batch in seen) <= 1
    assert ceiling(coarse, SMALL, entries, per_prompt=1).overall < 0.5


def test_unlike_numbers_of_images_and_prompts_are_refused(entries, pictures):
    with pytest.raises(
        ValueError, match="expected the same number of images for each prompt, got 3 for 2; add the rest"
    ):
        score_images(pictures[:3], entries[:2], SMALL)


def test_chance_refuses_equal_prompts(entries, pictures):
    with pytest.raises(
        ValueError, match="chance needs at least two prompts, all different, got 2 with 1 different texts"
    ):
        chance(pictures[:2], [entries[0], entries[0]], SMALL)
    with pytest.raises(ValueError, match="got 1 with 1 different texts"):
        chance(pictures[:1], entries[:1], SMALL)


def test_a_tokenizer_that_changes_the_size_is_refused(entries):
    with pytest.raises(
        ValueError, match=r"roundtrip must return \(2, 3, 30, 30\), got \(2, 3, 15, 15\); decode to the size"
    ):
        ceiling(lambda images: images[..., ::2, ::2], SMALL, entries[:2], per_prompt=1)


def test_every_task_has_an_interval_and_is_split_by_what_training_showed(entries, pictures):
    chosen = [i for i, entry in enumerate(entries) if entry["tag"] in ("single_object", "colors")]
    wrong = [i for i in chosen if entries[i]["tag"] == "colors" and not entries[i]["seen"]]
    shown = pictures.copy()
    shown[wrong] = 255  # nothing is found on an empty picture
    scores = score_images(shown[chosen], [entries[i] for i in chosen], SMALL)
    share = len(wrong) / sum(entries[i]["tag"] == "colors" for i in chosen)
    assert 0 < share < 1
    assert scores.tasks == {"single_object": 1.0, "colors": pytest.approx(1 - share)}
    assert scores.seen_tasks == {"single_object": 1.0, "colors": 1.0}
    assert scores.unseen_tasks == {"colors": 0.0}
    assert scores.task_intervals["single_object"] == (1.0, 1.0)
    low, high = scores.task_intervals["colors"]
    assert 0 < low < 1 - share < high < 1
    assert scores.to_dict()["task_intervals"]["colors"] == [low, high]


def test_a_tokenizer_s_pictures_are_rounded_as_everywhere(entries):
    """Halves go up: levels of 126.5 become 127, and what is no number is refused."""
    pictures = render_prompt(entries[0], SMALL, np.random.default_rng(0))[None]
    half = torch.full((1, 3, SMALL.size, SMALL.size), -1 / 127.5)
    assert (scene_eval._rebuilt(lambda images: half, pictures) == 127).all()
    assert (scene_eval._rebuilt(lambda images: images, pictures) == pictures).all()
    with pytest.raises(ValueError, match="expected finite images, got 2700 NaN values"):
        ceiling(lambda images: images * float("nan"), SMALL, entries[:1], per_prompt=1)
