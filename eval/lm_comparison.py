"""Tokenizers beside each other under one language model: a table from the score files, and what each model draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..generation.pipeline import TextToImagePipeline
from ..generation.sampler import plan_of
from .protocol import Protocol, Result, read_result, require_alike, write_result
from .report import CodeUsage, Report, write_report
from .sheets import grid, save_png
from .suite import Evidence, spread
from .tables import Table, table_of, write_markdown

#: Titles of the columns after the name, and what their cells are made from.
COLUMNS = (
    ("tokens an image", "{tokens:.0f} ({positions:.0f}x{depth:.0f})"),
    ("LM steps", "{steps:.0f}"),
    ("bits", "{bits:.0f}"),
    ("PSNR dB", "{psnr:.1f}"),
    ("ceiling", "{ceiling:.3f}"),
    ("questions (blind)", "{questions:.3f} ({blind:.3f})"),
    ("captions (chance)", "{captions:.3f} ({captions_chance:.3f})"),
    ("SceneEval (strict, chance)", "{scene_eval:.3f} ({strict:.3f}, {chance:.3f})"),
    ("M parameters (layers)", "{parameters:.2M} ({layer_parameters:.2M})"),
    ("s/step", "{step_seconds:.3f}"),
    ("tokenizer trained", "{tokenizer_seconds:time}"),
    ("LM trained", "{lm_seconds:time}"),
)

#: What the numbers of a row are called in a score file.
_SCORES = {
    "psnr": ("reconstruction", "psnr"),
    "ceiling": ("scene_eval", "ceiling"),
    "questions": ("qa", "accuracy"),
    "blind": ("qa", "blind"),
    "captions": ("captions", "true"),
    "captions_chance": ("captions", "chance"),
    "scene_eval": ("scene_eval", "overall"),
    "strict": ("scene_eval", "strict"),
    "chance": ("scene_eval", "chance"),
}


@dataclass(frozen=True)
class Scored:
    """One tokenizer and the language model on its codes."""

    name: str
    result: Result  #: its score file
    numbers: Mapping[str, float]  #: of the codes, the model and the scores, by name
    evidence: Evidence  #: what the scores were read off


def read_scored(name: str, scores: str | Path, model: str | Path) -> Scored:
    """What is known about a model that was scored.

    Args:
        name: of the row.
        scores: folder with ``scores.json`` and the evidence of :func:`~smalti.eval.suite.score_scenes`.
        model: folder of the model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no scores of scenes, or a damaged model.
    """
    path, pipeline = Path(scores) / "scores.json", TextToImagePipeline.from_pretrained(model)
    result, lm, spec = read_result(path), pipeline.lm, pipeline.tokenizer.spec
    backbone: Any = lm.backbone
    words = backbone.get_input_embeddings().weight.numel()
    layers = sum(part.numel() for part in backbone.base_model.parameters()) - words
    numbers = {
        "positions": spec.positions,
        "depth": spec.depth,
        "tokens": spec.positions * spec.depth,
        "steps": lm.layout.steps,
        "passes": len(plan_of(lm).sizes),
        "bits": spec.bits,
        "parameters": sum(part.numel() for part in lm.parameters()),
        "layer_parameters": layers,
        **{number: _score(result, keys, path) for number, keys in _SCORES.items()},
    }
    return Scored(name, result, numbers, Evidence.load(scores))


def write_lm_comparison(
    folder: Path,
    title: str,
    rows: Sequence[Scored],
    timed: Mapping[str, Mapping[str, float]] | None = None,
    how: Mapping[str, Any] | None = None,
    stages: Mapping[str, float] | None = None,
) -> str:
    """Write ``lm.json``, ``lm.html``, ``lm.png`` and ``lm.md``.

    Args:
        folder: of the files.
        title: of the page.
        rows: one for each tokenizer, scored alike.
        timed: further numbers of the rows, by name: ``step_seconds``, ``tokenizer_seconds``, ``lm_seconds``.
        how: what else the protocol says: how the models were trained and timed.
        stages: seconds of every stage of the run.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: scores of different protocols, or one that is not finite; the sentence names the field.
    """
    named = {**(how or {}), "tokenizers": [row.name for row in rows]}
    protocol = shared_protocol(rows, "tokenizers under one language model", named)
    numbers = {row.name: {**row.numbers, **(timed or {}).get(row.name, {})} for row in rows}
    models = {
        row.name: "{tokenizer} {tokenizer_fingerprint}, LM {lm_hash}".format_map(row.result.model) for row in rows
    }
    write_result(folder / "lm.json", numbers, protocol, models)
    table, sheet = table_of(numbers, COLUMNS), drawn_sheet(rows)
    save_png(sheet, folder / "lm.png")
    page = Report(
        title,
        f"{len(rows)} tokenizers, the same language model on the codes of each, on {protocol.dataset}",
        protocols={"all numbers": protocol},
        tables={"Tokenizers": table, "SceneEval by task": _tasks(rows), "Questions by kind": _kinds(rows)},
        codebooks=[
            CodeUsage(f"{row.name}: {book}", counts) for row in rows for book, counts in row.evidence.usage.items()
        ],
        sheets={"What each model draws for the same prompts": sheet},
        stages=stages or {},
        notes=[_NOTE],
    )
    write_report(folder / "lm.html", page)
    return write_markdown(folder / "lm.md", table)


_NOTE = (
    "The ceiling is SceneEval of pictures that show their prompt, after encoding and decoding: no model on these codes "
    "is expected to reach more. Blind answers come from habits of the training questions, chance from shuffled "
    "pictures. The layers are the same for all; the other parameters are embeddings of words and codes and the head "
    "that writes codes, and their number depends on the codebooks."
)


def _score(result: Result, keys: Sequence[str], path: Path) -> float:
    value: Any = result.scores
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise ValueError(f"{path} must hold {'.'.join(keys)}, got a score file without; score the model again")
    return float(value)


def shared_protocol(rows: Sequence[Scored], task: str, how: Mapping[str, Any]) -> Protocol:
    """How all of them were scored.

    Args:
        rows: at least one.
        task: what they are compared in.
        how: what else the protocol says.

    Raises:
        ValueError: scores of different protocols; the sentence names two rows and the field.
    """
    first = rows[0]
    for row in rows[1:]:
        try:
            require_alike(first.result.protocol, row.result.protocol)
        except ValueError as error:
            raise ValueError(f"scores of {first.name} and {row.name}: {error}") from error
    shared = first.result.protocol
    return replace(shared, task=task, extra={**shared.extra, **how, "scores": shared.task})


def _tasks(rows: Sequence[Scored]) -> Table:
    """SceneEval by task; the interval is that of the overall score."""
    scored: list[tuple[str, Any]] = [(row.name, row.result.scores["scene_eval"]) for row in rows]
    tasks = list(scored[0][1]["tasks"])
    lines = [
        [
            name,
            *(f"{found['tasks'][task]:.3f}" for task in tasks),
            f"{found['overall']:.3f}",
            "{low:.3f} to {high:.3f}".format_map(found["interval"]),
        ]
        for name, found in scored
    ]
    return Table(["tokenizer", *tasks, "overall", "interval"], lines, frozenset(range(1, len(tasks) + 3)))


def _kinds(rows: Sequence[Scored]) -> Table:
    scored: list[tuple[str, Any]] = [(row.name, row.result.scores["qa"]) for row in rows]
    kinds = list(scored[0][1]["kinds"])
    lines = [[name, *(f"{found['kinds'][kind]:.3f}" for kind in kinds)] for name, found in scored]
    lines.append(["blind", *(f"{scored[0][1]['blind_kinds'][kind]:.3f}" for kind in kinds)])
    return Table(["tokenizer", *kinds], lines, frozenset(range(1, len(kinds) + 1)))


def drawn_sheet(rows: Sequence[Scored], shown: int = 8) -> Image.Image:
    """A row for each: its name, and what it draws for prompts spread over all."""
    per_prompt = int((rows[0].result.protocol.sampler or {}).get("per_prompt", 1))
    chosen = [at * per_prompt for at in spread(len(rows[0].evidence.verdicts) // per_prompt, shown)]
    scale = max(1, 128 // rows[0].evidence.samples.shape[1])
    pictures, labels, marks = list[Image.Image](), list[str](), list[bool | None]()
    for row in rows:
        drawn = [Image.fromarray(row.evidence.samples[at]) for at in chosen]
        size = (scale * drawn[0].width, scale * drawn[0].height)
        pictures += [_name(row.name, size), *(it.resize(size, Image.Resampling.NEAREST) for it in drawn)]
        labels += ["", *(row.evidence.verdicts[at]["prompt"] for at in chosen)]
        marks += [None, *(row.evidence.verdicts[at]["correct"] for at in chosen)]
    return grid(pictures, 1 + len(chosen), labels=labels, marks=marks)


def _name(word: str, size: tuple[int, int]) -> Image.Image:
    panel = Image.new("RGB", size, "#ffffff")
    middle = (size[0] // 2, size[1] // 2)
    ImageDraw.Draw(panel).text(middle, word, fill="#23262b", font=ImageFont.load_default(16), anchor="mm")
    return panel
