"""Judged runs and the official results file, with a detector that finds what the picture's pixels name."""

import json
import os
import signal
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.data.scene_prompts import prompts_sha256
from smalti.eval.detection.detected import Detected
from smalti.eval.geneval import Classify, Detection, TaskScore, Verdict
from smalti.eval.geneval_folder import Sample, read_layout, write_layout
from smalti.eval.geneval_judging import Journal, judge_samples
from smalti.eval.geneval_prompts import COCO_NAMES, GENEVAL_SHA256, geneval_prompts
from smalti.eval.geneval_results import (
    GenEvalRun,
    JudgedSample,
    Rules,
    Scorer,
    read_results,
    run_protocol,
    write_results,
)
from smalti.eval.presets import get_preset
from smalti.eval.protocol import Protocol, text_hash

PROMPTS = geneval_prompts()
ENTRIES = [PROMPTS[0], PROMPTS[179], PROMPTS[259]]  # a bench; two clocks; a blue fire hydrant
COLORS = {"name": "all blue", "weights_hash": "2" * 64, "mean": [0.4, 0.4, 0.4]}


class CountingDetector:
    """Finds as many things of the class in the green channel as the red channel says, scores .95, .85, ..."""

    name, weights_hash, official = "stand-in", "0" * 64, False
    threshold, counting_threshold = 0.3, 0.8

    def describe(self) -> dict[str, object]:
        return {"mean": [0.5, 0.5, 0.5]}

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
    write_layout(tmp_path / "run", ENTRIES)
    for i, j in product(range(3), range(2)):
        images[i][j].save(tmp_path / "run" / f"{i:05d}" / "samples" / f"{j}.png")
    return read_layout(tmp_path / "run", ENTRIES, per_prompt=2)


@pytest.fixture
def run(samples: list[Sample]) -> GenEvalRun:
    return judge_samples(samples, CountingDetector(), blue, scorer=Scorer.of(CountingDetector(), COLORS))


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
    detector = CountingDetector()
    lower = judge_samples(samples, detector, blue, scorer=Scorer.of(detector, rules=Rules(counting_threshold=0.7)))
    assert lower.samples[3].verdict.reason == "expected clock<3, found 3"
    assert len(lower.samples[3].details["clock"]) == 3
    none = judge_samples(samples, detector)
    assert none.samples[4].verdict.reason == "expected blue fire hydrant>=1, found 0 blue; and "
    few = judge_samples(samples, detector, scorer=Scorer.of(detector, rules=Rules(max_objects=1)))
    assert few.samples[2].verdict.reason == "expected clock>=2, found 1"


def test_progress_is_told(samples):
    told = list[tuple[int, int]]()
    judge_samples(samples, CountingDetector(), progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


class DyingDetector(CountingDetector):
    """Ends its process by signal 9 at an image of some number."""

    def __init__(self, number: int) -> None:
        self.left = number

    def detect(self, image: Image.Image) -> Detected:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().detect(image)


def test_a_killed_run_goes_on(samples, run, tmp_path):
    journal = Journal(tmp_path / "geneval.json", run.scorer)
    for number in (2, 1):
        if not (child := os.fork()):
            judge_samples(samples, DyingDetector(number), blue, scorer=run.scorer, journal=journal)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with journal.path.open("ab") as stream:
        stream.write(b'{"key": "cut')  # killed within a line
    told = list[tuple[int, int]]()
    rest = DyingDetector(3)
    again = judge_samples(
        samples,
        rest,
        blue,
        scorer=run.scorer,
        journal=journal,
        progress=lambda done, total: told.append((done, total)),
    )
    assert again == run
    assert rest.left == 0  # three were known
    assert told == [(4, 6), (5, 6), (6, 6)]
    none = judge_samples(samples, DyingDetector(0), blue, scorer=run.scorer, journal=journal)
    assert none == run
    journal.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_journal_is_of_one_image_prompt_and_scorer(samples, run, tmp_path):
    journal = Journal(tmp_path / "geneval.json", run.scorer)
    judge_samples(samples, CountingDetector(), blue, scorer=run.scorer, journal=journal)
    other = Scorer.of(CountingDetector(), COLORS, Rules(counting_threshold=0.7))
    assert Journal(tmp_path / "geneval.json", other).path != journal.path
    picture(5, "clock").save(samples[3].path)
    moved = replace(samples[4], entry=samples[4].entry | {"prompt": "another"})
    counting = DyingDetector(2)
    judge_samples([*samples[:4], moved, samples[5]], counting, blue, scorer=run.scorer, journal=journal)
    assert counting.left == 0


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
    assert list(row)[:7] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert list(row)[7:] == ["detector", "official", "weights_hash", "dtype", "preparation", "colors", "rules"]
    assert row["filename"].endswith("00000/samples/1.png")
    assert (row["tag"], row["correct"], row["detector"]) == ("single_object", False, "stand-in")
    assert json.loads(row["metadata"]) == ENTRIES[0]
    assert json.loads(row["details"]) == {}


def test_who_judged_is_read_back(run, tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, run)
    scorer = read_results(path, ENTRIES, per_prompt=2).scorer
    assert scorer == run.scorer
    assert scorer is not None
    assert (scorer.detector, scorer.weights_hash, scorer.dtype) == ("stand-in", "0" * 64, "float32")
    assert scorer.preparation == {"mean": [0.5, 0.5, 0.5]}
    assert scorer.colors == COLORS
    assert scorer.rules == Rules(0.3, 0.8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rules": Rules(0.2, 0.8)}, "rules {.*0.3.*} and {.*0.2"),
        ({"weights_hash": "9" * 64}, "weights_hash 000000.* and 99999"),
        ({"colors": None}, "colors {'name': 'all blue'.* and None"),
        ({"dtype": "float16"}, "dtype float32 and float16"),
    ],
)
def test_lines_judged_unlike_are_refused(run, tmp_path, change, told):
    path, other = tmp_path / "results.jsonl", tmp_path / "other.jsonl"
    write_results(path, run)
    write_results(other, replace(run, scorer=replace(run.scorer, **change)))
    path.write_text("\n".join(path.read_text().splitlines()[:3] + other.read_text().splitlines()[3:]))
    with pytest.raises(ValueError, match=f"expected lines that were all judged alike in .*, got {told}.*; score all"):
        read_results(path, ENTRIES, per_prompt=2)


def test_a_detector_alone_may_be_named(run, tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, replace(run, scorer=None))
    rows = [json.loads(line) | {"detector": "detr"} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_results(path, ENTRIES, per_prompt=2).scorer == Scorer("detr", official=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("filename", ["a"]),
        ("correct", 1),
        ("reason", 5),
        ("metadata", "7"),
        ("metadata", '{"prompt": 5}'),
        ("details", "7"),
        ("details", '{"dog": 7}'),
        ("detector", 5),
        ("official", "yes"),
        ("weights_hash", 5),
        ("dtype", None),
        ("preparation", "none"),
        ("colors", ["red"]),
        ("rules", {"threshold": 0.3}),
        ("rules", {"threshold": "0.3", "counting_threshold": 0.9, "max_objects": 16, "position_threshold": 0.1}),
    ],
)
def test_fields_of_another_kind_are_named(run, tmp_path, field, value):
    path = tmp_path / "results.jsonl"
    write_results(path, run)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1][field] = value
    path.write_text("\n".join(map(json.dumps, rows)))
    told = f"results.jsonl:2 must be a result of the official scorer, got a {field} of another kind, .*; score the"
    with pytest.raises(ValueError, match=told):
        read_results(path, ENTRIES, per_prompt=2)


def test_a_file_of_other_bytes_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"expected UTF-8 text in .*results.jsonl, got other bytes; write the file"):
        read_results(tmp_path / "results.jsonl")


def official(entry: dict[str, object], number: int, correct: bool = True) -> JudgedSample:
    return JudgedSample(f"run/{number}.png", entry, Verdict(correct, "" if correct else "no"), {})


def test_a_complete_official_file_and_one_of_544_prompts(tmp_path):
    path = tmp_path / "results.jsonl"
    run = GenEvalRun(tuple(official(entry, 4 * i + j, j > 0) for i, entry in enumerate(PROMPTS) for j in range(4)))
    write_results(path, run)
    assert list(json.loads(path.read_text().splitlines()[0]))[-1] == "details"
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
            "got a correct of another kind, ''",
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


def protocol(prompts: list[dict[str, object]] = PROMPTS, scorer: Scorer | None = None, **more: object) -> Protocol:
    return run_protocol(prompts, scorer or Scorer("x", official=True), prompts, **more)


def test_the_name_is_earned():
    assert protocol().task == "GenEval"
    assert protocol(scorer=Scorer("x", True, rules=Rules())).task == "GenEval"
    assert protocol(scorer=Scorer("detr", official=False)).task == "GenEval rules / detr"
    assert protocol(scorer=Scorer("x", True, rules=Rules(threshold=0.01))).task == "GenEval rules / x"
    assert protocol(ENTRIES).task == "GenEval rules / x"


def test_the_prompts_are_those_that_were_asked_for():
    assert (protocol().dataset, protocol().prompts_hash) == ("GenEval prompts", GENEVAL_SHA256)
    few = protocol(ENTRIES)
    assert (few.dataset, few.count) == ("prompts in GenEval's form", 3)
    assert few.prompts_hash == few.dataset_hash == prompts_sha256(ENTRIES)
    scorer = Scorer("x", official=True)
    with pytest.raises(ValueError, match="expected as many images of each of 553 prompts, got 0 to 1; score the miss"):
        run_protocol(PROMPTS[:3], scorer)
    with pytest.raises(ValueError, match="expected as many images of each of 553 prompts, got 0 to 0; score the miss"):
        run_protocol([], scorer)
    with pytest.raises(ValueError, match="expected images of 1 prompts alone, got one of 'a photo of a cow'; leave it"):
        run_protocol(PROMPTS[:2], scorer, PROMPTS[:1])


def test_the_protocol_says_how_it_was_scored(samples):
    entries = [sample.entry for sample in samples]
    scorer = Scorer("detr", False, "1" * 64, "float32", {"mean": [0.5]}, COLORS, Rules())
    found = run_protocol(entries, scorer, ENTRIES, sampler={"guidance": "9"}, seed=3)
    assert (found.task, found.count, found.seed) == ("GenEval rules / detr", 6, 3)
    assert (found.extractor, found.weights_hash, found.dtype, found.rewritten) == ("detr", "1" * 64, "float32", False)
    assert found.sampler == {"guidance": "9", "per_prompt": 2}
    assert found.extra["rules"]["counting_threshold"] == 0.9
    assert found.extra["colors"] == COLORS
    assert found.extra["detector"] == {"mean": [0.5]}
    assert run_protocol(entries, Scorer("x", official=True), ENTRIES).extra == {}


def four_texts(entry: dict[str, object]) -> list[dict[str, object]]:
    return [{**entry, "prompt": f"{entry['prompt']}, take {number}"} for number in range(4)]


def test_every_image_of_a_prompt_may_have_a_text_of_its_own(tmp_path):
    """A complete run of rewritten prompts, in which the first image of each is right."""
    entries = [entry for prompt in PROMPTS for entry in four_texts(prompt)]
    run = GenEvalRun(tuple(official(entry, number, number % 4 == 0) for number, entry in enumerate(entries)))
    write_results(tmp_path / "results.jsonl", run)
    read = read_results(tmp_path / "results.jsonl", rewritten=True)
    assert read.samples == run.samples
    summary = read.summary()
    assert (summary.prompts, summary.correct_prompts, summary.overall) == (553, 1.0, 0.25)
    assert read.scores(resamples=10)["interval"] == {"low": 0.25, "high": 0.25}
    found = run_protocol(read.entries, Scorer("x", official=True), rewritten=True)
    get_preset("geneval-rewritten").check(found)
    assert (found.prompts_hash, found.sampler) == (GENEVAL_SHA256, {"per_prompt": 4})


def test_the_hash_of_rewritten_prompts_covers_every_text():
    def hashed(entries: list[dict[str, object]]) -> str:
        return run_protocol(entries, Scorer("x", True), ENTRIES[:1], rewritten=True).extra["rewritten_prompts_hash"]

    entries = four_texts(ENTRIES[0])
    assert hashed(entries) == text_hash(f'"a photo of a bench, take {number}"' for number in range(4))
    assert hashed(entries[::-1]) == hashed(entries)
    assert hashed([*entries[:3], {**entries[3], "prompt": "another"}]) != hashed(entries)
    assert hashed([*entries[:3], {**entries[3], "prompt": "two\nlines"}]) != hashed(entries)


def test_original_texts_are_not_rewritten_ones():
    told = "expected rewritten prompts, got the original text of all 553; put the new texts into the metadata as"
    with pytest.raises(ValueError, match=told):
        protocol(rewritten=True)
    entries = [{**PROMPTS[0], "prompt": "a very detailed bench"}, *PROMPTS[1:]]
    assert run_protocol(entries, Scorer("x", official=True), rewritten=True).rewritten
