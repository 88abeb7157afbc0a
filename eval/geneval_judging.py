"""Judging the images of a GenEval run (arXiv 2310.11513) one by one, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.decoding import decode
from ..data.processes import ALONE, Processes
from .geneval import judge, kept_detections
from .geneval_folder import Sample
from .geneval_results import Colors, GenEvalRun, JudgedSample, Rules, Scorer, read_row, row_of
from .protocol import file_hash, versions

if TYPE_CHECKING:
    from .detection.detectors import Detector


class Journal:
    """Verdicts that are known already, one a line of a hidden file beside a result.

    Its name holds a digest of who judges; each line has a digest of the image and its prompt, so that nothing is taken
    for a verdict on something else. A line that a kill cut off is passed over.

    Args:
        out: the result file.
        scorer: who judges.
    """

    def __init__(self, out: Path, scorer: Scorer) -> None:
        judging = json.dumps([asdict(scorer), versions()], sort_keys=True)
        digest = hashlib.sha256(judging.encode()).hexdigest()[:16]
        self.path = out.with_name(f".{out.name}.{digest}.jsonl")

    def rows(self) -> dict[str, dict[str, Any]]:
        """What was judged, by the key of the image."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                found[row.pop("key")] = row
        return found

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a verdict in one write; the line break comes first, so that a cut line spoils no other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, b"\n" + json.dumps({"key": key, **row}).encode() + b"\n")
        finally:
            os.close(handle)

    def remove(self) -> None:
        """The result is written."""
        self.path.unlink(missing_ok=True)


def judge_samples(
    samples: Sequence[Sample],
    detector: Detector,
    colors: Colors | None = None,
    *,
    scorer: Scorer | None = None,
    rewritten: bool = False,
    progress: Callable[[int, int], None] | None = None,
    journal: Journal | None = None,
    processes: Processes = ALONE,
) -> GenEvalRun:
    """Detect and judge.

    Args:
        samples: of `read_layout`.
        detector: finds the objects.
        colors: names colours where a prompt asks for one; by default the detections' own.
        scorer: `Scorer.of` the detector, where the rules are others than its own or colours are named.
        rewritten: whether another model rewrote the prompts.
        progress: called after each image with how many are done and how many there are.
        journal: of the same scorer; verdicts in it are taken, new ones added.
        processes: share the images; each gets all verdicts.

    Raises:
        BrokenImageError: if an image cannot be read.
    """
    scorer = scorer or Scorer.of(detector)
    rules = scorer.rules or Rules()
    keys = [""] * len(samples) if journal is None else [_key(sample) for sample in samples]
    known = {} if journal is None else journal.rows()
    rows: list[dict[str, Any] | None] = [known.get(key) for key in keys]
    rows = processes.gathered(rows)[0]
    missing = [at for at, row in enumerate(rows) if row is None]
    for turn, row in enumerate(
        processes.shared(missing, lambda at: row_of(_judged(samples[at], detector, colors, rules))), start=1
    ):
        at = missing[turn - 1]
        rows[at] = row
        if journal is not None and processes.first:
            journal.add(keys[at], row)
        if progress is not None:
            progress(len(samples) - len(missing) + turn, len(samples))
    return GenEvalRun(tuple(map(_named, rows, samples)), scorer, rewritten)


def _key(sample: Sample) -> str:
    """Of an image and its prompt, wherever it lies."""
    return hashlib.sha256(f"{file_hash(sample.path)}{json.dumps(sample.entry)}".encode()).hexdigest()


def _named(row: Mapping[str, Any] | None, sample: Sample) -> JudgedSample:
    found, _ = read_row(json.dumps(row), str(sample.path))
    return replace(found, filename=str(sample.path))


def _judged(sample: Sample, detector: Detector, colors: Colors | None, rules: Rules) -> JudgedSample:
    image = decode(sample.path)
    found = detector.detect(image)
    limit = rules.counting_threshold if sample.entry["tag"] == "counting" else rules.threshold
    verdict = judge(
        sample.entry,
        found,
        threshold=rules.threshold,
        counting_threshold=rules.counting_threshold,
        max_objects=rules.max_objects,
        position_threshold=rules.position_threshold,
        color=None if colors is None else colors(image, found),
    )
    kept = {name: kept_detections(items, limit, rules.max_objects) for name, items in found.items()}
    details = {name: [[*item.box, item.score] for item in items] for name, items in kept.items() if items}
    return JudgedSample(str(sample.path), sample.entry, verdict, details)
