"""Tokenizers under one language model: every number from its file, and none beside others that were measured unlike."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.eval.lm_comparison import read_scored, write_lm_comparison
from smalti.eval.protocol import Protocol, write_result
from smalti.eval.suite import Evidence
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

SIDE, WIDTH, INNER = 8, 8, 12
BACKBONE = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
PROMPTS = ["a cross", "a red circle"]
TASKS = {"single_object": 0.25, "colors": 0.75}
SCORES = {
    "reconstruction": {"psnr": 31.25, "ssim": 0.9},
    "qa": {
        "accuracy": 0.625,
        "blind": 0.375,
        "kinds": {"count": 0.5, "color": 0.7},
        "blind_kinds": {"count": 0.4, "color": 0.1},
    },
    "captions": {"true": 0.5, "chance": 0.125},
    "scene_eval": {
        "overall": 0.4375,
        "strict": 0.3125,
        "chance": 0.0625,
        "ceiling": 0.875,
        "interval": {"low": 0.3, "high": 0.6},
        "tasks": TASKS,
    },
}
PROTOCOL = Protocol("SceneEval", "scenes-small", "0" * 64, 4, "float32", 0, sampler={"per_prompt": 2}, extra={"a": "b"})
MODEL = {"tokenizer": "VQTokenizer", "tokenizer_fingerprint": "12ab", "lm": "llama", "lm_hash": "34cd"}


def pipeline(depth: int) -> TextToImagePipeline:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 16, depth), ConvDecoder(**parts), SIDE).eval()
    words, head = Vocabulary.train(PROMPTS), {"kind": "depth", "width": 8, "heads": 2}
    return TextToImagePipeline(
        tokenizer, SharedLM.build(BACKBONE, words, tokenizer.spec, tokenizer.fingerprint(), head)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model on codes of one column and one on codes of three."""
    root = tmp_path_factory.mktemp("models")
    for name, depth in (("one", 1), ("three", 3)):
        pipeline(depth).save_pretrained(root / name)
    return root


def evidence(shade: int) -> Evidence:
    """Two pictures of each of two prompts, all of one shade; of each pair one is right."""
    originals, rebuilt, samples = (np.full((4, SIDE, SIDE, 3), shade, dtype=np.uint8) for _ in range(3))
    verdicts = [{"prompt": prompt, "correct": right} for prompt in PROMPTS for right in (True, False)]
    return Evidence(originals, rebuilt, samples, verdicts, [], [], {"pixel": [3, 1, *[0] * 14]})


def scored(root, models, name, shade=50, scores=SCORES, protocol=PROTOCOL):
    folder = root / f"{name}-scores"
    write_result(folder / "scores.json", scores, protocol, MODEL)
    evidence(shade).save(folder)
    return read_scored(name, folder, models / name)


@pytest.fixture
def rows(tmp_path, models):
    return [scored(tmp_path, models, "one", 50), scored(tmp_path, models, "three", 200)]


def test_numbers_are_those_of_codes_model_and_scores(rows, models):
    one, three = (row.numbers for row in rows)
    assert (one["positions"], one["depth"], one["tokens"], one["steps"], one["bits"]) == (4, 1, 4, 4, 16)
    assert (three["positions"], three["depth"], three["tokens"], three["steps"], three["bits"]) == (4, 3, 12, 4, 48)
    assert (one["psnr"], one["ceiling"], one["questions"], one["blind"]) == (31.25, 0.875, 0.625, 0.375)
    assert (one["captions"], one["captions_chance"]) == (0.5, 0.125)
    assert (one["scene_eval"], one["strict"], one["chance"]) == (0.4375, 0.3125, 0.0625)
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * WIDTH
    assert one["layer_parameters"] == three["layer_parameters"] == 2 * layer + WIDTH
    for row in rows:
        lm = TextToImagePipeline.from_pretrained(models / row.name).lm
        assert row.numbers["parameters"] == sum(part.numel() for part in lm.parameters())


def test_files_hold_the_table(rows, tmp_path):
    timed = {
        "one": {"step_seconds": 0.25, "tokenizer_seconds": 61.0, "lm_seconds": 7.0},
        "three": {"step_seconds": 0.5},
    }
    how = {"training": {"max_steps": 9}, "speed": "median of 9"}
    table = write_lm_comparison(tmp_path, "Which", rows, timed, how, {"one": 61.0})
    assert (tmp_path / "lm.md").read_text() == table + "\n"
    head, rule, one, three = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert rule == ["---", *["---:"] * (len(head) - 1)]
    first, second = dict(zip(head, one, strict=True)), dict(zip(head, three, strict=True))
    million = {row.name: f"{row.numbers['parameters'] / 1e6:.2f}" for row in rows}
    assert first == {
        "tokenizer": "one",
        "tokens an image": "4 (4x1)",
        "LM steps": "4",
        "bits": "16",
        "PSNR dB": "31.2",
        "ceiling": "0.875",
        "questions (blind)": "0.625 (0.375)",
        "captions (chance)": "0.500 (0.125)",
        "SceneEval (strict, chance)": "0.438 (0.312, 0.062)",
        "M parameters (layers)": f"{million['one']} (0.00)",
        "s/step": "0.250",
        "tokenizer trained": "1 min 01 s",
        "LM trained": "7.0 s",
    }
    assert (second["tokens an image"], second["s/step"], second["LM trained"]) == ("12 (4x3)", "0.500", "")

    content = json.loads((tmp_path / "lm.json").read_text())
    assert content["three"] == {**rows[1].numbers, "step_seconds": 0.5}
    assert content["model"]["one"] == "VQTokenizer 12ab, LM 34cd"
    assert content["protocol"]["count"] == PROTOCOL.count
    extra = {"a": "b", "scores": "SceneEval", "tokenizers": ["one", "three"], **how}
    assert content["protocol"]["extra"] == extra
    page = (tmp_path / "lm.html").read_text()
    for text in ("Which", "single_object", "0.300 to 0.600", "three: pixel", "1 min 01 s in all", "0.400"):
        assert text in page


def test_the_sheet_has_a_row_for_every_tokenizer_and_the_prompts_below(rows, tmp_path):
    write_lm_comparison(tmp_path, "Which", rows)
    sheet = np.asarray(Image.open(tmp_path / "lm.png"))
    side = 128
    assert sheet.shape[1] == 3 * side + 4 * 8  # a name and the first picture of both prompts
    rows_of_pictures = [(sheet == shade).all(-1) for shade in (50, 200)]
    assert [int(found.sum()) for found in rows_of_pictures] == [2 * side * side] * 2
    first, second = (np.flatnonzero(found.any(1)) for found in rows_of_pictures)
    assert first.max() < second.min()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 5}, r"scores of one and three: expected two results of one protocol, got count 4 and 5; evaluate"),
        ({"sampler": {"per_prompt": 1}}, r"scores of one and three: .* got sampler.per_prompt 2 and 1"),
        ({"dataset_hash": "1" * 64, "seed": 3}, r"got dataset_hash .*, seed 0 and 3; evaluate"),
    ],
)
def test_scores_of_other_protocols_are_refused(tmp_path, models, changed, message):
    rows = [scored(tmp_path, models, "one"), scored(tmp_path, models, "three", protocol=replace(PROTOCOL, **changed))]
    with pytest.raises(ValueError, match=message):
        write_lm_comparison(tmp_path, "Which", rows)
    assert not list(tmp_path.glob("lm.*"))


def test_scores_that_lack_a_number_are_refused(tmp_path, models):
    scores = deepcopy(SCORES)
    del scores["captions"]
    with pytest.raises(ValueError, match=r"scores.json must hold captions.true, got a score file without; score the"):
        scored(tmp_path, models, "one", scores=scores)
