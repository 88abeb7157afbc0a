"""Ways of training beside each other, each with several seeds: means and spreads from the score files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from .lm_comparison import Scored, drawn_sheet, shared_protocol
from .protocol import Scores, write_result
from .report import Report, write_report
from .sheets import save_png
from .tables import Table, write_markdown

#: Titles of the columns, the number each shows, and how it is written.
COLUMNS = (
    ("questions", "questions", "{:.3f}"),
    ("PSNR dB", "psnr", "{:.2f}"),
    ("captions", "captions", "{:.3f}"),
    ("SceneEval", "scene_eval", "{:.3f}"),
    ("strict", "strict", "{:.3f}"),
    ("ceiling", "ceiling", "{:.3f}"),
    ("forwards", "passes", "{:.0f}"),
    ("images/s", "images_per_second", "{:.1f}"),
    ("images/s one by one", "images_per_second_alone", "{:.1f}"),
)


def summary(values: Sequence[float]) -> dict[str, float | Scores]:
    """Mean and sample standard deviation (0 for one value) of what several runs reached, beside each of them."""
    ends: dict[str, float | Scores] = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0}
    return {**ends, "runs": {str(number): value for number, value in enumerate(values)}}


def write_variants(
    folder: Path, title: str, runs: Mapping[str, Sequence[Scored]], how: Mapping[str, object] | None = None
) -> str:
    """Write ``variants.json``, ``variants.html``, ``variants.png`` and ``variants.md``.

    Args:
        folder: of the files.
        title: of the page.
        runs: by variant, one for each seed, all scored alike; variants may differ in how they draw.
        how: what else the protocol says.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: scores of different protocols, or one that is not finite; the sentence names the field.
    """
    every, samplers = _however_drawn(runs)
    told = {**(how or {}), "variants": list(runs), **samplers}
    protocol = shared_protocol(every, "ways of training a language model", told)
    names = [number for _, number, _ in COLUMNS]
    found: dict[str, Scores] = {
        variant: {number: summary([run.numbers[number] for run in scored]) for number in names}
        for variant, scored in runs.items()
    }
    models = {
        run.name: "{tokenizer} {tokenizer_fingerprint}, LM {lm_hash}".format_map(run.result.model) for run in every
    }
    write_result(folder / "variants.json", found, protocol, models)
    sheet = drawn_sheet([scored[0] for scored in runs.values()])
    save_png(sheet, folder / "variants.png")
    table = _table(runs)
    page = Report(
        title,
        f"{len(runs)} variants, {len(every)} runs, on {protocol.dataset}",
        protocols={"all numbers": protocol},
        tables={"Mean and standard deviation over seeds": table, "Every run": _runs(every)},
        sheets={"What the first run of each draws for the same prompts": sheet},
    )
    write_report(folder / "variants.html", page)
    return write_markdown(folder / "variants.md", table)


def _however_drawn(runs: Mapping[str, Sequence[Scored]]) -> tuple[list[Scored], dict[str, object]]:
    """All runs; where variants differ in how they draw, with protocols that leave that to be said once for each."""
    every = [run for scored in runs.values() for run in scored]
    for scored in runs.values():
        shared_protocol(scored, "one variant", {})
    samplers = {variant: scored[0].result.protocol.sampler for variant, scored in runs.items()}
    if len({str(sampler) for sampler in samplers.values()}) == 1:
        return every, {}
    silent = list[Scored]()
    for run in every:
        protocol = run.result.protocol
        counted = {name: value for name, value in (protocol.sampler or {}).items() if name == "per_prompt"}
        silent.append(replace(run, result=replace(run.result, protocol=replace(protocol, sampler=counted))))
    return silent, {"samplers": samplers}


def _table(runs: Mapping[str, Sequence[Scored]]) -> Table:
    lines = []
    for variant, scored in runs.items():
        cells = [variant, str(len(scored))]
        for _, number, shape in COLUMNS:
            values = [run.numbers[number] for run in scored]
            spread = f" ± {shape.format(stdev(values))}" if len(values) > 1 else ""
            cells.append(f"{shape.format(fmean(values))}{spread}")
        lines.append(cells)
    return Table(
        ["variant", "seeds", *(title for title, _, _ in COLUMNS)], lines, frozenset(range(1, 2 + len(COLUMNS)))
    )


def _runs(runs: Sequence[Scored]) -> Table:
    lines = [[run.name, *(shape.format(run.numbers[number]) for _, number, shape in COLUMNS)] for run in runs]
    return Table(["run", *(title for title, _, _ in COLUMNS)], lines, frozenset(range(1, 1 + len(COLUMNS))))
