"""The report of a run on scenes, from what its stages left behind."""

from __future__ import annotations

from collections.abc import Mapping
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
    result, evidence = read_result(scores / "scores.json"), Evidence.load(scores)
    write_report(
        path,
        Report(
            title,
            subtitle="{tokenizer} and a {lm} LM".format_map(result.model) + f" on {result.protocol.dataset}",
            headlines=_headlines(result),
            protocols={"all scores": result.protocol},
            tasks=_tasks(result),
            reconstructions=[
                Rebuilt(Image.fromarray(evidence.originals[i]), Image.fromarray(evidence.rebuilt[i]))
                for i in spread(len(evidence.originals), 12)
            ],
            samples=[
                Sample(Image.fromarray(evidence.samples[i]), v["prompt"], v["correct"])
                for i in spread(len(evidence.samples), 36)
                for v in [evidence.verdicts[i]]
            ],
            answers=[_answer(evidence.answers[i], evidence) for i in spread(len(evidence.answers), 24)],
            captions=[_answer(row, evidence) for row in evidence.captions],
            charts=[chart for name, folder in logs.items() for chart in _charts(name, folder)],
            codebooks=[CodeUsage(name, counts) for name, counts in evidence.usage.items()],
            stages=stages or {},
            notes=[_weakest(result)],
        ),
    )


def _headlines(result: Result) -> list[Headline]:
    scores: Mapping[str, Any] = result.scores
    base, scene, qa = scores["baselines"]["untrained"], scores["scene_eval"], scores["qa"]
    captions = scores["captions"]
    return [
        Headline(
            "Reconstruction",
            scores["reconstruction"]["psnr"],
            {"untrained": base["reconstruction"]["psnr"]},
            full=40.0,
            unit=" dB",
            digits=1,
            note=f"PSNR of {int(scores['reconstruction']['count'])} new scenes",
        ),
        Headline(
            "Questions",
            qa["accuracy"],
            {"blind": qa["blind"], "untrained": base["qa"]["accuracy"]} | _combinations(qa),
            note=f"{qa['count']} questions about new scenes, answered word for word",
        ),
        Headline(
            "Captions",
            captions["true"],
            {"other pictures": captions["chance"]} | _combinations(captions),
            note=f"of {captions['count']} captions hold for their picture and leave nothing out",
        ),
        Headline(
            "SceneEval (GenEval rules)",
            scene["overall"],
            {name: scene[name] for name in ("strict", "chance", "ceiling", "oracle")}
            | {"untrained": base["scene_eval"]["overall"]}
            | _combinations(scene),
            note="{images} pictures; 95 % interval {low:.3f} to {high:.3f}".format_map({**scene, **scene["interval"]}),
        ),
    ]


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
