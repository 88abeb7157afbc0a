"""Scenes in the formats of the benchmarks, read and scored by the benchmarks' own code."""

import numpy as np
import pytest
from PIL import Image

from smalti.data.scenes import Scenes
from smalti.eval.understanding.asking import find_pictures
from smalti.eval.understanding.benchmarks import BENCHMARKS, score_beside_blind
from smalti.eval.understanding.scenes import export_scenes, references

COUNT = 150
FILES = {
    "pope": ("pope_existence.json", "pope_adversarial.json", "pope_binding.json"),
    "vqav2": ("vqa_questions.json", "vqa_annotations.json"),
    "gqa": ("gqa_questions.json",),
    "captions": ("captions.json",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "scenes"
    counts = export_scenes(folder, "small", COUNT)
    assert counts["existence"] == COUNT
    return folder


def read(folder, name):
    return BENCHMARKS[name].read([folder / file for file in FILES[name]])


@pytest.mark.parametrize("name", FILES)
def test_the_truth_scores_highest_and_blindness_low(folder, name):
    benchmark, items = BENCHMARKS[name], read(folder, name)
    scores, blind = score_beside_blind(benchmark, items, [item.answers[0] for item in items], "official")
    assert len(find_pictures(items, folder / "images")) == COUNT
    if name == "captions":
        assert scores["cider_d"] > 5  # short captions have no four-grams
        assert blind["cider_d"] < 1.5
    else:
        assert scores["accuracy"] == 1
        assert blind["accuracy"] < {"pope": 0.65, "vqav2": 0.5, "gqa": 0.5}[name]


def test_questions_and_pictures_are_those_of_the_world(folder):
    source, items = Scenes("small", "validation", COUNT), read(folder, "gqa")
    asked = [
        (f"scenes_validation_{at:012d}", q.question, q.answer) for at in range(COUNT) for q in source.questions(at)
    ]
    assert [(item.image, item.question, item.answers[0]) for item in items] == asked
    with Image.open(folder / "images" / "scenes_validation_000000000007.png") as picture:
        assert np.array_equal(np.asarray(picture), source.pixels(7))


def test_formats_agree(folder):
    vqa, gqa = read(folder, "vqav2"), read(folder, "gqa")
    assert [(a.id, a.image, a.question, a.kind) for a in vqa] == [(b.id, b.image, b.question, b.kind) for b in gqa]
    assert all(item.answers == (other.answers[0],) * 10 for item, other in zip(vqa, gqa, strict=True))
    binary = {item.id: (item.question, item.answers) for item in gqa if item.group == "verify"}
    assert {item.id: (item.question, item.answers) for item in read(folder, "pope")} == binary


def test_captions_told_from_the_other_thing():
    source = Scenes("full", "validation", 60)
    said = {scene.tag: references(scene) for scene in map(source.scene, range(60))}
    assert len(said["counting"]) == len(said["colors"]) == 1
    for tag, joint in (("two_object", "and"), ("color_attr", "and")):
        first, second = said[tag]
        assert second.split(f" {joint} ") == first.split(f" {joint} ")[::-1]
    first, second = said["position"]
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    relation = next(relation for relation in mirror if relation in first)
    assert second.split(f" {mirror[relation]} ") == first.split(f" {relation} ")[::-1]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"a new or empty folder is needed for scenes, got .* with files in it"):
        export_scenes(tmp_path, "small", 1)
    assert (tmp_path / "kept.txt").read_text() == "kept"
