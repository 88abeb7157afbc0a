"""The prompts are the published ones, byte for byte."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from smalti.data.scene_prompts import prompts_sha256
from smalti.eval import geneval_prompts as module
from smalti.eval.geneval import COLORS, TASKS
from smalti.eval.geneval_folder import read_layout
from smalti.eval.geneval_prompts import (
    COCO_NAMES,
    GENEVAL_SHA256,
    geneval_prompts,
    write_geneval_prompts,
    write_prompt_texts,
)
from smalti.eval.geneval_results import read_results

PUBLISHED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "geneval"


def test_the_prompts_have_the_published_hash():
    entries = geneval_prompts()
    assert GENEVAL_SHA256.startswith("5c48e081")
    assert prompts_sha256(entries) == GENEVAL_SHA256
    assert Counter(entry["tag"] for entry in entries) == dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))


def test_entries_by_hand():
    entries = geneval_prompts()
    assert entries[179] == {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    }
    assert entries[353]["include"][1] == {"class": "dog", "count": 1, "position": ["right of", 0]}
    assert entries[353]["prompt"] == "a photo of a dog right of a teddy bear"


def test_the_classes_are_coco_s_and_nobody_has_a_colour():
    entries = geneval_prompts()
    assert len(set(COCO_NAMES)) == 80
    assert {entry["include"][0]["class"] for entry in entries if entry["tag"] == "single_object"} == set(COCO_NAMES)
    assert (COCO_NAMES[0], COCO_NAMES[64], COCO_NAMES[79]) == ("person", "computer mouse", "toothbrush")
    colored = [wanted for entry in entries for wanted in entry["include"] if "color" in wanted]
    assert len(colored) == 94 + 2 * 100
    assert {wanted["color"] for wanted in colored} == set(COLORS)
    assert "person" not in {wanted["class"] for wanted in colored}


def test_the_files_are_the_published_ones(tmp_path):
    metadata, texts = tmp_path / "evaluation_metadata.jsonl", tmp_path / "generation_prompts.txt"
    write_geneval_prompts(metadata)
    write_prompt_texts(texts, geneval_prompts())
    assert hashlib.sha256(metadata.read_bytes()).hexdigest() == GENEVAL_SHA256
    assert hashlib.sha256(texts.read_bytes()).hexdigest().startswith("55b6e365")


def test_the_published_files_where_they_are_at_hand(tmp_path):
    if not PUBLISHED.is_dir():
        pytest.skip(f"needs the official prompts in {PUBLISHED.name}/ beside the checkout")
    write_geneval_prompts(tmp_path / "ours.jsonl")
    assert (tmp_path / "ours.jsonl").read_bytes() == (PUBLISHED / "evaluation_metadata.jsonl").read_bytes()
    assert list(COCO_NAMES) == (PUBLISHED / "object_names.txt").read_text().split("\n")[:80]


def test_another_stream_of_numpy_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SEED", 44)
    (tmp_path / "results.jsonl").touch()
    for use in (
        geneval_prompts,
        lambda: write_geneval_prompts(tmp_path / "prompts.jsonl"),
        lambda: read_layout(tmp_path),
        lambda: read_results(tmp_path / "results.jsonl"),
    ):
        with pytest.raises(ValueError, match=r"must have the sha256 5c48e081\w*, got \w{64} under numpy .*; use"):
            use()
    assert not (tmp_path / "prompts.jsonl").exists()


def test_entries_survive_json():
    entries = geneval_prompts()
    assert json.loads(json.dumps(entries)) == entries
