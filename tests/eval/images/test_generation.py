"""Scores of generated sets: the functional ones, on the pictures in their order, whatever the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from smalti.eval.images.extractors import load_extractor
from smalti.eval.images.feature_statistics import FeatureStatistics, Reference
from smalti.eval.images.frechet import frechet_distance
from smalti.eval.images.generation import GenerationSettings, evaluate_generation, reference_of
from smalti.eval.images.inception import FIDInception, InceptionOutputs
from smalti.eval.images.inception_score import inception_score
from smalti.eval.images.kernel_distance import kernel_distance
from smalti.eval.images.picture_sets import ArraySource, PictureSet
from smalti.eval.images.precision_recall import precision_recall
from smalti.eval.presets import Preset
from smalti.eval.protocol import text_hash


class Means:
    """Mean, and mean square, of each channel."""

    name, weights_hash, num_features = "means", "ab" * 32, 6

    def __call__(self, images):
        values = images.float() / 255
        return torch.cat([values.mean((2, 3)), values.square().mean((2, 3))], 1)


class TinyInception(FIDInception):
    """The interface of the Inception with the features of `Means` and four classes in place of 1008."""

    num_features, weights_hash = 6, "cd" * 32

    def __init__(self):
        torch.nn.Module.__init__(self)

    def outputs(self, images):
        pool = Means()(images)
        logits = torch.zeros(len(images), 1008)
        logits[:, :4] = pool[:, :4] * 30
        return InceptionOutputs(pool, logits)


def pictures(count, seed, side=8):
    generator = np.random.default_rng(seed)
    tints = generator.integers(1, 256, (count, 1, 1, 3))
    levels = (generator.random((count, side, side, 3)) * tints).astype(np.uint8)
    return PictureSet(ArraySource(levels), f"noise {seed}")


def levels(these):
    return torch.cat(list(these.batches(len(these))))


pytestmark = pytest.mark.filterwarnings("ignore:.*do not show how often each class is drawn")

SETTINGS = GenerationSettings(batch_size=7, kernel=True, coverage=True, seed=3)


def test_scores_are_the_functional_ones():
    mine, theirs = pictures(24, 0), pictures(30, 1)
    first, second = Means()(levels(mine)), Means()(levels(theirs))
    scores = evaluate_generation(mine, theirs, Means(), SETTINGS).scores
    assert scores["fid"] == pytest.approx(frechet_distance(first, second), rel=1e-6)
    kernel, share = kernel_distance(first, second, 100, 12, seed=3), precision_recall(first, second)
    assert scores["kid"] == {"mean": pytest.approx(kernel.mean), "std": pytest.approx(kernel.std)}
    assert (scores["precision"], scores["recall"]) == (share.precision, share.recall)
    assert 0 < share.precision <= 1


def test_the_batch_moves_nothing():
    mine, theirs = pictures(24, 0), pictures(30, 1)
    results = [
        evaluate_generation(mine, theirs, TinyInception(), GenerationSettings(size, kernel=True)) for size in (1, 24)
    ]
    assert results[0].protocol == results[1].protocol
    for name in ("fid", "inception_score", "kid"):
        assert results[0].scores[name] == pytest.approx(results[1].scores[name], rel=1e-5)


def test_the_inception_gives_its_score_in_the_order_of_the_pictures():
    mine, network = pictures(25, 0), TinyInception()
    result = evaluate_generation(mine, pictures(30, 1), network, SETTINGS)
    expected = inception_score(network.outputs(levels(mine)).logits, 10)
    assert result.scores["inception_score"]["mean"] == pytest.approx(expected.mean, rel=1e-6)
    assert result.scores["inception_score"]["mean"] > 1.01
    assert result.protocol.extra["inception_score"] == {"splits": 10, "order": "that of the files"}
    assert "inception_score" not in evaluate_generation(mine, pictures(30, 1), Means()).scores


def test_statistics_stand_for_the_pictures_they_are_of(tmp_path):
    mine, theirs = pictures(24, 0), pictures(30, 1)
    reference_of(theirs, Means(), "train", 4).save(tmp_path / "stats.safetensors")
    reference = Reference.load(tmp_path / "stats.safetensors")
    direct, stored = evaluate_generation(mine, theirs, Means()), evaluate_generation(mine, reference, Means())
    assert stored.scores["fid"] == pytest.approx(direct.scores["fid"], rel=1e-6)
    assert stored.protocol.dataset_hash == direct.protocol.dataset_hash == direct.protocol.reference_hash
    assert stored.protocol.reference_hash == direct.protocol.reference_hash
    assert (stored.protocol.extra["reference_split"], stored.protocol.extra["reference_count"]) == ("train", 30)
    assert (
        stored.protocol.reference_hash != evaluate_generation(mine, other_reference(), Means()).protocol.reference_hash
    )
    assert stored.model == direct.model


def test_another_batch_of_the_statistics_is_the_same_reference():
    mine, theirs = pictures(24, 0), pictures(30, 1)
    one, other = (
        evaluate_generation(mine, reference_of(theirs, Means(), "train", size), Means()).protocol for size in (1, 30)
    )
    assert one.differences(other) == {}


def other_reference(**change):
    fields = {"extractor": "means", "weights_hash": "ab" * 32, "split": "train", "dataset": "x", "dataset_hash": "y"}
    fields |= {"crop": {"size": [8, 8], "mode": "none"}} | change
    return Reference(FeatureStatistics(torch.zeros(6).double(), torch.eye(6).double(), 30), **fields)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"extractor": "other"}, None, "statistics of extractor 'means', got 'other'"),
        ({"weights_hash": "0" * 64}, None, "statistics of weights_hash"),
        ({"crop": {"size": [16, 16], "mode": "none"}}, None, r"of one size, got 8x8 and 16x16"),
        ({}, GenerationSettings(coverage=True), "compare single pictures, got statistics as the reference"),
    ],
)
def test_statistics_that_do_not_fit(change, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_generation(pictures(24, 0), other_reference(**change), Means(), settings)


def test_statistics_of_unknown_crop_are_taken():
    assert evaluate_generation(pictures(24, 0), other_reference(crop=None), Means()).scores["fid"] > 0


@dataclass
class Brightness:
    """Scores a picture by its first level, and a prompt by its number."""

    name: str = "brightness"
    weights_hash: str = "ef" * 32
    tokenizer_hash: str = "01" * 32
    preparation: str = "none"
    max_tokens: int = 1

    def __call__(self, images, prompts):
        return images[:, 0, 0, 0].float() + 1000 * torch.tensor([float(prompt) for prompt in prompts])

    def too_long(self, prompts):
        return [index for index, prompt in enumerate(prompts) if len(prompt) > 1]


def test_each_picture_is_scored_with_its_own_prompt():
    mine, prompts = pictures(24, 0), [str(index) for index in range(24)]
    with pytest.warns(UserWarning, match="14 of 24 prompts are longer than the model's 1 tokens") as caught:
        result = evaluate_generation(
            mine, pictures(30, 1), Means(), GenerationSettings(5, rewritten=True), clip=Brightness(), prompts=prompts
        )
    assert len(caught) == 1  # for five batches
    assert result.scores["clip_score"] == pytest.approx(levels(mine)[:, 0, 0, 0].double().mean() + 1000 * 11.5)
    assert result.protocol.prompts_hash == text_hash(prompts)
    assert result.protocol.rewritten is True
    assert result.scores["truncated"] == 14
    assert result.protocol.extra["clip_score"] == {
        "name": "brightness",
        "weights_hash": "ef" * 32,
        "tokenizer_hash": "01" * 32,
        "preparation": "none",
        "formula": "100 max(cos, 0)",
    }


def test_prompts_must_fit_the_pictures():
    common = (pictures(24, 0), pictures(30, 1), Means())
    with pytest.raises(ValueError, match="one prompt for each picture, got 3 prompts for 24 pictures"):
        evaluate_generation(*common, clip=Brightness(), prompts=["1", "2", "3"])
    with pytest.raises(ValueError, match="a CLIP score needs the prompt of each picture, got none"):
        evaluate_generation(*common, clip=Brightness())


def test_another_size_than_the_reference():
    with pytest.raises(ValueError, match=r"of one size, got 8x8 and 12x12 \(height x width\)"):
        evaluate_generation(pictures(24, 0), pictures(30, 1, 12), Means())


def test_a_preset_is_checked_before_the_work():
    told = []
    common = {"progress": lambda done, total: told.append((done, total))}
    preset = Preset("tiny", "", "generation", 25)
    with pytest.raises(ValueError, match="the preset tiny needs count to be 25, got 24"):
        evaluate_generation(pictures(24, 0), other_reference(), Means(), preset=preset, **common)
    assert told == []
    preset = Preset("tiny", "", "generation", 24, {"extra": {"reference_split": "train"}})
    result = evaluate_generation(pictures(24, 0), other_reference(), Means(), preset=preset, **common)
    assert (result.protocol.preset, told) == ("tiny", [(24, 24)])


def test_features_that_are_not_finite():
    class Broken(Means):
        def __call__(self, images):
            return super().__call__(images) / 0

    with pytest.raises(ValueError, match="features must be finite"):
        reference_of(pictures(24, 0), Broken(), "test")


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least two images, got 1"):
        reference_of(pictures(1, 0), Means(), "test")


def test_an_extractor_is_named_by_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="a vision model was expected in"):
        load_extractor(str(tmp_path / "none"))
