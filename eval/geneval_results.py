"""A run of GenEval, judged (arXiv 2310.11513), and its results file: the official scorer's, written and read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from ..data.files import atomic_file
from ..data.scene_prompts import prompts_sha256
from .bootstrap import Intervals
from .geneval import Classify, Summary, Verdict, aggregate, identity, intervals
from .geneval_folder import PER_PROMPT
from .geneval_prompts import GENEVAL_SHA256, Entry, geneval_prompts
from .geneval_records import is_lists, is_number, json_lines
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


@dataclass(frozen=True)
class Scorer:
    """Who found the objects, named the colours and judged, for a protocol."""

    detector: str
    official: bool  #: whether it is GenEval's own detector
    weights_hash: str | None = None  #: of the detector
    dtype: str = "not recorded"  #: of both
    preparation: Mapping[str, Any] | None = None  #: what else decides the detector's answers
    colors: Mapping[str, Any] | None = None  #: name, weights' hash and preparation of what names colours
    rules: Rules | None = None  #: None where another program judged

    @classmethod
    def of(cls, detector: Detector, colors: Mapping[str, Any] | None = None, rules: Rules | None = None) -> Self:
        """What `judge_samples` does with a detector.

        Args:
            detector: finds the objects.
            colors: description of what names colours.
            rules: by default GenEval's with the detector's own thresholds.
        """
        numbers = rules or Rules(detector.threshold, detector.counting_threshold)
        preparation = detector.describe()
        return cls(
            detector.name, detector.official, detector.weights_hash, "float32", preparation or None, colors, numbers
        )


@dataclass(frozen=True)
class GenEvalRun:
    """Every image of a run, judged."""

    samples: tuple[JudgedSample, ...]
    scorer: Scorer | None = None  #: who judged all of them; None in a file of the official scorer
    rewritten: bool = False  #: whether texts may differ from image to image of a prompt

    @property
    def entries(self) -> list[Entry]:
        """The metadata of each image."""
        return [sample.entry for sample in self.samples]

    def summary(self) -> Summary:
        """GenEval's table."""
        return aggregate(self.entries, [sample.verdict for sample in self.samples], rewritten=self.rewritten)

    def intervals(self, *, resamples: int = 1000, seed: int = 0) -> Intervals:
        """95 % intervals of the table's scores, over prompts."""
        verdicts = [sample.verdict for sample in self.samples]
        return intervals(self.entries, verdicts, resamples=resamples, seed=seed, rewritten=self.rewritten)

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


def run_protocol(
    entries: Sequence[Mapping[str, Any]],
    scorer: Scorer,
    prompts: Sequence[Mapping[str, Any]] | None = None,
    *,
    rewritten: bool = False,
    sampler: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Protocol:
    """The protocol of a complete run.

    Its task is "GenEval" only if GenEval's own detector judged the images of the official prompts by GenEval's own
    rules; otherwise "GenEval rules / <detector>".

    Args:
        entries: the metadata of each image, in the order of the prompts.
        scorer: who judged.
        prompts: all that were asked for; the official 553 by default.
        rewritten: whether another model rewrote the prompts; the hash of the new texts is kept in ``extra``.
        sampler: how the images were drawn, as far as it is known.
        seed: of the bootstrap.

    Raises:
        ValueError: if an image is of another prompt, a prompt has no image or not as many as the others, or
            ``rewritten`` prompts all have their original text.
    """
    wanted = geneval_prompts() if prompts is None else prompts
    texts = _texts(entries, wanted, rewritten)
    prompts_hash = prompts_sha256(wanted)
    published = prompts_hash == GENEVAL_SHA256
    earned = scorer.official and published and scorer.rules in (None, Rules())
    rules = None if scorer.rules is None else asdict(scorer.rules)
    extra: dict[str, Any] = {"detector": scorer.preparation, "colors": scorer.colors, "rules": rules}
    if rewritten:
        extra["rewritten_prompts_hash"] = text_hash(json.dumps(text) for found in texts for text in sorted(found))
    return Protocol(
        task="GenEval" if earned else f"GenEval rules / {scorer.detector}",
        dataset="GenEval prompts" if published else "prompts in GenEval's form",
        dataset_hash=prompts_hash,
        count=len(entries),
        dtype=scorer.dtype,
        seed=seed,
        extractor=scorer.detector,
        weights_hash=scorer.weights_hash,
        prompts_hash=prompts_hash,
        rewritten=rewritten,
        sampler={**(sampler or {}), "per_prompt": len(texts[0])},
        extra={name: value for name, value in extra.items() if value is not None},
    )


def write_results(path: str | Path, run: GenEvalRun) -> None:
    """Write a results file as the official scorer does, which its summary script reads.

    Where the run says who judged, each line has it too, in the fields of `Scorer`.
    """
    scorer = {} if run.scorer is None else asdict(run.scorer)
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row_of(sample) | scorer) + "\n" for sample in run.samples)


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
        rewritten: whether the metadata may have another text as ``prompt``, also from image to image.

    Returns:
        The run, in the order of the prompts and then of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no result, an image occurs twice, a prompt is not one of the expected, one has too few
            or too many images, or not all lines were judged alike. The message names the first.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected GenEval results in {path}, found no such file; check the path")
    wanted = geneval_prompts() if entries is None else entries
    lines = [read_row(line, f"{path}:{number}") for number, line in enumerate(json_lines(path), start=1)]
    samples = [sample for sample, _ in lines]
    _check_once(path, samples)
    ordered = _in_order(path, samples, wanted, per_prompt, rewritten)
    return GenEvalRun(tuple(ordered), _one_scorer(path, [scorer for _, scorer in lines]), rewritten)


def row_of(sample: JudgedSample) -> dict[str, Any]:
    """What a line of a results file holds of an image."""
    return {
        "filename": sample.filename,
        "tag": sample.entry["tag"],
        "prompt": sample.entry["prompt"],
        "correct": sample.verdict.correct,
        "reason": sample.verdict.reason,
        "metadata": json.dumps(sample.entry),
        "details": json.dumps(sample.details),
    }


def read_row(line: str, where: str) -> tuple[JudgedSample, Scorer | None]:
    """The inverse of `row_of`, of a line of JSON, and who judged where it says so.

    Args:
        line: the text.
        where: it stands, for the message.

    Raises:
        ValueError: no result.
    """
    try:
        content: object = json.loads(line)
        row = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
        missing = [name for name in _FIELDS if name not in row]
        if missing:
            raise ValueError(f"no field {missing[0]}")
        entry, details = json.loads(row["metadata"]), json.loads(row["details"])
        _check_kinds(row, entry, details)
        scorer = _scorer(row)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} must be a result of the official scorer, got {error}; score the image again"
        ) from error
    verdict = Verdict(row["correct"], row["reason"] or "")
    return JudgedSample(row["filename"], cast("Entry", entry), verdict, details), scorer


def _texts(
    entries: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], rewritten: bool
) -> list[list[str]]:
    """The texts of each prompt's images."""
    found: dict[str, list[str]] = {identity(prompt, rewritten): [] for prompt in wanted}
    for entry in entries:
        texts = found.get(identity(entry, rewritten))
        if texts is None:
            raise ValueError(
                f"expected images of {len(wanted)} prompts alone, got one of {entry.get('prompt')!r}; leave it out"
            )
        texts.append(entry["prompt"])
    numbers = sorted({len(texts) for texts in found.values()})
    if len(numbers) != 1 or numbers == [0]:
        raise ValueError(
            f"expected as many images of each of {len(wanted)} prompts, got {numbers[0]} to {numbers[-1]}; score the "
            "missing ones"
        )
    originals = [prompt["prompt"] for prompt in wanted]
    if rewritten and all(set(texts) == {text} for texts, text in zip(found.values(), originals, strict=True)):
        raise ValueError(
            f"expected rewritten prompts, got the original text of all {len(wanted)}; put the new texts into the "
            "metadata as `prompt`, or call the prompts not rewritten"
        )
    return list(found.values())


def _check_kinds(row: Mapping[str, Any], entry: object, details: object) -> None:
    prompt: object = cast("Entry", entry).get("prompt") if isinstance(entry, dict) else None
    fits = {
        "filename": isinstance(row["filename"], str),
        "correct": isinstance(row["correct"], bool),
        "reason": row["reason"] is None or isinstance(row["reason"], str),
        "metadata": isinstance(prompt, str),
        "details": is_lists(details),
    }
    wrong = next((name for name, right in fits.items() if not right), None)
    if wrong is not None:
        raise ValueError(f"a {wrong} of another kind, {str(row[wrong])[:40]!r}")


def _scorer(row: Mapping[str, Any]) -> Scorer | None:
    """Who judged, as a line says."""
    record = {item.name: row[item.name] for item in fields(Scorer) if item.name in row}
    if not record:
        return None
    fits = {
        "detector": isinstance(record.get("detector"), str),
        "official": isinstance(record.setdefault("official", False), bool),
        "weights_hash": isinstance(record.get("weights_hash", ""), (str, type(None))),
        "dtype": isinstance(record.get("dtype", ""), str),
        "preparation": isinstance(record.get("preparation"), (dict, type(None))),
        "colors": isinstance(record.get("colors"), (dict, type(None))),
        "rules": record.get("rules") is None or _is_rules(record["rules"]),
    }
    wrong = next((name for name, right in fits.items() if not right), None)
    if wrong is not None:
        raise ValueError(f"a {wrong} of another kind, {str(record.get(wrong))[:40]!r}")
    rules = record.pop("rules", None)
    return Scorer(**record, rules=None if rules is None else Rules(**rules))


def _is_rules(value: object) -> bool:
    numbers = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return set(numbers) == {item.name for item in fields(Rules)} and all(map(is_number, numbers.values()))


def _check_once(path: Path, samples: Sequence[JudgedSample]) -> None:
    name, often = next(iter(Counter(sample.filename for sample in samples).most_common(1)), ("", 0))
    if often > 1:
        raise ValueError(f"expected every image once in {path}, got {name} {often} times; score into a new file")


def _one_scorer(path: Path, scorers: Sequence[Scorer | None]) -> Scorer | None:
    """Who judged every line."""
    first = scorers[0]
    other = next((scorer for scorer in scorers if scorer != first), first)
    if other != first:
        mine, theirs = ({} if scorer is None else asdict(scorer) for scorer in (first, other))
        name = next(item.name for item in fields(Scorer) if mine.get(item.name) != theirs.get(item.name))
        raise ValueError(
            f"expected lines that were all judged alike in {path}, got {name} {mine.get(name)} and {theirs.get(name)}; "
            "score all alike"
        )
    return first


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
