"""Presets accept what was measured as they say, and name the first field that was not."""

from dataclasses import replace

import pytest

from smalti.data.scene_prompts import prompts, prompts_sha256
from smalti.data.scene_world import World
from smalti.data.transforms import Crop
from smalti.eval.detector import THRESHOLDS
from smalti.eval.geneval_prompts import GENEVAL_SHA256
from smalti.eval.presets import PRESETS, get_preset
from smalti.eval.protocol import QUANTISER, Protocol

RECONSTRUCTION = Protocol(
    task="reconstruction",
    dataset="imagenet validation",
    dataset_hash="ab" * 32,
    count=50_000,
    dtype="float32",
    seed=0,
    crop=Crop(256, "adm").describe(),
    quantiser=QUANTISER,
    weights_hash="6726825d" + "0" * 56,
    extra={"reference_split": "originals"},
)
GENERATION = replace(
    RECONSTRUCTION,
    task="generation",
    crop={"size": [256, 256], "mode": "none"},
    quantiser=None,
    extra={"reference_split": "train", "reference_count": 1_281_167, "reference_crop": Crop(256, "adm").describe()},
)
GENEVAL = replace(
    RECONSTRUCTION, task="GenEval", count=2212, prompts_hash=GENEVAL_SHA256, rewritten=False, sampler={"per_prompt": 4}
)
SCENES = replace(
    GENEVAL,
    task="SceneEval (GenEval rules)",
    count=1328,
    prompts_hash=prompts_sha256(prompts(World.named("full"), 0)),
    extra={"thresholds": dict(THRESHOLDS)},
)
GOOD = {
    "val50k-centercrop": RECONSTRUCTION,
    "adm-256": GENERATION,
    "geneval-raw": GENEVAL,
    "geneval-rewritten": replace(GENEVAL, rewritten=True),
    "scenes-v1": SCENES,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_accepts_what_it_says(name):
    """That of scenes is frozen: it holds the hash of the prompts that the generator must go on making."""
    preset = get_preset(name)
    preset.check(GOOD[name])
    assert preset.name == name
    assert preset.count == GOOD[name].count


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_the_first_field_that_differs(name):
    preset = get_preset(name)
    with pytest.raises(ValueError, match=f"the preset {name} needs count to be {preset.count}, got 500; measure it so"):
        preset.check(replace(GOOD[name], count=500))
    with pytest.raises(ValueError, match=f"the preset {name} needs task to be '.*', got 'colour'"):
        preset.check(replace(GOOD[name], task="colour"))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("val50k-centercrop", {"crop": Crop(256).describe()}, "needs crop.mode to be 'adm', got 'center'"),
        (
            "val50k-centercrop",
            {"crop": Crop(128, "adm").describe()},
            r"needs crop.size to be \[256, 256\], got \[128, 128\]",
        ),
        ("val50k-centercrop", {"quantiser": "truncation"}, "needs quantiser to be 'floor.*', got 'truncation'"),
        (
            "val50k-centercrop",
            {"extra": {"reference_split": "train"}},
            "reference_split to be 'originals', got 'train'",
        ),
        (
            "val50k-centercrop",
            {"weights_hash": "00"},
            "needs weights_hash to be a value that begins with '6726825d', got '00'",
        ),
        ("adm-256", {"dtype": "bfloat16"}, "needs dtype to be 'float32', got 'bfloat16'"),
        ("adm-256", {"extra": {**GENERATION.extra, "reference_count": 2}}, "reference_count to be 1281167, got 2"),
        ("adm-256", {"extra": {**GENERATION.extra, "reference_crop": None}}, "reference_crop.size to be"),
        (
            "scenes-v1",
            {"extra": {"thresholds": {"score": 0.5, "counting": 0.8}}},
            "thresholds.score to be 0.75, got 0.5",
        ),
        ("adm-256", {"extra": {"reference_split": "validation"}}, "reference_split to be 'train', got 'validation'"),
        ("adm-256", {"weights_hash": None}, "needs weights_hash .* got None"),
        ("geneval-raw", {"rewritten": True}, "needs rewritten to be False, got True"),
        ("geneval-raw", {"sampler": {"per_prompt": 1}}, "needs sampler.per_prompt to be 4, got 1"),
        ("scenes-v1", {"prompts_hash": "00"}, "needs prompts_hash to be"),
    ],
)
def test_every_requirement_is_checked(name, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        get_preset(name).check(replace(GOOD[name], **change))


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(ValueError, match="'adm256' is no preset; did you mean adm-256"):
        get_preset("adm256")
    with pytest.raises(ValueError, match="'x' is no preset; known are adm-256, val50k-centercrop"):
        get_preset("x")
