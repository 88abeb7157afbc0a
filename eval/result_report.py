"""A page of results, whatever they measured: scores, protocols, pictures and the verdicts on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.decoding import decode
from .plots import Curve
from .protocol import Protocol, Result, Scores, flat, read_result
from .report import Chart, Headline, Report, Sample, TaskScore
from .result_table import compare_results
from .scene_report import scene_headlines, scene_report
from .suite import Evidence, spread
from .tables import Table

_SHOWN = 48  # judged pictures of one file
_CARDS = 4  # scores of one result that get a card of their own
_COUNTS = ("count", "images", "prompts", "capped", "tokens", "bits")
_FIRST = ("rfid", "fid")  # the scores that are quoted first
_PARTS = ("reconstructions", "samples", "answers", "captions", "codebooks", "tasks", "notes")
#: What other scores of a result mean beside the first ones: ends of the scale and guesses.
_BASELINES = ("blind", "chance", "untrained", "ceiling", "oracle", "near_miss", "strict", "uniform")
#: Cards are drawn on a scale from 0 to this value; without one they are a number alone.
_FULL = {"psnr": 40.0} | dict.fromkeys(
    ("ssim", "overall", "accuracy", "precision", "recall", "f1", "usage", "correct_images", "correct_prompts", "blind"),
    1.0,
)


@dataclass(frozen=True)
class Evidences:
    """What a page is made from."""

    results: Mapping[str, Result]  #: by name
    scenes: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence])  #: of the results that have some
    judged: Mapping[str, Sequence[Sample]] = field(default_factory=dict[str, list[Sample]])  #: pictures with verdicts
    sheets: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])


def read_evidence(paths: Mapping[str, Path]) -> Evidences:
    """Read result files, verdicts and pictures.

    Args:
        paths: by name: results (``.json``), verdicts in the format of GenEval's scorer (``.jsonl``), pictures
            (``.png``). A result brings what lies beside it: pictures that begin with its own name
            (``result.json``, ``result.samples.png``), and the evidence of a model of scenes.

    Raises:
        FileNotFoundError: a missing file, or a picture that a verdict names.
        ValueError: a file of another kind, or a damaged one; the sentence names it.
    """
    results, scenes = dict[str, Result](), dict[str, Evidence]()
    judged, sheets = dict[str, Sequence[Sample]](), dict[str, Image.Image]()
    for name, path in paths.items():
        if path.suffix == ".json":
            results[name] = read_result(path)
            if path.name == "scores.json" and (path.parent / "evidence.json").is_file():
                scenes[name] = Evidence.load(path.parent)
            sheets |= {f"{name}: {it.name}": decode(it) for it in _sheets(path)}
        elif path.suffix == ".jsonl":
            judged[name] = _judged(path)
        elif path.suffix == ".png":
            sheets[name] = decode(path)
        else:
            raise ValueError(f"a report is made of .json, .jsonl and .png files, got {path}; leave it out")
    return Evidences(results, scenes, judged, sheets)


def result_report(title: str, found: Evidences) -> Report:
    """The page: cards, one table for each group of results that were measured alike, bars, curves and pictures.

    Results of unlike protocols never share a table; a note says which fields differ.

    Raises:
        ValueError: nothing to show.
    """
    if not (found.results or found.judged or found.sheets):
        raise ValueError("a report needs at least one result, got none; name files of smalti eval, run or bench")
    groups = _alike(found.results)
    pages = [_page(name, found) for name in found.scenes]
    report = Report(
        title,
        subtitle=_subtitle(found),
        headlines=[card for name, result in found.results.items() for card in _cards(name, result, found)],
        tables={_named(group): _table({name: found.results[name] for name in group}) for group in groups},
        protocols={_named(group): found.results[group[0]].protocol for group in groups},
        bars=_bars(groups, found.results),
        charts=[chart for group in groups for chart in _charts(group, found.results, len(groups) == 1)],
        tasks=_judged_tasks(next(iter(found.results.values()))) if len(found.results) == 1 else (),
        samples=[sample for samples in found.judged.values() for sample in samples],
        sheets=found.sheets,
        notes=_unlike(groups, found.results),
    )
    merged = {part: [*getattr(report, part), *(it for page in pages for it in getattr(page, part))] for part in _PARTS}
    return replace(report, **merged)


def _page(name: str, found: Evidences) -> Report:
    """What a model of scenes drew and said; among several models each line says whose it is."""
    page = scene_report(name, found.results[name], found.scenes[name])
    if len(found.scenes) == 1:
        return page
    return replace(
        page,
        tasks=(),
        reconstructions=[replace(pair, label=f"{name} {pair.label}".rstrip()) for pair in page.reconstructions],
        samples=[replace(sample, prompt=f"{name}: {sample.prompt}") for sample in page.samples],
        codebooks=[replace(book, name=f"{name}: {book.name}") for book in page.codebooks],
        answers=(),
        captions=(),
        notes=[f"{name}: {note}" for note in page.notes],
    )


def _judged(path: Path) -> list[Sample]:
    """Some of the pictures that GenEval's scorer wrote verdicts on, evenly spread."""
    if not path.is_file():
        raise FileNotFoundError(f"expected verdicts, found none at {path}; write them with smalti eval geneval")
    rows = list[dict[str, Any]]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in ("filename", "prompt", "correct", "reason")})
            if not (isinstance(row["correct"], bool) and isinstance(row["filename"], str)):
                raise TypeError("correct must be true or false, filename a text")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} must be a verdict with filename, prompt, correct and reason, got {line[:60]!r}; "
                "pass the scorer's results.jsonl"
            ) from error
    return [
        Sample(decode(_beside(path, row["filename"])), row["prompt"], bool(row["correct"]), str(row["reason"] or ""))
        for row in (rows[at] for at in spread(len(rows), _SHOWN))
    ]


def _sheets(path: Path) -> list[Path]:
    """Pictures beside a result that bear its name: ``a.png`` and ``a.samples.png`` are of ``a.json``."""
    alone, several = path.with_suffix(".png"), sorted(path.parent.glob(f"{escape(path.stem)}.*.png"))
    return [
        *([alone] if alone.is_file() else []),
        *(
            it
            for it in several
            if it.name.count(".") == path.name.count(".") + 1 and not it.with_suffix(".json").exists()
        ),
    ]


def _beside(path: Path, name: str) -> Path:
    """A picture as it is named, or from the folder of the verdicts."""
    for place in (Path(name), path.parent / name):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} judges the picture {name}, which is not there; run from where it was scored")


def _alike(results: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """Names in groups of one protocol and the same kind of scores."""
    groups = list[list[str]]()
    for name, result in results.items():
        for group in groups:
            first = results[group[0]]
            if not first.protocol.differences(result.protocol) and set(first.scores) == set(result.scores):
                group.append(name)
                break
        else:
            groups.append([name])
    return [tuple(group) for group in groups]


def _subtitle(found: Evidences) -> str:
    tasks = dict.fromkeys(result.protocol.task for result in found.results.values())
    return f"{len(found.results)} result{'s' * (len(found.results) != 1)}: {', '.join(tasks)}" if tasks else ""


def _named(group: Sequence[str]) -> str:
    return ", ".join(group)


def _table(results: Mapping[str, Result]) -> Table:
    shown = {name: replace(result, scores=_without_curves(result.scores)) for name, result in results.items()}
    if len(shown) > 1:
        return compare_results(shown)
    ((name, result),) = shown.items()
    rows = [[score, f"{value:,.6g}"] for score, value in flat(result.scores).items()]
    return Table(["score", name], rows, frozenset({1}))


def _cards(name: str, result: Result, found: Evidences) -> list[Headline]:
    """The first scores of a result, each beside what it must be read against."""
    prefix = f"{name}: " if len(found.results) > 1 else ""
    if "baselines" in result.scores:
        return [replace(card, name=prefix + card.name) for card in scene_headlines(result)]
    cards = list[Headline]()
    for group, plain, blind in _groups(result.scores):
        scores = sorted((key for key in plain if key not in _BASELINES + _COUNTS), key=lambda key: key not in _FIRST)
        for at, key in enumerate(scores[:_CARDS]):
            ends = {name: plain[name] for name in _BASELINES if name in plain} if at == 0 else {}
            ends |= {"blind": blind[key]} if key in blind else {}
            cards.append(_card(prefix + group + key, plain[key], ends, _FULL.get(key), result.protocol))
    return cards


def _groups(scores: Scores) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """Numbers that belong together: a name before theirs, the numbers, and those of a guesser who never looks."""
    guessed = scores.get("blind")
    blind = _numbers(guessed) if isinstance(guessed, Mapping) else {}
    yield "", _numbers(scores), {}
    for name, group in scores.items() if blind else ():
        if isinstance(group, Mapping) and name != "blind":
            yield f"{name} ", _numbers(group), blind


def _numbers(scores: Scores) -> dict[str, float]:
    """Single numbers, and means of what has a mean and a spread."""
    means = {key: value.get("mean") if isinstance(value, Mapping) else value for key, value in scores.items()}
    return {key: float(value) for key, value in means.items() if isinstance(value, (int, float))}


def _card(name: str, value: float, baselines: dict[str, float], full: float | None, protocol: Protocol) -> Headline:
    largest = max([abs(value), *map(abs, baselines.values()), 1e-12])
    note = f"{protocol.task}, {protocol.dataset}, {protocol.count:,} scored"
    return Headline(name, value, baselines, full or largest, digits=3, note=note, protocol=protocol)


def _judged_tasks(result: Result) -> list[TaskScore]:
    """The table of tasks of a result that GenEval's rules decided."""
    tasks, ends, counts = (result.scores.get(key) for key in ("tasks", "task_intervals", "task_images"))
    if not (isinstance(tasks, Mapping) and isinstance(ends, Mapping) and isinstance(counts, Mapping)):
        return []
    share, interval, number = flat(tasks), flat(ends), flat(counts)
    return [
        TaskScore(task, value, int(number[task]), interval[f"{task}.low"], interval[f"{task}.high"])
        for task, value in share.items()
    ]


def _bars(groups: Sequence[Sequence[str]], results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Scores of the first level, where several results were measured alike."""
    bars = dict[str, dict[str, float]]()
    for group in groups:
        if len(group) > 1:
            first = results[group[0]]
            scores = [key for key, value in first.scores.items() if isinstance(value, (int, float))]
            bars |= {
                f"{score} ({first.protocol.task})": {name: float(flat(results[name].scores)[score]) for name in group}
                for score in scores
                if score != "count"
            }
    return bars


def _charts(group: Sequence[str], results: Mapping[str, Result], alone: bool) -> list[Chart]:
    """Groups of scores whose names are all numbers are curves (``{"1": 0.5, "10": 0.75}``), one for each result."""
    charts = dict[str, dict[str, Curve]]()
    for name in group:
        for title, curve in _curves(results[name].scores):
            charts.setdefault(title if alone else f"{title} ({_named(group)})", {})[name] = curve
    return [Chart(title, curves, over="") for title, curves in charts.items()]


def _curves(scores: Scores, path: str = "") -> Iterator[tuple[str, Curve]]:
    for key, value in scores.items():
        if _is_curve(value):
            yield path + key, sorted((float(at), float(it)) for at, it in flat(value).items())  # type: ignore[arg-type]
        elif isinstance(value, Mapping):
            yield from _curves(value, f"{path}{key}.")


def _without_curves(scores: Scores) -> dict[str, Any]:
    kept = {key: value for key, value in scores.items() if not _is_curve(value)}
    return {key: _without_curves(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _is_curve(value: object) -> bool:
    return (
        isinstance(value, Mapping) and len(value) > 1 and all(str(key).replace(".", "", 1).isdigit() for key in value)
    )


def _unlike(groups: Sequence[Sequence[str]], results: Mapping[str, Result]) -> list[str]:
    """Why results of one task stand in different tables."""
    notes = list[str]()
    for at, group in enumerate(groups):
        for other in groups[at + 1 :]:
            one, two = results[group[0]].protocol, results[other[0]].protocol
            fields = ", ".join(one.differences(two))
            if one.task == two.task and fields:
                notes.append(f"{_named(group)} and {_named(other)} were measured differently ({fields}).")
    return notes
