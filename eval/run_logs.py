"""What a training run left behind: its curves, and the settings that it ran with. Reads Lightning's CSV logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .plots import Curve, read_curves
from .protocol import flat

_ATTEMPT = re.compile(r"version_\d+")

#: Ends of settings that say where a run reads and writes, and not what it does.
_PLACES = ("save_to", "checkpoint", "folder", "path", "default_root_dir")


@dataclass(frozen=True)
class RunLog:
    """One run, all of its attempts together."""

    folder: Path  #: of the run
    curves: Mapping[str, Curve]  #: (step, value) points by the name they are logged under
    settings: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  #: arguments of the model, dotted; see `find_runs`
    seed: int | None = None  #: of the model, where it is written down


def find_runs(folder: Path) -> list[RunLog]:
    """Every run with a log at or below a folder.

    The attempts of an interrupted run (``logs/version_<n>``) count as one: where a step occurs twice, the later one
    counts. Settings are those of the last attempt, without seeds and places; none where it has no ``config.yaml``.

    Args:
        folder: of a run, of its logs, or of several runs.

    Raises:
        ValueError: a damaged log or configuration.
    """
    attempts: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob("metrics.csv"), key=_order):
        home = file.parent.parent if _ATTEMPT.fullmatch(file.parent.name) and file.parent != folder else file.parent
        attempts.setdefault(home, []).append(file)
    named = {home.parent if home.name == "logs" and home != folder else home: files for home, files in attempts.items()}
    return [_run(home, files) for home, files in named.items()]


def _run(home: Path, files: list[Path]) -> RunLog:
    merged: dict[str, dict[float, float]] = {}
    for file in files:
        for name, curve in read_curves(file).items():
            merged.setdefault(name, {}).update(curve)
    settings, seed = run_settings(files[-1].parent / "config.yaml")
    return RunLog(home, {name: sorted(points.items()) for name, points in merged.items()}, settings, seed)


def run_settings(file: Path) -> tuple[dict[str, Any], int | None]:
    """Arguments of the trained module by dotted name, without places, and its seed.

    Args:
        file: the resolved configuration that Lightning writes; nothing is known where it does not exist.

    Raises:
        ValueError: another kind of file.
    """
    if not file.is_file():
        return {}, None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        model: dict[str, Any] = dict(content["model"]["init_args"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not describe a run ({' '.join(str(error).split())}); remove it") from error
    seed = model.pop("seed", None)
    found = {name: value for name, value in flat(model).items() if name.rpartition(".")[2] not in _PLACES}
    return found, seed if isinstance(seed, int) else None


def _order(file: Path) -> tuple[str, int]:
    """Attempts in the order of their numbers."""
    number = file.parent.name.partition("version_")[2]
    return str(file.parent.parent), int(number) if number.isdecimal() else 0
