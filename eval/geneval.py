"""GenEval's judging rules (arXiv 2310.11513), apart from any detector: boxes and colours in, verdicts and scores out.

``python -m smalti.eval.geneval CASES.jsonl --check`` replays recorded cases and compares every verdict and reason, and
their sums with the file ``summary.json`` beside them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..data.scene_relations import Box, relations
from .bootstrap import Intervals, bootstrap_intervals
from .geneval_records import json_lines, json_object, require_case, require_summary

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Detection:
    """One box that a detector returned for a class."""

    box: Box  #: x0, y0, x1, y1 in pixels, y downwards
    score: float  #: the detector's confidence
    color: str | None = None  #: one of ``COLORS``; None where none was named


@dataclass(frozen=True)
class Verdict:
    """Whether one image shows what its prompt asked for."""

    correct: bool
    reason: str  #: everything that is wrong, one sentence a line; empty if correct


@dataclass(frozen=True)
class TaskScore:
    """One task's share of correct images."""

    correct: int
    total: int

    @property
    def score(self) -> float:
        """``correct / total``."""
        return self.correct / self.total


@dataclass(frozen=True)
class Summary:
    """GenEval's table."""

    tasks: dict[str, TaskScore]  #: by tag, only tasks that have images
    overall: float  #: unweighted mean of the task scores
    correct_images: float  #: share of all images
    correct_prompts: float  #: share of prompts with at least one correct image
    images: int
    prompts: int


Classify = Callable[[str, Detection], str | None]


def judge(
    metadata: Mapping[str, Any],
    detections: Mapping[str, Sequence[Detection]],
    *,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    max_objects: int = 16,
    position_threshold: float = 0.1,
    color: Classify | None = None,
) -> Verdict:
    """Judge one image.

    Detections count if their score is above the threshold, best first, at most ``max_objects`` of a class. For each
    class asked for, the best ``count`` of them must exist, all have the colour, and all stand in the relation to all
    of the target's. Further objects are allowed, unless ``exclude`` limits their number.

    Args:
        metadata: an entry of the prompt file: ``tag``, ``include`` and perhaps ``exclude``.
        detections: everything the detector returned, by class, in any order.
        threshold: score to be exceeded.
        counting_threshold: the same for the tag ``counting``.
        max_objects: most detections of one class that are looked at.
        position_threshold: share of the extents that does not count as an offset; see ``relations``.
        color: names the colour of a detection, given its class; by default its own ``color``.

    Raises:
        ValueError: if a position refers to a later entry of ``include``.
    """
    limit = counting_threshold if metadata["tag"] == "counting" else threshold
    kept = {name: kept_detections(found, limit, max_objects) for name, found in detections.items()}
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        found = kept.get(wanted["class"], [])[: wanted["count"]]
        wrong = _missing(wanted, found) or _miscolored(wanted, found, color or _stored_color)
        # A wrong colour already condemns the object, so its place is not looked at.
        wrong = wrong or _misplaced(wanted, found, groups, position_threshold)
        groups.append(None if wrong else found)
        reasons += [wrong] if wrong else []
    for unwanted in metadata.get("exclude", ()):
        number = len(kept.get(unwanted["class"], ()))
        if number >= unwanted["count"]:
            reasons.append(f"expected {unwanted['class']}<{unwanted['count']}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def kept_detections(found: Sequence[Detection], threshold: float, max_objects: int = 16) -> list[Detection]:
    """The detections of one class that count, best first."""
    above = (detection for detection in found if detection.score > threshold)
    return sorted(above, key=lambda detection: -detection.score)[:max_objects]


def identity(entry: Mapping[str, Any], rewritten: bool) -> str:
    """What tells a prompt from the others: its metadata, without the text if that was rewritten."""
    return json.dumps({key: value for key, value in entry.items() if key != "prompt" or not rewritten}, sort_keys=True)


def aggregate(
    entries: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    *,
    prompts: int | None = None,
    images_per_prompt: int | None = None,
    rewritten: bool = False,
) -> Summary:
    """Sum verdicts up as GenEval does.

    Args:
        entries: the metadata of each image; those of equal `identity` belong to one prompt.
        verdicts: one for each entry.
        prompts: number of prompts there must be, e.g. 553 for a complete GenEval run; unchecked by default.
        images_per_prompt: number of images every prompt must have, e.g. 4; unchecked by default.
        rewritten: whether another model rewrote the texts, which may then differ from image to image.

    Raises:
        ValueError: if there are no images, not one verdict an entry, or the run is not complete.
    """
    if not entries or len(entries) != len(verdicts):
        raise ValueError(
            f"expected one verdict for each of at least one entry, got {len(verdicts)} verdicts for "
            f"{len(entries)} entries; judge every image once"
        )
    by_task: dict[str, list[bool]] = {}
    for entry, verdict in zip(entries, verdicts, strict=True):
        by_task.setdefault(entry["tag"], []).append(verdict.correct)
    by_prompt = _by_prompt(entries, verdicts, rewritten)
    _check_complete(by_prompt, prompts, images_per_prompt)
    names = sorted(by_task, key=lambda name: TASKS.index(name) if name in TASKS else len(TASKS))
    tasks = {name: TaskScore(sum(by_task[name]), len(by_task[name])) for name in names}
    return Summary(
        tasks=tasks,
        overall=sum(task.score for task in tasks.values()) / len(tasks),
        correct_images=sum(verdict.correct for verdict in verdicts) / len(verdicts),
        correct_prompts=sum(any(prompt.correct) for prompt in by_prompt) / len(by_prompt),
        images=len(verdicts),
        prompts=len(by_prompt),
    )


def intervals(
    entries: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    *,
    resamples: int = 1000,
    seed: int = 0,
    rewritten: bool = False,
) -> Intervals:
    """95 % intervals of `aggregate`'s scores when prompts are resampled within their tasks.

    Args:
        entries: the metadata of each image; those of equal `identity` belong to one prompt.
        verdicts: one for each entry.
        resamples: how often the prompts are drawn.
        seed: decides the draws.
        rewritten: as for `aggregate`.
    """
    by_prompt = _by_prompt(entries, verdicts, rewritten)
    tags = [prompt.entry["tag"] for prompt in by_prompt]
    correct, images = [sum(prompt.correct) for prompt in by_prompt], [len(prompt.correct) for prompt in by_prompt]
    return bootstrap_intervals(tags, correct, images, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class _Prompt:
    entry: Mapping[str, Any]  #: of its first image
    correct: list[bool]  #: one for each image


def _by_prompt(entries: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict], rewritten: bool) -> Sequence[_Prompt]:
    found: dict[str, _Prompt] = {}
    for entry, verdict in zip(entries, verdicts, strict=True):
        found.setdefault(identity(entry, rewritten), _Prompt(entry, [])).correct.append(verdict.correct)
    return list(found.values())


def _stored_color(_class: str, detection: Detection) -> str | None:
    return detection.color


def _missing(wanted: Mapping[str, Any], found: list[Detection]) -> str:
    return "" if len(found) >= wanted["count"] else f"expected {wanted['class']}>={wanted['count']}, found {len(found)}"


def _miscolored(wanted: Mapping[str, Any], found: list[Detection], color: Classify) -> str:
    if "color" not in wanted:
        return ""
    name, count = wanted["color"], wanted["count"]
    named = [color(wanted["class"], detection) for detection in found]
    if named.count(name) >= count:
        return ""
    seen = ", ".join(f"{named.count(other)} {other}" for other in COLORS if other in named)
    return f"expected {name} {wanted['class']}>={count}, found {named.count(name)} {name}; and {seen}"


def _misplaced(
    wanted: Mapping[str, Any], found: list[Detection], groups: list[list[Detection] | None], margin: float
) -> str:
    if "position" not in wanted:
        return ""
    relation, index = wanted["position"]
    if index >= len(groups):
        raise ValueError(
            f"a position must refer to an earlier entry of include, got entry {index} from entry {len(groups)}; "
            "list the target first"
        )
    targets = groups[index]
    if targets is None:
        return f"no target for {wanted['class']} to be {relation}"
    for subject in found:
        for target in targets:
            held = relations(subject.box, target.box, margin)
            if relation not in held:
                return f"expected {wanted['class']} {relation} target, found {' and '.join(sorted(held))} target"
    return ""


def _check_complete(by_prompt: Sequence[_Prompt], prompts: int | None, images_per_prompt: int | None) -> None:
    if prompts is not None and len(by_prompt) != prompts:
        raise ValueError(f"expected {prompts} prompts, got {len(by_prompt)}; score the missing ones before summing up")
    for prompt in by_prompt:
        if images_per_prompt is not None and len(prompt.correct) != images_per_prompt:
            raise ValueError(
                f"expected {images_per_prompt} images of every prompt, got {len(prompt.correct)} of "
                f"{prompt.entry['prompt']!r}; score the missing ones before summing up"
            )


def replay(case: Mapping[str, Any]) -> Verdict:
    """Judge a recorded case: ``metadata``, boxes with scores by class, and the colours of the boxes that count.

    Raises:
        ValueError: if a class has another number of colours than of boxes that count.
    """
    limit = 0.9 if case["metadata"]["tag"] == "counting" else 0.3
    detections: dict[str, list[Detection]] = {}
    for name, rows in case["detections"].items():
        found = kept_detections([Detection((x0, y0, x1, y1), score) for x0, y0, x1, y1, score in rows], limit)
        colors = case["colors"].get(name, [])
        if len(colors) != len(found):
            raise ValueError(
                f"case {case['id']} must name a colour for each of the {len(found)} boxes kept of {name!r}, got "
                f"{len(colors)}; record the others"
            )
        detections[name] = [replace(item, color=color) for item, color in zip(found, colors, strict=True)]
    return judge(case["metadata"], detections)


def summary_differences(summary: Summary, recorded: Mapping[str, Any]) -> list[str]:
    """Where a recorded summary says something else: counts must be equal, averages to 1e-12.

    Args:
        summary: what `aggregate` made of the cases.
        recorded: the content of ``summary.json``: ``total_images``, ``total_prompts``, ``correct_images``,
            ``correct_prompts``, ``overall`` and, for each of ``tasks``, ``score``, ``correct`` and ``total``.

    Returns:
        One line for each number that is absent or differs.
    """
    found: dict[str, float] = {
        "total_images": summary.images,
        "total_prompts": summary.prompts,
        "correct_images": summary.correct_images,
        "correct_prompts": summary.correct_prompts,
        "overall": summary.overall,
    }
    for name, task in summary.tasks.items():
        found |= {f"{name}.score": task.score, f"{name}.correct": task.correct, f"{name}.total": task.total}
    tasks = cast("Mapping[str, Mapping[str, float]]", recorded.get("tasks", {}))
    expected: dict[str, Any] = {name: recorded[name] for name in found if name in recorded}
    expected |= {f"{name}.{field}": value for name, task in tasks.items() for field, value in task.items()}
    return [
        f"summary differs in {name}: recorded {expected.get(name)}, found {found.get(name)}"
        for name in found | expected
        if not _equal(found.get(name), expected.get(name))
    ]


def _equal(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None or isinstance(found, int):
        return found == expected
    return abs(found - expected) <= 1e-12


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a file of recorded cases.

    Returns:
        0; 1 if ``--check`` finds a verdict, a reason or a sum that differs; 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description="Score recorded detections by GenEval's rules.")
    parser.add_argument("cases", type=Path, help="JSONL file: metadata, detections, colors; for --check also verdicts")
    text = "compare with the recorded verdicts and reasons, and the sums with summary.json in the same folder"
    parser.add_argument("--check", action="store_true", help=text)
    options = parser.parse_args(arguments)
    try:
        cases = _read_cases(options.cases, ("correct", "reason") if options.check else ())
        recorded = _read_summary(options.cases.with_name("summary.json")) if options.check else None
        verdicts = [replay(case) for case in cases]
        summary = aggregate([case["metadata"] for case in cases], verdicts)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    lines = [f"{name} {task.score:.4f} ({task.correct}/{task.total})" for name, task in summary.tasks.items()]
    overall = f"overall {summary.overall:.5f}"
    if recorded is None:
        sys.stdout.write("\n".join([*lines, overall]) + "\n")
        return 0
    agree = [verdict == Verdict(case["correct"], case["reason"]) for case, verdict in zip(cases, verdicts, strict=True)]
    differing = [f"case {case['id']} differs" for case, same in zip(cases, agree, strict=True) if not same]
    differing += summary_differences(summary, recorded)
    sys.stdout.write("\n".join([*lines, *differing, f"agree {sum(agree)}/{len(agree)}, {overall}"]) + "\n")
    return 1 if differing else 0


def _read_cases(path: Path, verdict: Sequence[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"expected recorded cases in {path}, found no such file; check the path")
    cases = [(f"{path}:{number}", json_object(line)) for number, line in enumerate(json_lines(path), start=1)]
    return [require_case(case, verdict, where) for where, case in cases]


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"--check needs the recorded sums in {path}, found no such file; put it there, or leave --check out"
        )
    return require_summary(json_object("\n".join(json_lines(path))), path)


if __name__ == "__main__":
    sys.exit(main())
