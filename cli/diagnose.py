"""jsonargparse's many-lined errors as one sentence that names the nearest known class or option."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError
from jsonargparse._util import import_object
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from .class_paths import refusal

#: A class, or a function: what has options.
Owner = type[Any] | Callable[..., Any]

_ROOTS = {"model": LightningModule, "data": LightningDataModule, "trainer": Trainer}
_STEP = re.compile(r"Parser key \"([^\"]+)\":|Problem with given class_path '([^']+)':")
_CLASS = re.compile(r"Expected a dot import path string: (\S+)|Import path (\S+) does not correspond")
_OPTION = re.compile(r"Option '([^']+)' is not accepted|(Group|Subcommand) '([^']+)' does not accept option '([^']+)'")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_FLAG = re.compile(r"[Uu]nrecognized arguments: --([^\s=]+)")
_VALUE = re.compile(r"Expected a (?:typing\.Literal\[(.+)\]|(.+?))\. Got value: (.*)")


def is_parser_error(error: Exception) -> bool:
    """Whether jsonargparse wrote the message, while parsing or while building what was parsed."""
    return isinstance(error, ArgumentError) or "Does not validate against any of the Union" in str(error)


def explain(error: Exception, root: Owner | None = None) -> str:
    """One sentence for an error of jsonargparse: where it is, what came, and which known name is nearest.

    Args:
        error: what jsonargparse raised.
        root: the function whose arguments were parsed; None for Lightning's command line.
    """
    flat = " ".join(str(error).split())
    if found := _DENIED.search(flat):
        return refusal(found[1])
    if found := _FLAG.search(flat):
        *path, name = found[1].split(".")
        return _option(path, _owner(path, root), name)
    if found := _CLASS.search(flat):
        path, expected = _walk(flat[: found.start()], root)
        return _class(path, expected, found[1] or found[2])
    if found := _OPTION.search(flat):
        path, owner = _walk(flat[: found.start()], root)
        *inner, name = (found[1] or found[4]).split(".")
        inner = [found[3], *inner] if found[2] == "Group" else inner
        return _option([*path, *inner], _owner(inner, owner), name)
    required = flat.startswith("the following arguments are required")
    return f"{flat}; give them, or a file with them as -c FILE" if required and root is None else _reason(flat)


def subclasses(base: type[Any]) -> list[type[Any]]:
    """All classes derived from ``base`` that are imported, at any depth."""
    return [found for child in base.__subclasses__() for found in (child, *subclasses(child))]


def _class(path: list[str], expected: Owner | None, name: str) -> str:
    classes = (subclasses(expected) or [expected]) if isinstance(expected, type) else []
    known = sorted(
        {cls.__name__ for cls in classes if not cls.__name__.startswith("_") and not inspect.isabstract(cls)}
    )
    kind = f"a class of kind {expected.__name__}" if isinstance(expected, type) else "a class"
    return f"{'.'.join(path)} needs {kind}, got the unknown name {name!r}; {_near(name.rpartition('.')[2], known)}"


def _option(path: list[str], owner: Owner | None, name: str) -> str:
    known = [] if owner is None else [key for key in inspect.signature(owner).parameters if key != "self"]
    place = ".".join(path) or getattr(owner, "__name__", "the command")
    kind = f" ({owner.__name__})" if isinstance(owner, type) else ""
    return f"{place}{kind} has no option {name!r}; {_near(name, known)}"


def _near(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 3, 0.6) or get_close_matches(name, known, 3, 0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known)}" if known else "see --help"


def _walk(flat: str, root: Owner | None = None) -> tuple[list[str], Owner | None]:
    """The path to an error, and the class expected or given there."""
    path = list[str]()
    current: Any = root
    for key, class_path in _STEP.findall(flat):
        if class_path:
            current = import_object(class_path)
        else:
            path += key.split(".")
            current = _owner(key.split("."), current)
    return path, current


def _owner(path: list[str], current: Owner | None = None) -> Owner | None:
    """The class expected at a path below ``current``, or below the command."""
    for key in path:
        if key != "init_args":
            current = _ROOTS.get(key) if current is None else _hinted(current, key)
    return current


def _hinted(owner: Owner, key: str) -> type[Any] | None:
    typed = owner.__init__ if isinstance(owner, type) else owner
    return next(_classes(get_type_hints(typed).get(key)), None)


def _classes(hint: Any) -> Iterator[type[Any]]:
    if isinstance(hint, type) and hint is not type(None) and not get_args(hint):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def _reason(flat: str) -> str:
    keys = [key for key, _ in _STEP.findall(flat) if key]
    text = _STEP.sub("", flat.partition("Given value type:")[0]).rpartition("Errors: - ")[2]
    text = text.partition(" - Expected a <class 'NoneType'>")[0]
    text = " ".join(re.sub(r"<class '([^']+)'>", r"\1", text).split())
    if keys and (found := _VALUE.fullmatch(text)):
        kind = f"one of {found[1]}" if found[1] else found[2]
        return f"{'.'.join(keys)} must be {kind}, got {found[3]!r}; correct it"
    return f"{'.'.join(keys)}: {text}" if keys else text
