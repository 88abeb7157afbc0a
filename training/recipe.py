"""Recipes: stages as data. Each names what it runs, with what, and which earlier stages it reads.

A finished stage is skipped while neither it nor anything it reads has changed; a changed one runs anew with all that
depend on it; an interrupted one finds its folder as it left it. Knows nothing about what a stage does: actions are
handed in.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ..data.files import atomic_file

#: Does the work of a stage: (folder of the stage, its arguments with references replaced).
Action = Callable[[Path, dict[str, Any]], None]

MARK = ".stage.json"
_REFERENCE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    ``${name}`` inside an argument stands for the folder of stage ``name``: an earlier one, or this one.
    """

    name: str
    run: str  #: name of the action
    arguments: Mapping[str, Any] = field(default_factory=dict)
    publish: tuple[str, ...] = ()  #: files of its folder that are copied to the folder of the run

    def reads(self) -> list[str]:
        """Names of the stages whose folders its arguments mention, itself left out."""
        found = sorted(set(_REFERENCE.findall(json.dumps(self.arguments))))
        return [name for name in found if name != self.name]


@dataclass(frozen=True)
class Recipe:
    """Stages in the order they run, and the folder they write to."""

    folder: Path
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        earlier: list[str] = []
        for stage in self.stages:
            for name in stage.reads():
                if name not in earlier:
                    raise ValueError(
                        f"stage {stage.name!r} reads ${{{name}}}, which must be an earlier stage ({', '.join(earlier)})"
                    )
            if stage.name in earlier:
                raise ValueError(f"stage names must be unique, got {stage.name!r} twice")
            earlier.append(stage.name)

    @classmethod
    def load(cls, path: str | Path, folder: str | Path | None = None) -> Recipe:
        """Read a recipe file.

        Args:
            path: YAML with ``folder`` and ``stages``: a mapping from name to ``run``, ``with`` and ``publish``.
            folder: where to write instead of the folder that the file names.

        Raises:
            FileNotFoundError: no such file.
            ValueError: something that is no recipe; the sentence names the key.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"a recipe file was expected at {path}, which does not exist; check the path")
        try:
            data = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} must be YAML, got {' '.join(str(error).split())}") from error
        if not isinstance(data, dict) or not isinstance(data.get("stages"), dict) or "folder" not in data:
            raise ValueError(f"{path} must be a mapping with folder and stages, got {_shape(data)}")
        stages = tuple(_stage(name, entry) for name, entry in data["stages"].items())
        return cls(Path(folder or data["folder"]), stages)


@dataclass(frozen=True)
class Done:
    """What is remembered about a finished stage."""

    name: str
    seconds: float  #: of wall-clock time, all attempts together
    skipped: bool  #: finished by an earlier call


def run_recipe(
    recipe: Recipe, actions: Mapping[str, Action], announce: Callable[[str], None] | None = None
) -> list[Done]:
    """Carry out what is left of a recipe.

    Args:
        recipe: the stages.
        actions: by the name under which stages ask for them.
        announce: told in one line what happens to each stage.

    Raises:
        ValueError: a stage asks for an unknown action; nothing has been run then.
    """
    _check_actions(recipe, actions)
    tell = announce or (lambda line: None)
    finished: list[Done] = []
    prints: dict[str, str] = {}
    for number, stage in enumerate(recipe.stages, 1):
        folder = recipe.folder / stage.name
        prints[stage.name] = _fingerprint(stage, prints)
        mark = _read_mark(folder)
        title = f"[{number}/{len(recipe.stages)}] {stage.name}"
        same = mark.get("fingerprint") == prints[stage.name]
        if same and mark["finished"]:
            tell(f"{title}: finished before, skipped")
            finished.append(Done(stage.name, mark["seconds"], skipped=True))
            continue
        tell(f"{title}: {'continues' if same else 'starts'}")
        seconds = _carry_out(recipe, stage, actions[stage.run], prints[stage.name], mark if same else {})
        tell(f"{title}: done in {seconds:.0f} s")
        finished.append(Done(stage.name, seconds, skipped=False))
    return finished


def timings(folder: Path) -> dict[str, float]:
    """Seconds of every finished stage under the folder of a run, in the order they were started."""
    marks = [(mark, path.parent.name) for path in folder.glob(f"*/{MARK}") if (mark := _read_mark(path.parent))]
    return {name: mark["seconds"] for mark, name in sorted(marks, key=lambda m: m[0]["started"]) if mark["finished"]}


def _carry_out(recipe: Recipe, stage: Stage, action: Action, fingerprint: str, mark: Mapping[str, Any]) -> float:
    folder = recipe.folder / stage.name
    if not mark and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    mark = {"fingerprint": fingerprint, "started": mark.get("started", begun), "seconds": mark.get("seconds", 0.0)}

    def remember(finished: bool) -> float:
        seconds = mark["seconds"] + time.time() - begun
        with atomic_file(folder / MARK) as file:
            file.write_text(json.dumps({**mark, "seconds": seconds, "finished": finished}))
        return seconds

    remember(finished=False)
    try:
        action(folder, _resolve(dict(stage.arguments), recipe))
    except BaseException:
        remember(finished=False)
        raise
    for name in stage.publish:
        with atomic_file(recipe.folder / name) as file:
            shutil.copyfile(folder / name, file)
    return remember(finished=True)


def _resolve(value: Any, recipe: Recipe) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: str(recipe.folder / match[1]), value)
    if isinstance(value, dict):
        return {key: _resolve(item, recipe) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, recipe) for item in value]
    return value


def _fingerprint(stage: Stage, prints: Mapping[str, str]) -> str:
    what = [stage.run, stage.arguments, stage.publish, [prints[name] for name in stage.reads()]]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _read_mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    return json.loads(path.read_text()) if path.is_file() else {}


def _stage(name: str, entry: Any) -> Stage:
    known = {"run", "with", "publish"}
    if not isinstance(entry, dict) or not isinstance(entry.get("run"), str) or not set(entry) <= known:
        raise ValueError(f"stage {name!r} must have run and may have with and publish, got {_shape(entry)}")
    return Stage(name, entry["run"], entry.get("with") or {}, tuple(entry.get("publish") or ()))


def _check_actions(recipe: Recipe, actions: Mapping[str, Action]) -> None:
    for stage in recipe.stages:
        if stage.run not in actions:
            near = get_close_matches(stage.run, actions, 1)
            hint = f"did you mean {near[0]!r}" if near else f"known are {', '.join(sorted(actions))}"
            raise ValueError(f"stage {stage.name!r} must run a known action, got {stage.run!r}; {hint}")


def _shape(data: Any) -> str:
    return f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else f"{type(data).__name__}"
