"""``smalti eval geneval`` with a detector that finds what the number in a picture's first pixel asks for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.cli.main import main
from smalti.eval.detection import clip_colors
from smalti.eval.detection import detectors as detection
from smalti.eval.detection.detected import Detected
from smalti.eval.geneval_prompts import COCO_NAMES, GENEVAL_SHA256, geneval_prompts
from smalti.eval.protocol import read_result

ENTRIES = geneval_prompts()
FOR_SCORE = ("--detector", "oracle:x", "--colors", "x", "--device", "cpu", "--per-prompt", "1")
PLACES = {"left of": (-20, 0), "right of": (20, 0), "above": (0, -20), "below": (0, 20)}


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red * 256 + green


class Oracle:
    """Finds what a prompt asks for, and nothing on the pictures of counting."""

    name, weights_hash, official = "oracle", "0" * 64, False
    threshold, counting_threshold = 0.3, 0.9

    def describe(self) -> dict[str, Any]:
        return {}

    def detect(self, image: Image.Image) -> Detected:
        entry = ENTRIES[number_of(image)]
        rows = [
            (*self._box(wanted), COCO_NAMES.index(wanted["class"]))
            for wanted in entry["include"]
            for _ in range(wanted["count"])
            if entry["tag"] != "counting"
        ]
        table = torch.tensor(rows).reshape(-1, 5)
        return Detected(table[:, :4].float(), torch.full((len(rows),), 0.95), table[:, 4])

    @staticmethod
    def _box(wanted: dict[str, Any]) -> tuple[int, int, int, int]:
        x, y = PLACES[wanted["position"][0]] if "position" in wanted else (0, 0)
        return (x + 20, y + 20, x + 30, y + 30)


class Colors:
    """Knows the colours that a prompt asks for; takes every blue for red."""

    def describe(self) -> dict[str, Any]:
        return {"name": "known colours", "weights_hash": "1" * 64, "mean": [0.5, 0.5, 0.5]}

    def __init__(self, folder: str, device: str) -> None:
        assert (folder, device) == ("x", "cpu")

    def classify(self, name: str, image: Image.Image, boxes: Tensor, masks: Tensor | None = None) -> list[str]:
        color = next(wanted["color"] for wanted in ENTRIES[number_of(image)]["include"] if wanted["class"] == name)
        return ["red" if color == "blue" else color] * len(boxes)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "load_detector", lambda spec, device: {"oracle:x": Oracle()}[spec])
    monkeypatch.setattr(clip_colors, "ClipColors", Colors)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of each prompt in the folders that the command makes."""
    folder = tmp_path_factory.mktemp("geneval") / "run"
    assert main(["eval", "geneval", "prompts", "--out", str(folder), "--layout"]) == 0
    for index in range(553):
        image = Image.new("RGB", (1, 1), (index // 256, index % 256, 0))
        image.save(folder / f"{index:05d}" / "samples" / "00000.png")
    return folder


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails."""
    with pytest.raises(SystemExit) as end:
        main(["eval", "geneval", *arguments])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_prompts_are_written(tmp_path, capsys):
    assert main(["eval", "geneval", "prompts", "--out", str(tmp_path / "new")]) == 0
    metadata = tmp_path / "new" / "evaluation_metadata.jsonl"
    assert hashlib.sha256(metadata.read_bytes()).hexdigest() == GENEVAL_SHA256
    assert (tmp_path / "new" / "generation_prompts.txt").read_text().splitlines()[0] == "a photo of a bench"
    assert len(list((tmp_path / "new").iterdir())) == 2
    assert capsys.readouterr().out == f"wrote {metadata}: 553 prompts, sha256 5c48e081, and generation_prompts.txt\n"


def test_a_folder_is_scored_and_its_results_read_again(drawn, stand_ins, tmp_path, capsys):
    out, results = tmp_path / "score.json", tmp_path / "results.jsonl"
    more = ("--out", str(out), "--results", str(results), "--sampler", "guidance=9", "--name", "ours")
    assert main(["eval", "geneval", "score", str(drawn), *FOR_SCORE, *more]) == 0
    said = capsys.readouterr().out
    assert "GenEval rules / oracle: 553 images\n  single_object  1.0000  [1.0000, 1.0000]\n" in said
    result = read_result(out)
    blue = {
        tag: sum(
            entry["tag"] == tag and any(wanted.get("color") == "blue" for wanted in entry["include"])
            for entry in ENTRIES
        )
        for tag in ("colors", "color_attr")
    }
    tasks = result.scores["tasks"]
    assert tasks == {
        "single_object": 1.0,
        "two_object": 1.0,
        "counting": 0.0,
        "colors": pytest.approx(1 - blue["colors"] / 94),
        "position": 1.0,
        "color_attr": pytest.approx(1 - blue["color_attr"] / 100),
    }
    assert 0 < blue["colors"] < 94
    assert result.scores["overall"] == pytest.approx(sum(tasks.values()) / 6)
    assert result.scores["interval"]["low"] < result.scores["overall"] < result.scores["interval"]["high"]
    protocol = result.protocol
    assert (protocol.task, protocol.extractor, protocol.weights_hash) == ("GenEval rules / oracle", "oracle", "0" * 64)
    assert (protocol.count, protocol.prompts_hash, protocol.rewritten) == (553, GENEVAL_SHA256, False)
    assert protocol.sampler == {"guidance": "9", "per_prompt": 1}
    assert protocol.extra["colors"] == {"name": "known colours", "weights_hash": "1" * 64, "mean": [0.5, 0.5, 0.5]}
    assert protocol.extra["rules"]["threshold"] == 0.3
    assert result.model["name"] == "ours"

    again = tmp_path / "again.json"
    reread = ["eval", "geneval", "read", str(results), "--per-prompt", "1", "--out", str(again)]
    assert main([*reread, "--sampler", "guidance=9"]) == 0
    assert read_result(again).scores == result.scores
    assert read_result(again).protocol == protocol
    told = failed(capsys, "read", str(results), "--per-prompt", "1", "--out", str(again), "--official")
    assert "says that oracle found the objects, got --official; leave the option out" in told
    told = failed(capsys, "read", str(results), "--per-prompt", "1", "--out", str(again), "--detector", "detr")
    assert "says that oracle found the objects, got --detector detr" in told


def test_thresholds_are_written_down_and_used(drawn, stand_ins, tmp_path):
    out = tmp_path / "score.json"
    assert main(["eval", "geneval", "score", str(drawn), *FOR_SCORE, "--out", str(out), "--threshold", "0.96"]) == 0
    result = read_result(out)
    assert result.scores["overall"] == 0
    assert result.protocol.extra["rules"]["threshold"] == 0.96
    assert result.protocol.extra["rules"]["counting_threshold"] == 0.9


def test_a_preset_refuses_another_protocol_before_anything_is_detected(drawn, stand_ins, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Oracle, "detect", None)
    out = tmp_path / "score.json"
    told = failed(capsys, "score", str(drawn), *FOR_SCORE, "--out", str(out), "--preset", "geneval-raw")
    assert "the preset geneval-raw needs task to be 'GenEval', got 'GenEval rules / oracle'" in told
    assert not out.exists()


def official_results(path: Path, per_prompt: int) -> Path:
    rows = [
        {
            "filename": f"run/{index:05d}/samples/{number:05d}.png",
            "tag": entry["tag"],
            "prompt": entry["prompt"],
            "correct": number == 0,
            "reason": "" if number == 0 else "no",
            "metadata": json.dumps(entry),
            "details": "{}",
        }
        for index, entry in enumerate(ENTRIES)
        for number in range(per_prompt)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_official_results_are_called_geneval_where_that_is_stated(tmp_path, capsys):
    results, out = official_results(tmp_path / "results.jsonl", 4), tmp_path / "out.json"
    told = failed(capsys, "read", str(results), "--out", str(out))
    assert "does not say which detector found the objects; add --official if it is the official scorer's own" in told
    stated = ["eval", "geneval", "read", str(results), "--out", str(out)]
    assert main([*stated, "--official", "--preset", "geneval-raw"]) == 0
    assert capsys.readouterr().out.startswith("GenEval: 2,212 images\n")
    result = read_result(out)
    assert (result.protocol.task, result.protocol.preset) == ("GenEval", "geneval-raw")
    assert (result.scores["overall"], result.scores["correct_prompts"]) == (0.25, 1.0)
    told = failed(capsys, *stated[2:], "--detector", "detr", "--rewritten")
    assert "expected rewritten prompts, got the original text of all 553; put the new texts into the metadata" in told


def test_rewritten_prompts_are_summed_up_by_prompt(tmp_path, capsys):
    results, out = official_results(tmp_path / "results.jsonl", 4), tmp_path / "out.json"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["prompt"] += f", take {number % 4}"
        row["metadata"] = json.dumps(json.loads(row["metadata"]) | {"prompt": row["prompt"]})
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stated = ["eval", "geneval", "read", str(results), "--out", str(out), "--rewritten"]
    assert main([*stated, "--official", "--preset", "geneval-rewritten"]) == 0
    assert capsys.readouterr().out.startswith("GenEval, rewritten prompts: 2,212 images\n")
    result = read_result(out)
    assert (result.scores["overall"], result.scores["correct_prompts"]) == (0.25, 1.0)
    assert (result.protocol.rewritten, result.protocol.preset) == (True, "geneval-rewritten")
    assert main([*stated, "--detector", "detr"]) == 0
    assert capsys.readouterr().out.startswith("GenEval rules / detr, rewritten prompts: 2,212 images\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "DRAWN"), "the following arguments are required: --detector, --colors"),
        (("score", "absent", *FOR_SCORE), "expected GenEval's folders in absent, found no such folder"),
        (("score", "DRAWN", *FOR_SCORE, "--per-prompt", "4"), "expected 4 images in "),
        (("score", "DRAWN", *FOR_SCORE, "--sampler", "steps"), "--sampler must be KEY=VALUE, KEY not per_prompt"),
        (("score", "DRAWN", *FOR_SCORE, "--sampler", "per_prompt=4"), "KEY not per_prompt, got 'per_prompt=4'"),
        (
            ("score", "DRAWN", *FOR_SCORE, "--sampler", "a=1", "--sampler", "b=1", "--sampler", "a=2"),
            "--sampler must give every setting once, got 'a' more than once; leave one out",
        ),
        (
            ("read", "absent.jsonl", "--sampler", "a=1", "--sampler", "a=1"),
            "--sampler must give every setting once, got 'a' more than once; leave one out",
        ),
        (("score", "DRAWN", *FOR_SCORE, "--out", "x.txt"), "--out must end in .json, got 'x.txt'"),
        (("score", "DRAWN", *FOR_SCORE, "--results", "x.json"), "--results must end in .jsonl, got 'x.json'"),
        (("score", "DRAWN", *FOR_SCORE, "--preset", "geneval"), "'geneval' is no preset; did you mean geneval-"),
        (("score", "DRAWN", *FOR_SCORE, "--detector", "yolo:x"), "expected a detector as KIND:FOLDER"),
        (("read", "absent.jsonl"), "expected GenEval results in absent.jsonl, found no such file"),
        (("read", "absent.jsonl", "--official", "--detector", "x"), "not allowed with argument"),
        (("judge",), "must be one of prompts, score, read, got 'judge'"),
        ((), "the following arguments are required: ACTION"),
    ],
)
def test_wrong_commands_are_told_in_one_line(drawn, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in failed(capsys, *(str(drawn) if word == "DRAWN" else word for word in arguments))
    assert not list(tmp_path.iterdir())
