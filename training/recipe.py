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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data.files import DiskFullError, atomic_file

#: Does the work of a stage: (folder of the stage, its arguments with references replaced).
Action = Callable[[Path, dict[str, Any]], None]

#: What the next call does with a stage: skip it, continue it, run it anew, or run it for the first time.
State = Literal["finished", "interrupted", "changed", "new"]

MARK = ".stage.json"
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"\w[\w-]*")


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
        found = {name for text in _strings(self.arguments) for name in _REFERENCE.findall(text)}
        return sorted(found - {self.name})


@dataclass(frozen=True)
class Recipe:
    """Stages in the order they run, and the folder they write to.

    Raises:
        ValueError: no stage, names that are no folder names or not unique, or a stage that reads one not earlier.
    """

    folder: Path
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe must have at least one stage, got none; add one")
        earlier: list[str] = []
        for stage in self.stages:
            if not _NAME.fullmatch(stage.name):
                raise ValueError(f"stage names consist of letters, digits, _ and -, got {stage.name!r}; rename it")
            for name in stage.reads():
                if name not in earlier:
                    raise ValueError(
                        f"stage {stage.name!r} reads ${{{name}}}, which must be an earlier stage "
                        f"({', '.join(earlier) or 'there is none'}); reorder the stages or correct the name"
                    )
            if stage.name in earlier:
                raise ValueError(f"stage names must be unique, got {stage.name!r} twice; rename one of them")
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
        data = read_yaml(path)
        if not isinstance(data, dict) or set(data) != {"folder", "stages"} or not isinstance(data["stages"], dict):
            raise ValueError(f"{path} must be a mapping with folder and stages alone, got {_shape(data)}; correct it")
        return cls(Path(folder or str(data["folder"])), stages_of(data["stages"]))


def read_yaml(path: str | Path) -> Any:
    """Plain values of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, a key that is given twice, or a tag that asks for something else than plain values.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(f"a recipe file was expected at {path}, which {what}; check the path")
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML, got {_told(error)}; correct the file") from error


def stages_of(entries: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Stages from a mapping of names to ``run``, ``with`` and ``publish``.

    Raises:
        ValueError: an entry of another form; the sentence names it.
    """
    return tuple(_stage(str(name), entry) for name, entry in entries.items())


@dataclass(frozen=True)
class Planned:
    """What the next call would do with a stage."""

    name: str
    state: State


@dataclass(frozen=True)
class Done:
    """What is remembered about a finished stage."""

    name: str
    seconds: float  #: of wall-clock time, all attempts together
    skipped: bool  #: finished by an earlier call


def check_recipe(recipe: Recipe, actions: Mapping[str, Action], checks: Mapping[str, Action] | None = None) -> None:
    """Look at all stages before the first one runs; runs and writes nothing.

    Args:
        recipe: the stages.
        actions: by the name under which stages ask for them.
        checks: by the same names: called as the actions are, before anything that a stage reads exists, to raise
            ValueError or TypeError where the arguments are wrong.

    Raises:
        ValueError: a stage asks for an unknown action, its arguments are wrong, or its folder holds files that no stage
            wrote.
    """
    _check_actions(recipe, actions)
    for stage in recipe.stages:
        folder = recipe.folder / stage.name
        _contents(folder)
        if check := (checks or {}).get(stage.run):
            try:
                check(folder, _resolve(dict(stage.arguments), recipe))
            except (ValueError, TypeError) as error:
                raise ValueError(f"stage {stage.name!r}: {error}") from error


def plan_recipe(recipe: Recipe) -> list[Planned]:
    """What :func:`run_recipe` would do with each stage; runs and writes nothing."""
    planned: list[Planned] = []
    versions: dict[str, str] = {}
    for stage in recipe.stages:
        fingerprint, mark = _fingerprint(stage, versions), _read_mark(recipe.folder / stage.name)
        state = _state(mark, fingerprint)
        kept = state in ("finished", "interrupted")
        versions[stage.name] = _version(fingerprint, mark["started"] if kept else None)
        planned.append(Planned(stage.name, state))
    return planned


def run_recipe(
    recipe: Recipe,
    actions: Mapping[str, Action],
    announce: Callable[[str], None] | None = None,
    checks: Mapping[str, Action] | None = None,
    only: Collection[str] | None = None,
) -> list[Done]:
    """Carry out what is left of a recipe.

    Args:
        recipe: the stages.
        actions: by the name under which stages ask for them.
        announce: told in one line what happens to each stage.
        checks: of the arguments of all stages, before the first one runs; see :func:`check_recipe`.
        only: names of the stages to carry out, so that processes or machines that share a folder can share out what
            does not depend on each other; what these read must be finished. All by default.

    Raises:
        ValueError: as :func:`check_recipe` does, a name that is no stage's, or one that reads what is not finished, and
            nothing has been run then; or a stage did not write what it publishes.
    """
    check_recipe(recipe, actions, checks)
    if only is not None:
        _check_only(recipe, only)
    tell = announce or (lambda line: None)
    finished: list[Done] = []
    versions: dict[str, str] = {}
    for number, stage in enumerate(recipe.stages, 1):
        folder = recipe.folder / stage.name
        fingerprint = _fingerprint(stage, versions)
        mark = _read_mark(folder)
        title = f"[{number}/{len(recipe.stages)}] {stage.name}"
        state = _state(mark, fingerprint)
        if only is not None and stage.name not in only:
            versions[stage.name] = _version(fingerprint, mark.get("started"))
            continue
        skipped, same = state == "finished", state == "interrupted"
        if skipped:
            tell(f"{title}: finished before, skipped")
        else:
            tell(f"{title}: {'continues' if same else 'starts'}")
            mark = _carry_out(recipe, stage, actions[stage.run], fingerprint, mark if same else {})
            tell(f"{title}: done in {mark['seconds']:.0f} s")
        versions[stage.name] = _version(fingerprint, mark["started"])
        finished.append(Done(stage.name, mark["seconds"], skipped))
    return finished


def timings(folder: Path) -> dict[str, float]:
    """Seconds of every finished stage under the folder of a run, in the order they were started."""
    marks = [(mark, path.parent.name) for path in folder.glob(f"*/{MARK}") if (mark := _read_mark(path.parent))]
    return {name: mark["seconds"] for mark, name in sorted(marks, key=lambda m: m[0]["started"]) if mark["finished"]}


def _carry_out(
    recipe: Recipe, stage: Stage, action: Action, fingerprint: str, mark: Mapping[str, Any]
) -> dict[str, Any]:
    folder = recipe.folder / stage.name
    if not mark:
        _clear(folder)
    begun, before = time.time(), mark.get("seconds", 0.0)
    common = {"fingerprint": fingerprint, "started": mark.get("started", begun)}

    def remember(finished: bool) -> dict[str, Any]:
        return _write_mark(folder, common | {"seconds": before + time.time() - begun, "finished": finished})

    try:
        remember(finished=False)
        action(folder, _resolve(dict(stage.arguments), recipe))
        _publish(recipe, stage)
    except BaseException as error:
        if isinstance(error, Exception) and {path.name for path in folder.iterdir()} <= {MARK}:
            _remove(folder)  # refused before anything was done
        else:
            with suppress(DiskFullError):
                remember(finished=False)
        raise
    return remember(finished=True)


def _clear(folder: Path) -> None:
    """Empty the folder of a stage. Its mark stays and is void until then, so that an interruption does no harm."""
    found = _contents(folder)
    if mark := _read_mark(folder):
        _write_mark(folder, mark | {"fingerprint": "", "finished": False})
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()


def _remove(folder: Path) -> None:
    """Leave no trace of a stage that wrote nothing, nor of a run without stages."""
    (folder / MARK).unlink(missing_ok=True)
    for empty in (folder, folder.parent):
        if not any(empty.iterdir()):
            empty.rmdir()


def _contents(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if found and not _read_mark(folder):
        raise ValueError(
            f"{folder} must be empty or written by a stage, got {found[0].name} in it; choose another folder to run in"
        )
    return found


def _publish(recipe: Recipe, stage: Stage) -> None:
    for name in stage.publish:
        source = recipe.folder / stage.name / name
        if not source.is_file():
            raise ValueError(
                f"stage {stage.name!r} must write {name}, which it publishes, got no such file; correct it"
            )
        with atomic_file(recipe.folder / name) as file:
            shutil.copyfile(source, file)


def _resolve(value: Any, recipe: Recipe) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: str(recipe.folder / match[1]), value)
    if isinstance(value, dict):
        return {key: _resolve(item, recipe) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, recipe) for item in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _fingerprint(stage: Stage, versions: Mapping[str, str]) -> str:
    """Of what a stage does and reads; configuration files that it names count with their text."""
    files = (Path(text) for text in _strings(stage.arguments) if text.endswith((".yaml", ".yml")))
    texts = [file.read_text() for file in files if file.is_file()]
    what = [stage.run, stage.arguments, stage.publish, [versions[name] for name in stage.reads()], texts]
    return sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _version(fingerprint: str, started: float | None) -> str:
    """Of what a stage holds: begun anew, it may hold something else. None is yet to be begun."""
    return f"{fingerprint} {started}"


def _state(mark: Mapping[str, Any], fingerprint: str) -> State:
    if not mark:
        return "new"
    if mark["fingerprint"] != fingerprint:
        return "changed"
    return "finished" if mark["finished"] else "interrupted"


def _write_mark(folder: Path, mark: dict[str, Any]) -> dict[str, Any]:
    with atomic_file(folder / MARK) as file:
        file.write_text(json.dumps(mark))
    return mark


def _read_mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    try:
        mark = json.loads(path.read_text()) if path.is_file() else {}
        return mark if not mark else {name: mark[name] for name in ("fingerprint", "started", "seconds", "finished")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove {folder}, or choose another folder to run in") from error


def _stage(name: str, entry: Any) -> Stage:
    known = {"run", "with", "publish"}
    if not isinstance(entry, dict) or not isinstance(entry.get("run"), str) or not set(entry) <= known:
        raise ValueError(f"stage {name!r} must have run and may have with and publish, got {_shape(entry)}; correct it")
    arguments, publish = entry.get("with") or {}, entry.get("publish") or []
    if not isinstance(arguments, dict) or not isinstance(publish, list):
        raise ValueError(
            f"stage {name!r} must have a mapping under with and a list under publish, got {_shape(arguments)} and "
            f"{_shape(publish)}; correct it"
        )
    for file in map(str, publish):
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(f"stage {name!r} must publish files of its folder, got {file!r}; name files in it")
    return Stage(name, entry["run"], arguments, tuple(map(str, publish)))


def _check_actions(recipe: Recipe, actions: Mapping[str, Action]) -> None:
    for stage in recipe.stages:
        if stage.run not in actions:
            near = get_close_matches(stage.run, actions, 1)
            hint = f"did you mean {near[0]!r}" if near else f"known are {', '.join(sorted(actions))}"
            raise ValueError(f"stage {stage.name!r} must run a known action, got {stage.run!r}; {hint}")


def _check_only(recipe: Recipe, only: Collection[str]) -> None:
    stages = [stage.name for stage in recipe.stages]
    if unknown := sorted(set(only) - set(stages)):
        raise ValueError(f"only stages of the recipe can run, got {', '.join(unknown)}; there are {', '.join(stages)}")
    states = {planned.name: planned.state for planned in plan_recipe(recipe)}
    for stage in (stage for stage in recipe.stages if stage.name in only):
        missing = [name for name in stage.reads() if name not in only and states[name] != "finished"]
        if missing:
            raise ValueError(
                f"stage {stage.name!r} reads {', '.join(missing)}, which must be finished, got {states[missing[0]]}; "
                "run it too"
            )


def _shape(data: Any) -> str:
    return f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else f"{type(data).__name__}"


def _told(error: Exception) -> str:
    """What is wrong with a file, and in which line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    place = "" if error.problem_mark is None else f"in line {error.problem_mark.line + 1}"
    return " ".join(filter(None, (error.context, error.problem, place)))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's plain types; a key given twice is an error instead of the last one counting."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)
