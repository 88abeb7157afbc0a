"""A run of GenEval, judged (arXiv 2310.11513), and its results file: the official scorer's, written and read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data.decoding import decode
from ..data.files import atomic_file
from .bootstrap import Intervals
from .geneval import Classify, Summary, Verdict, aggregate, intervals, judge, kept_detections
from .geneval_folder import PER_PROMPT, Sample, identity
from .geneval_prompts import GENEVAL_SHA256, Entry, geneval_prompts
from .protocol import Protocol, text_hash

if TYPE_CHECKING:
    from PIL import Image

    from .detection.detected import Detected
    from .detection.detectors import Detector

_FIELDS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")

#: What names colours in one image, given what was detected in it; `colors_in` with a classifier.
Colors = Callable[["Image.Image", "Detected"], Classify]


@dataclass(frozen=True)
class Rules:
    """The numbers that the rules take; the defaults are GenEval's, chosen for its own detector."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_threshold: float = 0.1


@dataclass(frozen=True)
class JudgedSample:
    """One line of a results file."""

    filename: str
    entry: Entry
    verdict: Verdict
    details: Mapping[str, list[list[float]]]  #: by class, the boxes that counted: x0, y0, x1, y1, score; best first
    detector: str | None = None  #: whose boxes they are; None in a file of the official scorer


@dataclass(frozen=True)
class GenEvalRun:
    """Every image of a run, judged."""

    samples: tuple[JudgedSample, ...]

    def summary(self) -> Summary:
        """GenEval's table."""
        return aggregate([sample.entry for sample in self.samples], [sample.verdict for sample in self.samples])

    def intervals(self, *, resamples: int = 1000, seed: int = 0) -> Intervals:
        """95 % intervals of the table's scores, over prompts."""
        entries, verdicts = [sample.entry for sample in self.samples], [sample.verdict for sample in self.samples]
        return intervals(entries, verdicts, resamples=resamples, seed=seed)

    def scores(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Table and intervals as a result file has them."""
        summary, ends = self.summary(), self.intervals(resamples=resamples, seed=seed)
        return {
            "overall": summary.overall,
            "interval": {"low": ends.overall[0], "high": ends.overall[1]},
            "tasks": {name: task.score for name, task in summary.tasks.items()},
            "task_intervals": {name: {"low": low, "high": high} for name, (low, high) in ends.tasks.items()},
            "task_images": {name: task.total for name, task in summary.tasks.items()},
            "correct_images": summary.correct_images,
            "correct_prompts": summary.correct_prompts,
        }


@dataclass(frozen=True)
class Scorer:
    """Who found the objects and named the colours, for a protocol."""

    detector: str
    official: bool  #: whether it is GenEval's own detector under GenEval's own thresholds
    weights_hash: str | None = None  #: of the detector
    dtype: str = "not recorded"  #: of both
    colors: Mapping[str, str] | None = None  #: name and weights' hash of what names colours
    rules: Rules | None = None  #: None where another program judged

    @property
    def task(self) -> str:
        """What the number may be called."""
        return "GenEval" if self.official else f"GenEval rules / {self.detector}"


def run_protocol(
    entries: Sequence[Mapping[str, Any]],
    scorer: Scorer,
    *,
    rewritten: bool = False,
    sampler: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Protocol:
    """The protocol of a complete run.

    Args:
        entries: the metadata of each image, in the order of the prompts.
        scorer: who judged.
        rewritten: whether another model rewrote the prompts; the hash of the new ones is kept in ``extra``.
        sampler: how the images were drawn, as far as it is known.
        seed: of the bootstrap.
    """
    prompts = list({identity(entry, rewritten=False): entry for entry in entries}.values())
    extra: dict[str, Any] = {"colors": scorer.colors, "rules": None if scorer.rules is None else asdict(scorer.rules)}
    texts = {"rewritten_prompts_hash": text_hash(entry["prompt"] for entry in prompts)} if rewritten else {}
    return Protocol(
        task=scorer.task,
        dataset="GenEval prompts",
        dataset_hash=GENEVAL_SHA256,
        count=len(entries),
        dtype=scorer.dtype,
        seed=seed,
        extractor=scorer.detector,
        weights_hash=scorer.weights_hash,
        prompts_hash=GENEVAL_SHA256,
        rewritten=rewritten,
        sampler={**(sampler or {}), "per_prompt": len(entries) // len(prompts)},
        extra={name: value for name, value in extra.items() if value is not None} | texts,
    )


def judge_samples(
    samples: Sequence[Sample],
    detector: Detector,
    colors: Colors | None = None,
    *,
    rules: Rules | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenEvalRun:
    """Detect and judge.

    Args:
        samples: of `read_layout`.
        detector: finds the objects.
        colors: names colours where a prompt asks for one; by default the detections' own.
        rules: by default GenEval's with the detector's own thresholds.
        progress: called after each image with how many are done and how many there are.

    Raises:
        BrokenImageError: if an image cannot be read.
    """
    numbers = rules or Rules(detector.threshold, detector.counting_threshold)
    judged: list[JudgedSample] = []
    for sample in samples:
        judged.append(_judged(sample, detector, colors, numbers))
        if progress is not None:
            progress(len(judged), len(samples))
    return GenEvalRun(tuple(judged))


def write_results(path: str | Path, run: GenEvalRun) -> None:
    """Write a results file as the official scorer does, which its summary script reads.

    Lines of a named detector say so in a further field, ``detector``.
    """
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(_line(sample)) + "\n" for sample in run.samples)


def read_results(
    path: str | Path,
    entries: Sequence[Mapping[str, Any]] | None = None,
    *,
    per_prompt: int = PER_PROMPT,
    rewritten: bool = False,
) -> GenEvalRun:
    """Read a results file, of `write_results` or of the official scorer, whose lines stand in any order.

    Args:
        path: the file.
        entries: the prompts there must be; the official 553 by default.
        per_prompt: number of images each must have.
        rewritten: whether the metadata may have another text as ``prompt``.

    Returns:
        The run, in the order of the prompts and then of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no result, an image occurs twice, a prompt is not one of the expected, one has too few
            or too many images, or the lines are of several detectors. The message names the first.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected GenEval results in {path}, found no such file; check the path")
    wanted = geneval_prompts() if entries is None else entries
    lines = path.read_text(encoding="utf-8").splitlines()
    samples = [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    _check_results(path, samples)
    return GenEvalRun(tuple(_in_order(path, samples, wanted, per_prompt, rewritten)))


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
    return JudgedSample(str(sample.path), sample.entry, verdict, details, detector.name)


def _line(sample: JudgedSample) -> dict[str, Any]:
    named = {} if sample.detector is None else {"detector": sample.detector}
    return {
        "filename": sample.filename,
        "tag": sample.entry["tag"],
        "prompt": sample.entry["prompt"],
        "correct": sample.verdict.correct,
        "reason": sample.verdict.reason,
        "metadata": json.dumps(sample.entry),
        "details": json.dumps(sample.details),
        **named,
    }


def _parsed(line: str, where: str) -> JudgedSample:
    try:
        fields: object = json.loads(line)
        row = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
        missing = [name for name in _FIELDS if name not in row]
        if missing:
            raise ValueError(f"no field {missing[0]}")
        entry, details = json.loads(row["metadata"]), json.loads(row["details"])
        if not isinstance(entry, dict) or not isinstance(row["correct"], bool):
            raise ValueError("metadata or a verdict of another type")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} must be a result of the official scorer, got {error}; score the image again"
        ) from error
    verdict = Verdict(row["correct"], row["reason"] or "")
    return JudgedSample(row["filename"], cast("Entry", entry), verdict, details, row.get("detector"))


def _check_results(path: Path, samples: Sequence[JudgedSample]) -> None:
    name, often = next(iter(Counter(sample.filename for sample in samples).most_common(1)), ("", 0))
    if often > 1:
        raise ValueError(f"expected every image once in {path}, got {name} {often} times; score into a new file")
    detectors = list(dict.fromkeys(sample.detector for sample in samples))
    if len(detectors) > 1:
        raise ValueError(
            f"expected the boxes of one detector in {path}, got {detectors[0]} and {detectors[1]}; score all alike"
        )


def _in_order(
    path: Path,
    samples: Sequence[JudgedSample],
    wanted: Sequence[Mapping[str, Any]],
    per_prompt: int,
    rewritten: bool,
) -> list[JudgedSample]:
    groups: dict[str, list[JudgedSample]] = {identity(entry, rewritten): [] for entry in wanted}
    for sample in samples:
        key = identity(sample.entry, rewritten)
        if key not in groups:
            raise ValueError(
                f"{path} must hold images of the {len(wanted)} prompts alone, got {sample.filename} of "
                f"{sample.entry.get('prompt')!r}; score the images of the official prompts"
            )
        groups[key].append(sample)
    absent = [entry["prompt"] for entry, found in zip(wanted, groups.values(), strict=True) if not found]
    if absent:
        raise ValueError(
            f"expected {len(wanted)} prompts in {path}, got {len(wanted) - len(absent)}; score the missing ones, first "
            f"{absent[0]!r}"
        )
    for entry, found in zip(wanted, groups.values(), strict=True):
        if len(found) != per_prompt:
            raise ValueError(
                f"expected {per_prompt} images of {entry['prompt']!r} in {path}, got {len(found)}; score each prompt's "
                "images, or read with another number per prompt"
            )
    return [sample for found in groups.values() for sample in found]
