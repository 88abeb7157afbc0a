"""Judged runs and the official results file, with a detector that finds what the picture's pixels name."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.eval.detection.detected import Detected
from smalti.eval.geneval import Classify, Detection, TaskScore, Verdict
from smalti.eval.geneval_folder import Sample, read_layout, write_samples
from smalti.eval.geneval_prompts import COCO_NAMES, GENEVAL_SHA256, geneval_prompts
from smalti.eval.geneval_results import (
    GenEvalRun,
    JudgedSample,
    Rules,
    Scorer,
    judge_samples,
    read_results,
    run_protocol,
    write_results,
)
from smalti.eval.protocol import text_hash

PROMPTS = geneval_prompts()
ENTRIES = [PROMPTS[0], PROMPTS[179], PROMPTS[259]]  # a bench; two clocks; a blue fire hydrant


class CountingDetector:
    """Finds as many things of the class in the green channel as the red channel says, scores .95, .85, ..."""

    name, weights_hash, official = "stand-in", "0" * 64, False
    threshold, counting_threshold = 0.3, 0.8

    def detect(self, image: Image.Image) -> Detected:
        count, label, _ = image.getpixel((0, 0))
        rows = torch.arange(count)
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(count, 1) + rows[:, None]
        return Detected(boxes, 0.95 - 0.1 * rows, torch.full((count,), label))


def picture(count: int, name: str) -> Image.Image:
    return Image.new("RGB", (8, 8), (count, COCO_NAMES.index(name), 0))


def blue(_image: Image.Image, _found: Detected) -> Classify:
    def color(_name: str, detection: Detection) -> str:
        return "blue" if detection.score > 0.9 else "red"

    return color


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    bench, clock, hydrant = (entry["include"][0]["class"] for entry in ENTRIES)
    images = [
        [picture(1, bench), picture(0, bench)],
        [picture(2, clock), picture(3, clock)],
        [picture(1, hydrant), picture(1, bench)],
    ]
    write_samples(tmp_path / "run", ENTRIES, images)
    return read_layout(tmp_path / "run", ENTRIES, per_prompt=2)


@pytest.fixture
def run(samples: list[Sample]) -> GenEvalRun:
    return judge_samples(samples, CountingDetector(), blue)


def test_verdicts_by_hand(run):
    assert [sample.verdict for sample in run.samples] == [
        Verdict(True, ""),
        Verdict(False, "expected bench>=1, found 0"),
        Verdict(True, ""),
        Verdict(True, ""),  # the third clock has .75, below the detector's own threshold for counting
        Verdict(True, ""),
        Verdict(False, "expected fire hydrant>=1, found 0"),
    ]
    assert [len(sample.details.get("clock", ())) for sample in run.samples] == [0, 0, 2, 2, 0, 0]
    assert run.samples[0].details["bench"][0] == [0, 0, 2, 2, pytest.approx(0.95)]
    summary = run.summary()
    assert summary.tasks == {"single_object": TaskScore(1, 2), "counting": TaskScore(2, 2), "colors": TaskScore(1, 2)}
    assert run.scores()["overall"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert run.scores()["task_intervals"]["counting"] == {"low": 1.0, "high": 1.0}


def test_rules_and_colours_are_passed_on(samples):
    lower = judge_samples(samples, CountingDetector(), blue, rules=Rules(counting_threshold=0.7))
    assert lower.samples[3].verdict.reason == "expected clock<3, found 3"
    assert len(lower.samples[3].details["clock"]) == 3
    none = judge_samples(samples, CountingDetector())
    assert none.samples[4].verdict.reason == "expected blue fire hydrant>=1, found 0 blue; and "
    few = judge_samples(samples, CountingDetector(), rules=Rules(max_objects=1))
    assert few.samples[2].verdict.reason == "expected clock>=2, found 1"


def test_progress_is_told(samples):
    told = list[tuple[int, int]]()
    judge_samples(samples, CountingDetector(), progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


def test_results_are_read_back_in_any_order(run, tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, run)
    assert read_results(path, ENTRIES, per_prompt=2) == run
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    again = read_results(path, ENTRIES, per_prompt=2)
    assert [sample.entry for sample in again.samples] == [sample.entry for sample in run.samples]
    assert again.summary() == run.summary()


def test_a_line_is_the_official_scorer_s(run, tmp_path):
    write_results(tmp_path / "results.jsonl", run)
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])
    assert list(row) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details", "detector"]
    assert row["filename"].endswith("00000/samples/00001.png")
    assert (row["tag"], row["correct"], row["detector"]) == ("single_object", False, "stand-in")
    assert json.loads(row["metadata"]) == ENTRIES[0]
    assert json.loads(row["details"]) == {}


def official(entry: dict[str, object], number: int, correct: bool = True) -> JudgedSample:
    return JudgedSample(f"run/{number}.png", entry, Verdict(correct, "" if correct else "no"), {})


def test_a_complete_official_file_and_one_of_544_prompts(tmp_path):
    path = tmp_path / "results.jsonl"
    run = GenEvalRun(tuple(official(entry, 4 * i + j, j > 0) for i, entry in enumerate(PROMPTS) for j in range(4)))
    write_results(path, run)
    assert "detector" not in path.read_text().splitlines()[0]
    found = read_results(path)
    assert found == run
    assert (found.summary().images, found.summary().prompts, found.summary().overall) == (2212, 553, 0.75)
    assert found.scores(resamples=10)["interval"] == {"low": 0.75, "high": 0.75}
    write_results(path, GenEvalRun(run.samples[:400] + run.samples[436:]))
    with pytest.raises(ValueError, match=r"expected 553 prompts in .*, got 544; score the missing ones, first 'a"):
        read_results(path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([official(ENTRIES[0], 0), official(ENTRIES[0], 0)], "expected every image once in .*, got run/0.png 2 times"),
        ([official(PROMPTS[1], 0)], "must hold images of the 1 prompts alone, got run/0.png of 'a photo of a cow'"),
        ([official(ENTRIES[0], 0)], "expected 2 images of 'a photo of a bench' in .*, got 1; score each"),
        (
            [official(ENTRIES[0], 0), JudgedSample("run/1.png", ENTRIES[0], Verdict(True, ""), {}, "detr")],
            "expected the boxes of one detector in .*, got None and detr; score all alike",
        ),
        ([], "expected 1 prompts in .*, got 0; score the missing ones, first 'a photo of a bench'"),
    ],
)
def test_incomplete_results_are_refused(tmp_path, samples, message):
    write_results(tmp_path / "results.jsonl", GenEvalRun(tuple(samples)))
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results.jsonl", ENTRIES[:1], per_prompt=2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "got Expecting"),
        ("[]", "got no field filename"),
        ('{"filename": "a", "tag": "colors"}', "got no field prompt"),
        (
            json.dumps(dict.fromkeys(("filename", "tag", "prompt", "correct", "reason"), "") | {"metadata": "[]"})[:-1]
            + ', "details": "{}"}',
            "got metadata or a verdict of another type",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, line, reason):
    path = tmp_path / "results.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=f"results.jsonl:1 must be a result of the official scorer, {reason}.*; score"):
        read_results(path)
    with pytest.raises(FileNotFoundError, match=r"expected GenEval results in .*absent, found no such file"):
        read_results(tmp_path / "absent")


def test_rewritten_prompts_are_told_apart_from_the_official_ones(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, GenEvalRun((official({**ENTRIES[0], "prompt": "a very detailed bench"}, 0),)))
    with pytest.raises(ValueError, match="must hold images of the 1 prompts alone"):
        read_results(path, ENTRIES[:1], per_prompt=1)
    assert read_results(path, ENTRIES[:1], per_prompt=1, rewritten=True).samples[0].entry["prompt"].startswith("a very")


def test_the_name_is_earned():
    assert Scorer("anything", official=True).task == "GenEval"
    assert Scorer("detr", official=False).task == "GenEval rules / detr"


def test_the_protocol_says_how_it_was_scored(samples):
    entries = [sample.entry for sample in samples]
    scorer = Scorer("detr", False, "1" * 64, "float32", {"name": "clip", "weights_hash": "2" * 64}, Rules())
    protocol = run_protocol(entries, scorer, sampler={"guidance": "9"}, seed=3)
    assert (protocol.task, protocol.count, protocol.seed) == ("GenEval rules / detr", 6, 3)
    assert (protocol.prompts_hash, protocol.rewritten) == (GENEVAL_SHA256, False)
    assert protocol.sampler == {"guidance": "9", "per_prompt": 2}
    assert protocol.extra["rules"]["counting_threshold"] == 0.9
    assert protocol.extra["colors"]["name"] == "clip"
    rewritten = run_protocol(entries, scorer, rewritten=True)
    assert rewritten.extra["rewritten_prompts_hash"] == text_hash(entry["prompt"] for entry in ENTRIES)
    assert run_protocol(entries, Scorer("x", official=True)).extra == {}
