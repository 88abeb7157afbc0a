"""Means and spreads over seeds, by hand, and the files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from smalti.eval.lm_comparison import Scored
from smalti.eval.protocol import Protocol, Result
from smalti.eval.suite import Evidence
from smalti.eval.variants import summary, write_variants

MODEL = {"tokenizer": "VQTokenizer", "tokenizer_fingerprint": "12ab", "lm": "llama", "lm_hash": "34cd"}
PROTOCOL = Protocol("SceneEval", "scenes-small", "0" * 64, 2, "float32", 0, sampler={"per_prompt": 1})
NUMBERS = {"psnr": 30.0, "captions": 0.5, "scene_eval": 0.25, "strict": 0.2, "ceiling": 0.75, "passes": 25}
NUMBERS |= {"images_per_second": 3.0, "images_per_second_alone": 1.0}


def scored(name: str, questions: float, protocol: Protocol = PROTOCOL) -> Scored:
    samples = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    verdicts = [{"prompt": prompt, "correct": True} for prompt in ("a cross", "a red circle")]
    evidence = Evidence(samples, samples, samples, verdicts, [], [], {})
    return Scored(name, Result({}, protocol, MODEL), {**NUMBERS, "questions": questions}, evidence)


def test_mean_and_sample_standard_deviation():
    found = summary([0.5, 0.6, 0.7])
    assert found["mean"] == pytest.approx(0.6)
    assert found["std"] == pytest.approx(math.sqrt((0.01 + 0 + 0.01) / 2))
    assert found["runs"] == {"0": 0.5, "1": 0.6, "2": 0.7}
    assert summary([0.5])["std"] == 0


def test_files(tmp_path):
    runs = {
        "frozen": [scored("frozen 0", 0.5), scored("frozen 1", 0.7)],
        "tuned": [scored("tuned 0", 0.8), scored("tuned 1", 0.8)],
    }
    text = write_variants(tmp_path, "title", runs)
    assert "| frozen | 2 | 0.600 ± 0.141 | 30.00 ± 0.00 |" in text
    assert "| tuned | 2 | 0.800 ± 0.000 |" in text
    assert (tmp_path / "variants.md").read_text() == text + "\n"
    found = json.loads((tmp_path / "variants.json").read_text())
    assert found["frozen"]["questions"]["runs"] == {"0": 0.5, "1": 0.7}
    assert found["protocol"]["extra"]["variants"] == ["frozen", "tuned"]
    assert found["model"]["tuned 1"] == "VQTokenizer 12ab, LM 34cd"
    assert Image.open(tmp_path / "variants.png").width > 0
    assert "Every run" in (tmp_path / "variants.html").read_text()


def test_unlike_protocols_are_refused(tmp_path):
    other = Protocol("SceneEval", "scenes-small", "0" * 64, 2, "float32", 1, sampler={"per_prompt": 1})
    runs = {"frozen": [scored("frozen 0", 0.5)], "tuned": [scored("tuned 0", 0.5, other)]}
    with pytest.raises(ValueError, match=r"scores of frozen 0 and tuned 0: .*seed"):
        write_variants(tmp_path, "title", runs)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_variant_draw_alike(tmp_path):
    other = replace(PROTOCOL, sampler={"per_prompt": 1, "temperature": 1.0})
    runs = {"one": [scored("one 0", 0.5), scored("one 1", 0.5, other)], "two": [scored("two 0", 0.5)]}
    with pytest.raises(ValueError, match=r"scores of one 0 and one 1: .*sampler"):
        write_variants(tmp_path, "title", runs)
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_no_spread(tmp_path):
    runs = {"one": [scored("one 0", 0.5)], "two": [scored("two 0", 0.25)]}
    assert "| one | 1 | 0.500 | 30.00 |" in write_variants(tmp_path, "title", runs)


def test_orders_and_temperatures_may_differ_and_are_named(tmp_path):
    samplers = {
        "one": {"per_prompt": 1, "order": {"kind": "raster"}},
        "two": {"per_prompt": 1, "order": {"kind": "masked"}, "temperature": 1.0},
    }
    protocols = {name: replace(PROTOCOL, sampler=sampler) for name, sampler in samplers.items()}
    write_variants(tmp_path, "title", {name: [scored(name, 0.5, protocol)] for name, protocol in protocols.items()})
    found = json.loads((tmp_path / "variants.json").read_text())["protocol"]
    assert found["extra"]["samplers"] == samplers
    assert found["sampler"] == {"per_prompt": 1}
