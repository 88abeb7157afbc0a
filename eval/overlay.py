"""A run's curves over those of healthy runs: a page of plots, or one picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .findings import Finding
from .plots import Axis, Curve, tick_text
from .reference_curves import ReferenceCurve, ReferenceCurves, windowed
from .report import Chart, Report, write_report
from .run_logs import RunLog
from .sheets import grid, save_png
from .tables import Table

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 26
_PAPER, _INK, _RULE, _BAND = "#ffffff", "#23262b", "#e4e1dc", "#dbe7ee"
_REFERENCE, _RUN = "#2b6f94", "#c05b2e"
_WIDE = 30.0  # largest over smallest value from which an axis is logarithmic


def write_overlay(path: Path, run: RunLog, reference: ReferenceCurves, findings: Sequence[Finding]) -> None:
    """Write one plot for every term that run and reference share.

    Args:
        path: ends in ``.html`` (a page that needs nothing else, with the findings) or ``.png``.
        run: to be judged.
        reference: healthy runs.
        findings: of :func:`~smalti.eval.reference_curves.compare_curves`.

    Raises:
        ValueError: another ending, or no common term.
    """
    if path.suffix.lower() not in (".html", ".png"):
        raise ValueError(f"an overlay is an .html or a .png, got {path.name}; rename it")
    names = [name for name in reference.curves if windowed(run.curves.get(name, ()))]
    if not names:
        raise ValueError(f"{run.folder} has no curve of the reference {reference.recipe}; compare with another one")
    if path.suffix.lower() == ".png":
        wrong = {finding.where for finding in findings if finding.kind == "problem"}
        panels = [_panel(name, run.curves[name], reference.curves[name], name in wrong) for name in names]
        save_png(grid(panels, min(3, len(panels))), path)
        return
    table = Table(["", "term", "what"], [[it.kind, it.where, it.what] for it in findings])
    report = Report(
        f"{run.folder.name} over {reference.recipe}",
        f"reference: {reference.runs} runs of {reference.command} ({reference.date}); the band is what is healthy",
        tables={"Findings": table} if findings else {},
        charts=[_chart(name, run.curves[name], reference.curves[name]) for name in names],
        notes=() if findings else ["Every term is within the reference."],
    )
    write_report(path, report)


def _chart(name: str, curve: Curve, healthy: ReferenceCurve) -> Chart:
    lines = _lines(name, curve, healthy)
    return Chart(name, lines, log=_spans(lines))


def _lines(name: str, curve: Curve, healthy: ReferenceCurve) -> dict[str, Curve]:
    bands = [(step, healthy.band(name, step)) for step in healthy.steps]
    return {
        "reference": [(step, band.mean) for step, band in bands],
        "this run": windowed(curve),
        "least": [(step, band.low) for step, band in bands],
        "most": [(step, band.high) for step, band in bands],
    }


def _spans(lines: Mapping[str, Curve]) -> bool:
    """Whether values are positive and of several magnitudes."""
    values = [value for line in lines.values() for _, value in line]
    return min(values) > 0 and max(values) > _WIDE * min(values)


def _panel(name: str, curve: Curve, healthy: ReferenceCurve, wrong: bool) -> Image.Image:
    """One plot: the band, the reference and the run, whose name is red where it is outside."""
    lines = _lines(name, curve, healthy)
    log = _spans(lines)
    xs, ys = ([point[side] for line in lines.values() for point in line] for side in (0, 1))
    across = Axis.around(xs, (_LEFT, _WIDTH - _RIGHT), log=False, tight=True)
    up = Axis.around(ys, (_HEIGHT - _BOTTOM, _TOP), log)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    places = {key: [(across.place(x), up.place(y)) for x, y in line] for key, line in lines.items()}
    if len(places["most"]) > 1:
        draw.polygon(places["most"] + places["least"][::-1], fill=_BAND)
    for tick in up.ticks:
        y = up.place(tick)
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_RULE)
        draw.text((_LEFT - 6, y), tick_text(tick), fill=_INK, font=font, anchor="rm")
    for tick in across.ticks:
        draw.text((across.place(tick), _HEIGHT - _BOTTOM + 12), tick_text(tick), fill=_INK, font=font, anchor="mm")
    for key, color in (("reference", _REFERENCE), ("this run", _RUN)):
        _draw_line(draw, places[key], color)
    draw.text((_LEFT, 13), name, fill=_RUN if wrong else _INK, font=ImageFont.load_default(13), anchor="lm")
    draw.text((_WIDTH - _RIGHT, 13), "run", fill=_RUN, font=font, anchor="rm")
    draw.text((_WIDTH - _RIGHT - 28, 13), "reference", fill=_REFERENCE, font=font, anchor="rm")
    return picture


def _draw_line(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], color: str) -> None:
    if len(places) > 1:
        draw.line(list(places), fill=color, width=2, joint="curve")
    for x, y in places if len(places) == 1 else ():
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
