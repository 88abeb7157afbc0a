"""Line plots and histograms as inline SVG, and the training curves they show.

Colours are CSS variables with a fallback, so a page may restyle them for dark mode. No script, no fonts of its own.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path

Curve = Sequence[tuple[float, float]]

_COLORS = ("#2b6f94", "#c05b2e", "#4c8a57", "#8a5a9e", "#b58a1b", "#5d6770")
_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 40
_POINTS = 400  # per curve; more cannot be seen at this width
_RULE = 'stroke="currentColor" opacity=".12"'
_SMALL = 'fill="currentColor" font-size="11.5" opacity=".75"'


def read_curves(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read the ``metrics.csv`` of Lightning's CSVLogger: one curve of (step, value) per metric.

    Blanks are skipped, ``epoch`` is not a metric. Where a step occurs twice (a resumed run) the later row counts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no ``step`` column, or a value that is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected training curves, found no file at {path}; pass the logger's metrics.csv")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got other bytes; pass the logger's metrics.csv") from error
    with io.StringIO(text, newline="") as stream:
        table = csv.DictReader(stream)
        names = list(table.fieldnames or [])
        if "step" not in names:
            raise ValueError(f"expected a step column in {path}, got {names}; pass the logger's metrics.csv")
        curves: dict[str, dict[int, float]] = {name: {} for name in names if name not in ("step", "epoch")}
        for row in table:
            for name, curve in curves.items():
                if row[name]:
                    curve[int(_parsed(row["step"], path, "step"))] = _parsed(row[name], path, name)
    return {name: sorted(curve.items()) for name, curve in curves.items() if curve}


def line_plot(curves: Mapping[str, Curve], x_label: str = "step", y_label: str = "", log: bool = False) -> str:
    """Draw curves over one pair of axes, with ticks, labels and a legend.

    Long curves keep the smallest and largest value of each stretch, so that spikes stay visible. A value that cannot be
    drawn (not finite, or not positive on a logarithmic axis) interrupts its line.

    Args:
        curves: (x, y) points by name, in order of x.
        x_label: under the x axis.
        y_label: beside the y axis.
        log: whether y is logarithmic.

    Returns:
        An ``<svg>`` element to place in HTML.

    Raises:
        ValueError: if no point can be drawn.
    """
    shown = {name: [point for point in curve if _drawable(point, log)] for name, curve in curves.items()}
    points = [point for curve in shown.values() for point in curve]
    if not points:
        need = "finite and positive" if log else "finite"
        raise ValueError(f"expected at least one {need} value to draw, got none in {list(curves)}; leave the plot out")
    across = Axis.around([x for x, _ in points], (_LEFT, _WIDTH - _RIGHT), log=False, tight=True)
    up = Axis.around([y for _, y in points], (_HEIGHT - _BOTTOM, _TOP), log)
    lines = "".join(_line(curve, across, up, log, at) for at, curve in enumerate(curves.values()))
    return _svg(_frame(across, up, x_label, y_label) + lines, ", ".join(curves), _HEIGHT) + _legend(list(curves))


def frequency_plot(counts: Sequence[int]) -> str:
    """Draw how often each code occurs, most frequent first, as an area; a dashed line is the uniform share.

    Args:
        counts: occurrences per code, in any order; not all zero.

    Returns:
        An ``<svg>`` element to place in HTML.

    Raises:
        ValueError: if there is no occurrence.
    """
    total = sum(counts)
    if total < 1:
        raise ValueError(f"expected counts of at least one code, got none in {len(counts)}; leave the plot out")
    ranked = sorted(counts, reverse=True)
    height, floor = 150, 150 - 34
    across = Axis.around([0, len(ranked)], (_LEFT, _WIDTH - _RIGHT), log=False, tight=True)
    up = Axis.around([0, ranked[0] / total], (floor, _TOP), log=False)
    stride = max(1, len(ranked) // _POINTS)
    steps = [(at, ranked[at] / total) for at in range(0, len(ranked), stride)] + [(len(ranked), 0.0)]
    corners = [(x, y) for (start, y), (end, _) in pairwise(steps) for x in (start, end)]
    outline = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in corners)
    level = up.place(1 / len(ranked))
    body = (
        f'<polygon class="area" fill="var(--c0, {_COLORS[0]})" '
        f'points="{across.place(0):.1f},{floor} {outline} {across.place(len(ranked)):.1f},{floor}"/>'
        f'<line class="uniform" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" '
        'stroke="currentColor" stroke-dasharray="4 4" opacity=".55"/>'
    )
    return _svg(_frame(across, up, "codes, most frequent first", "share") + body, "code frequencies", height)


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels; ``span`` is in values, ``pixels`` where its ends lie."""

    span: tuple[float, float]
    pixels: tuple[float, float]
    log: bool
    ticks: list[float]

    @classmethod
    def around(cls, values: Sequence[float], pixels: tuple[float, float], log: bool, tight: bool = False) -> "Axis":
        """An axis that holds ``values``; it ends on ticks unless ``tight``."""
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        ticks = _log_ticks(low, high) if log else _ticks(low, high)
        if tight:
            return cls((low, high), pixels, log, [tick for tick in ticks if low <= tick <= high])
        return cls((min(low, ticks[0]), max(high, ticks[-1])), pixels, log, ticks)

    def place(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (math.log10(v) if self.log else v for v in (*self.span, value))
        return self.pixels[0] + (value - low) / (high - low) * (self.pixels[1] - self.pixels[0])


def _ticks(low: float, high: float) -> list[float]:
    """About five round values that enclose the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [at * step for at in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose the range, with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 3:
        stride = math.ceil((last - first) / 6)
        return [10.0**power for power in range(first, last + stride, stride)]
    ticks = [factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5)] + [10.0**last]
    start = max(at for at, tick in enumerate(ticks) if tick <= low * 1.001)
    end = min(at for at, tick in enumerate(ticks) if tick >= high * 0.999)
    return ticks[start : end + 1]


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> str:
    left, right = across.pixels
    floor, top = up.pixels
    parts: list[str] = []
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {_RULE}/>')
        parts.append(
            f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end" {_SMALL}>{tick_text(tick)}</text>'
        )
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="middle" {_SMALL}>{tick_text(tick)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}" stroke="currentColor" opacity=".5"/>'
    )
    parts.append(
        f'<text class="label" x="{(left + right) / 2:.0f}" y="{floor + 32}" text-anchor="middle" {_SMALL}>'
        f"{escape(x_label)}</text>"
    )
    if y_label:
        middle = (floor + top) / 2
        parts.append(
            f'<text class="label" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle" {_SMALL}>'
            f"{escape(y_label)}</text>"
        )
    return "".join(parts)


def _line(curve: Curve, across: Axis, up: Axis, log: bool, at: int) -> str:
    """A path per unbroken run of points; a lone point is a dot."""
    color = f"var(--c{at % len(_COLORS)}, {_COLORS[at % len(_COLORS)]})"
    parts: list[str] = []
    for drawable, run in groupby(_thinned(curve), key=lambda point: _drawable(point, log)):
        places = [f"{across.place(x):.1f} {up.place(y):.1f}" for x, y in run] if drawable else []
        if len(places) == 1:
            x, y = places[0].split()
            parts.append(f'<circle class="curve" cx="{x}" cy="{y}" r="2.5" fill="{color}"/>')
        elif places:
            parts.append(
                f'<path class="curve" d="M{"L".join(places)}" fill="none" stroke="{color}" stroke-width="1.6" '
                'stroke-linejoin="round" stroke-linecap="round"/>'
            )
    return "".join(parts)


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """About `_POINTS` points: the lowest and highest of each stretch in order, the ends, and whatever is not finite."""
    if len(curve) <= _POINTS:
        return list(curve)
    stretch = math.ceil(2 * len(curve) / _POINTS)
    kept = {0, len(curve) - 1}
    for start in range(0, len(curve), stretch):
        places = range(start, min(start + stretch, len(curve)))
        finite = [at for at in places if math.isfinite(curve[at][1])]
        kept |= set(places) - set(finite)
        if finite:
            kept |= {min(finite, key=lambda at: curve[at][1]), max(finite, key=lambda at: curve[at][1])}
    return [curve[at] for at in sorted(kept)]


def _legend(names: list[str]) -> str:
    entries = "".join(
        f'<li><i style="background:var(--c{at % len(_COLORS)}, {_COLORS[at % len(_COLORS)]})"></i>{escape(name)}</li>'
        for at, name in enumerate(names)
    )
    return f'<ul class="legend">{entries}</ul>'


def _svg(body: str, title: str, height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _drawable(point: tuple[float, float], log: bool) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (point[1] > 0 or not log)


def tick_text(value: float) -> str:
    """A tick's label: 0.05, 20, 2.5k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _parsed(text: str, path: Path, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"expected numbers for {name} in {path}, got {text!r}; pass the logger's metrics.csv"
        ) from error
