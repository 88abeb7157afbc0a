"""The report of a run on scenes, from what its stages left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .plots import Curve, read_curves
from .protocol import Result, read_result
from .report import Answer, Chart, CodeUsage, Headline, Rebuilt, Report, Sample, TaskScore, write_report
from .suite import Evidence, spread


def write_scene_report(
    path: str | Path, title: str, scores: Path, logs: Mapping[str, Path], *, stages: Mapping[str, float] | None = None
) -> None:
    """Write one HTML file.

    Args:
        path: of the file.
        title: of the page.
        scores: folder with ``scores.json`` and the evidence of :func:`~smalti.eval.suite.score_scenes`.
        logs: folders of training runs by name; their ``logs/*/metrics.csv`` become curves.
        stages: seconds each stage took.
    """
    result = read_result(scores / "scores.json")
    report = replace(
        scene_report(title, result, Evidence.load(scores)),
        charts=[chart for name, folder in logs.items() for chart in _charts(name, folder)],
        stages=stages or {},
    )
    write_report(path, report)


def scene_report(title: str, result: Result, evidence: Evidence) -> Report:
    """What a model of scenes scored, and the pictures and answers that it was read off."""
    return Report(
        title,
        subtitle="{tokenizer} and a {lm} LM".format_map(result.model) + f" on {result.protocol.dataset}",
        headlines=scene_headlines(result),
        tasks=_tasks(result),
        reconstructions=[
            Rebuilt(Image.fromarray(evidence.originals[i]), Image.fromarray(evidence.rebuilt[i]))
            for i in spread(len(evidence.originals), 12)
        ],
        samples=[
            Sample(Image.fromarray(evidence.samples[i]), v["prompt"], v["correct"], v["reason"])
            for i in spread(len(evidence.samples), 36)
            for v in [evidence.verdicts[i]]
        ],
        answers=[_answer(evidence.answers[i], evidence) for i in spread(len(evidence.answers), 24)],
        captions=[_answer(row, evidence) for row in evidence.captions],
        codebooks=[CodeUsage(name, counts) for name, counts in evidence.usage.items()],
        notes=[_weakest(result)],
    )


def scene_headlines(result: Result) -> list[Headline]:
    """A card for each thing that a result on scenes measures, in the words of its own baselines."""
    scores: Mapping[str, Any] = result.scores
    base = scores["baselines"]["untrained"]
    makers = {"reconstruction": _rebuilt, "qa": _answered, "captions": _captioned, "scene_eval": _drawn}
    return [
        replace(make(scores[name], base), protocol=result.protocol) for name, make in makers.items() if name in scores
    ]


def _rebuilt(scores: Mapping[str, Any], untrained: Mapping[str, Any]) -> Headline:
    return Headline(
        "Reconstruction",
        scores["psnr"],
        {"untrained": untrained["reconstruction"]["psnr"]},
        full=40.0,
        unit=" dB",
        digits=1,
        note=f"PSNR of {int(scores['count'])} new scenes",
    )


def _answered(scores: Mapping[str, Any], untrained: Mapping[str, Any]) -> Headline:
    return Headline(
        "Questions",
        scores["accuracy"],
        {"blind": scores["blind"], "untrained": untrained["qa"]["accuracy"]} | _combinations(scores),
        note=f"{scores['count']} questions about new scenes, answered word for word",
    )


def _captioned(scores: Mapping[str, Any], _untrained: Mapping[str, Any]) -> Headline:
    return Headline(
        "Captions",
        scores["true"],
        {"other pictures": scores["chance"]} | _combinations(scores),
        note=f"of {scores['count']} captions hold for their picture and leave nothing out",
    )


def _drawn(scores: Mapping[str, Any], untrained: Mapping[str, Any]) -> Headline:
    return Headline(
        "SceneEval (GenEval rules)",
        scores["overall"],
        {name.replace("_", "-"): scores[name] for name in ("strict", "chance", "ceiling", "oracle", "near_miss")}
        | {"untrained": untrained["scene_eval"]["overall"]}
        | _combinations(scores),
        note="{images} pictures; 95 % interval {low:.3f} to {high:.3f}".format_map({**scores, **scores["interval"]}),
    )


def _combinations(scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name} combinations": scores[name] for name in ("seen", "unseen") if name in scores}


def _tasks(result: Result) -> list[TaskScore]:
    scene: Mapping[str, Any] = result.scores["scene_eval"]  # type: ignore[assignment]
    counts: dict[str, int] = scene["task_images"]
    seen, unseen, ends = scene["seen_tasks"], scene["unseen_tasks"], scene["task_intervals"]
    return [
        TaskScore(name, score, counts[name], **ends[name], seen=seen.get(name), unseen=unseen.get(name))
        for name, score in scene["tasks"].items()
    ]


def _weakest(result: Result) -> str:
    scene: Mapping[str, Any] = result.scores["scene_eval"]  # type: ignore[assignment]
    name = min(scene["tasks"], key=lambda task: scene["tasks"][task])
    return (
        f"Weakest task: {name} at {scene['tasks'][name]:.3f}; the tokenizer alone would allow "
        f"{scene['ceiling_tasks'][name]:.3f}, shuffled prompts give {scene['chance_tasks'][name]:.3f}."
    )


def _answer(row: Mapping[str, Any], evidence: Evidence) -> Answer:
    picture = Image.fromarray(evidence.originals[row["picture"]])
    right = row.get("right", row["expected"] == row["given"])
    return Answer(row["expected"], row["given"], row.get("question", ""), picture, right)


def _charts(name: str, folder: Path) -> list[Chart]:
    curves: dict[str, Curve] = {}
    for file in sorted(folder.glob("logs/*/metrics.csv"), key=lambda file: int(file.parent.name.rpartition("_")[2])):
        for metric, points in read_curves(file).items():
            curves[metric] = list({**dict(curves.get(metric, [])), **dict(points)}.items())
    losses = {key: value for key, value in curves.items() if key.startswith("train/")}
    measured = {key: value for key, value in curves.items() if key.startswith("val/")}
    codes = {key: value for key, value in curves.items() if key.startswith("perplexity/")}
    charts = [(f"{name}: losses", losses), (f"{name}: validation", measured), (f"{name}: code perplexity", codes)]
    return [Chart(title, group) for title, group in charts if group]
