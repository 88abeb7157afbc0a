"""Curves of healthy runs, kept as a small file, and what is different about another run.

A reference has means over windows of steps, and how far runs of different seeds lie apart. Knows nothing about why a
term leaves its band: `doctor` names known troubles.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Self

from ..data.files import atomic_file
from .doctor import LOST
from .findings import Finding, last_third
from .plots import Curve
from .run_logs import RunLog

#: Where the references that come with the package are, one ``<recipe>.json`` each.
SHIPPED = Path(__file__).resolve().parent.parent / "pretrained" / "curves"

WINDOWS = 100  #: of a long curve
SPREADS = 3.0  #: standard deviations over seeds that a healthy run may lie off
SHARE = 0.3  #: of the mean that it may lie off in any case
DECIBEL = 10 * math.log10(1 + SHARE)  #: the same of what is measured in decibels: 1.1
LASTING = 0.9  #: share of the last third of a run's windows from which a term counts as outside for good

_FEW = 20  # points up to which every one is a window
_EACH = 5  # points of a window, where there are enough
_DIGITS = 6  # significant, in the file

#: Terms of which one side is good: 1 for more, -1 for less.
_BETTER = {"val/psnr": 1, "val/l1": -1, "train/l1": -1, "train/l2": -1, "train/perceptual": -1}


@dataclass(frozen=True)
class Band:
    """What is healthy at one step."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ReferenceCurve:
    """One term over the windows of a run."""

    steps: Sequence[float]  #: mean step of each window, rising
    means: Sequence[float]  #: over the runs
    spreads: Sequence[float]  #: standard deviation over the runs; 0 for one run

    def band(self, name: str, step: float) -> Band:
        """Mean and band at a step, between windows on a straight line; the ends hold on outside.

        The band is the mean and either side the larger of three spreads and 30 %: of the mean; of a term that has both
        signs of the median of all means without signs; of decibels of the error that they stand for. Skipped steps may
        be one in a hundred.

        Args:
            name: of the term.
            step: optimizer step.
        """
        mean, spread = (_between(self.steps, values, step) for values in (self.means, self.spreads))
        signed = min(self.means) < 0 < max(self.means)
        size = median(map(abs, self.means)) if signed else abs(mean)
        relative = DECIBEL if name.endswith("psnr") else SHARE * size
        reach = max(SPREADS * spread, relative, LOST * step if name == "guard/skipped" else 0.0)
        return Band(mean, mean - reach, mean + reach)


@dataclass(frozen=True)
class ReferenceCurves:
    """Healthy runs of one recipe with different seeds."""

    recipe: str  #: its name
    command: str  #: that repeats the runs
    date: str  #: of the record, YYYY-MM-DD
    seeds: Sequence[int]  #: of the runs, where they are written down
    runs: int  #: how many
    settings: Mapping[str, Any]  #: arguments of the model that all runs share, by dotted name
    curves: Mapping[str, ReferenceCurve]  #: by the name they are logged under

    @classmethod
    def record(cls, runs: Sequence[RunLog], recipe: str, command: str, date: str) -> Self:
        """Put runs together.

        Terms that a run lacks are left out.

        Args:
            runs: at least one; several of them give spreads.
            recipe: see the class, as for the others.
            command: likewise.
            date: likewise.

        Raises:
            ValueError: no run, no term that all have, or a value that is not finite.
        """
        names = sorted(set.intersection(*(set(run.curves) for run in runs))) if runs else []
        if not names:
            raise ValueError(f"a reference needs runs with common curves, got {len(runs)} runs without; name others")
        for run in runs:
            broken = [name for name in names if not all(math.isfinite(value) for _, value in run.curves[name])]
            if broken:
                raise ValueError(f"a reference must be finite, got {broken[0]} of {run.folder} with other values")
        shared = {name: value for name, value in runs[0].settings.items() if _shared(name, value, runs)}
        curves = {name: _averaged([run.curves[name] for run in runs]) for name in names}
        seeds = [run.seed for run in runs if run.seed is not None]
        return cls(recipe, command, date, seeds, len(runs), shared, curves)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"reference curves were expected at {path}, which does not exist; check the path")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            curves = {name: ReferenceCurve(**curve) for name, curve in content.pop("curves").items()}
            return cls(curves=curves, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} holds no reference curves ({error}); record them with smalti doctor") from error

    def save(self, path: str | Path) -> None:
        """Write one JSON file, whole or not at all."""
        with atomic_file(path) as file:
            file.write_text(json.dumps(_rounded(asdict(self)), separators=(",", ":")) + "\n", encoding="utf-8")

    def suits(self, run: RunLog) -> bool:
        """Whether a run has at least half of the curves."""
        return 2 * len(set(self.curves) & set(run.curves)) >= len(self.curves)

    def fit(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """How many settings of a run are those of the reference, and of how many that either has."""
        names = set(self.settings) | set(settings)
        return sum(_same(self.settings, settings, name) for name in names), len(names)


@dataclass(frozen=True)
class Outside:
    """Where a run is at its end, against the reference."""

    name: str
    step: float
    value: float
    band: Band


def choose_reference(references: Sequence[ReferenceCurves], settings: Mapping[str, Any]) -> ReferenceCurves:
    """The reference whose settings are most like those of a run; the first of equals.

    Args:
        references: at least one.
        settings: of the run, by dotted name.

    Raises:
        ValueError: no reference.
    """
    if not references:
        raise ValueError(f"no reference curves are shipped in {SHIPPED}; pass a file or the folder of a healthy run")
    shares = [same / max(1, of) for same, of in (each.fit(settings) for each in references)]
    return references[shares.index(max(shares))]


def shipped_references() -> list[ReferenceCurves]:
    """The references that come with the package."""
    return [ReferenceCurves.load(file) for file in sorted(SHIPPED.glob("*.json"))]


def compare_curves(run: RunLog, reference: ReferenceCurves) -> list[Finding]:
    """What is different about a run, as far as it goes: terms outside the band for the last third, and settings.

    Steps are compared at equal numbers. A term that is better than the band is a remark.

    Args:
        run: to be judged.
        reference: healthy runs.
    """
    found = [_finding(it) for it in outside(run, reference)]
    missing = [name for name in reference.curves if name not in run.curves and name.startswith("train/")]
    if missing:
        what = f"the run does not log {', '.join(missing)}, which the reference has"
        found.append(
            Finding("remark", "curves", what, "another recipe has other terms; compare with its own reference")
        )
    names = sorted(set(reference.settings) | set(run.settings)) if run.settings else []
    unlike = [name for name in names if not _same(reference.settings, run.settings, name)]
    if unlike:
        told = [f"{name} {run.settings.get(name)} (reference {reference.settings.get(name)})" for name in unlike[:5]]
        more = f" and {len(unlike) - 5} more" if len(unlike) > 5 else ""
        found.append(Finding("remark", "settings", f"differ in {', '.join(told)}{more}", ""))
    return found


def outside(run: RunLog, reference: ReferenceCurves) -> list[Outside]:
    """Terms that are outside the band for the last third of what the run has, where they are at the end."""
    found = list[Outside]()
    for name, curve in reference.curves.items():
        points = [
            point for point in windowed(run.curves.get(name, ())) if curve.steps[0] <= point[0] <= curve.steps[-1]
        ]
        last = last_third(points)
        sides = [_side(value, curve.band(name, step)) for step, value in last]
        if points and max(sides.count(1), sides.count(-1)) >= LASTING * len(sides):
            step, value = last[-1]
            found.append(Outside(name, step, value, curve.band(name, step)))
    return found


def windowed(curve: Curve) -> list[tuple[float, float]]:
    """Mean step and mean value of windows of equal numbers of points; values that are not finite are left out."""
    points = [point for point in curve if math.isfinite(point[1])]
    count = len(points) if len(points) <= _FEW else min(WINDOWS, max(_FEW, len(points) // _EACH))
    ends = [round(at * len(points) / max(1, count)) for at in range(count + 1)]
    parts = [points[start:stop] for start, stop in pairwise(ends)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def _averaged(curves: Sequence[Curve]) -> ReferenceCurve:
    """Means over runs at the windows of the shortest one."""
    runs = [windowed(curve) for curve in curves]
    steps = [step for step, _ in min(runs, key=lambda points: points[-1][0])]
    lines = [([at for at, _ in points], [value for _, value in points]) for points in runs]
    rows = [[_between(places, values, step) for places, values in lines] for step in steps]
    spreads = [stdev(row) if len(row) > 1 else 0.0 for row in rows]
    return ReferenceCurve(steps, [fmean(row) for row in rows], _pooled(spreads))


def _pooled(spreads: Sequence[float]) -> list[float]:
    """Root mean square over a window and its two neighbours either side: a spread of few runs is itself uncertain."""
    parts = [spreads[max(0, at - 2) : at + 3] for at in range(len(spreads))]
    return [math.sqrt(fmean(value * value for value in part)) for part in parts]


def _between(steps: Sequence[float], values: Sequence[float], step: float) -> float:
    """The value at a step on straight lines between points; the ends hold on outside."""
    at = bisect_right(steps, step)
    if at == 0 or at == len(steps):
        return values[min(at, len(steps) - 1)]
    share = (step - steps[at - 1]) / (steps[at] - steps[at - 1])
    return values[at - 1] + share * (values[at] - values[at - 1])


def _side(value: float, band: Band) -> int:
    return (value > band.high) - (value < band.low)


def _finding(it: Outside) -> Finding:
    side = _side(it.value, it.band)
    what = (
        f"{'above' if side > 0 else 'below'} the reference for the last third: {it.value:.4g} at step {it.step:.0f}, "
        f"where {it.band.low:.4g} to {it.band.high:.4g} is healthy"
    )
    if _BETTER.get(it.name) == side:
        return Finding("remark", it.name, what, "")
    return Finding("problem", it.name, what, "look at both curves (--out), and at the settings that differ")


def _shared(name: str, value: Any, runs: Sequence[RunLog]) -> bool:
    return all(name in run.settings and run.settings[name] == value for run in runs)


def _same(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> bool:
    return name in first and name in second and first[name] == second[name]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
