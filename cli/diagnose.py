"""jsonargparse's many-lined errors as one sentence that names the nearest known class or option."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

_ROOTS = {"model": LightningModule, "data": LightningDataModule, "trainer": Trainer}
_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Expected a dot import path string: (\S+)|Import path (\S+) does not correspond|No module named '([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted|(?:Group|Subcommand) '([^']+)' does not accept option '([^']+)'")
_FLAG = re.compile(r"[Uu]nrecognized arguments: --(\S+)")


def explain(message: str) -> str:
    """One sentence for an error of jsonargparse.

    Args:
        message: what its parser reports.
    """
    flat = " ".join(message.split())
    if found := _FLAG.search(flat):
        path = found[1].partition("=")[0].split(".")
        return _option(path[:-1], path[-1], {})
    if found := _CLASS.search(flat):
        name = next(group for group in found.groups() if group)
        return _class(_path(flat, found), name, _given(flat))
    if found := _OPTION.search(flat):
        path = _path(flat, found)
        inner = [] if found[2] in (None, "fit", "validate", "test", "predict") else [found[2]]
        *inside, name = (found[1] or found[3]).split(".")
        return _option([*path, *inner, *inside], name, _given(flat))
    return _reason(flat)


def subclasses(base: type[Any]) -> list[type[Any]]:
    """All classes derived from ``base`` that are imported, at any depth."""
    return [found for child in base.__subclasses__() for found in (child, *subclasses(child))]


def _class(path: list[str], name: str, given: Any) -> str:
    expected, _ = _walk(path, given)
    known = sorted({cls.__name__ for cls in subclasses(expected or object) if not cls.__name__.startswith("_")})
    place, kind = ".".join(path) or "configuration", expected.__name__ if expected else "class"
    return f"{place} names the unknown class {name!r} where a {kind} is expected; {_near(name.rpartition('.')[2], known)}"


def _option(path: list[str], name: str, given: Any) -> str:
    path = [key for key in path if key != "init_args"]
    owner, value = _walk(path, given)
    owner = _named_class(value, owner) or owner
    known = [] if owner is None else [key for key in inspect.signature(owner).parameters if key != "self"]
    place = ".".join(path) or "the command"
    kind = f" ({owner.__name__})" if owner else ""
    return f"{place}{kind} has no option {name!r}; {_near(name, known)}"


def _near(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 3, 0.6) or get_close_matches(name.lower(), known, 3, 0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known)}" if known else "see --help"


def _walk(path: list[str], given: Any) -> tuple[type[Any] | None, Any]:
    """The class that ``path`` expects, and the value given there."""
    if not path or path[0] not in _ROOTS:
        return None, None
    expected: type[Any] | None = _ROOTS[path[0]]
    for key in path[1:]:
        owner = _named_class(given, expected) or expected
        hint = get_type_hints(owner.__init__).get(key) if owner else None
        expected = next(iter(_classes(hint)), None)
        arguments = given.get("init_args", given) if isinstance(given, Mapping) else {}
        given = arguments.get(key) if isinstance(arguments, Mapping) else None
    return expected, given


def _named_class(value: Any, base: type[Any] | None) -> type[Any] | None:
    name = value.get("class_path") if isinstance(value, Mapping) else None
    if base is None or not isinstance(name, str):
        return None
    return next((cls for cls in subclasses(base) if cls.__name__ == name.rpartition(".")[2]), None)


def _classes(hint: Any) -> Iterable[type[Any]]:
    if isinstance(hint, type) and hint is not type(None) and not get_args(hint):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def _path(flat: str, found: re.Match[str]) -> list[str]:
    return [part for key in _KEY.findall(flat[: found.start()]) for part in key.split(".") if part != "init_args"]


def _given(flat: str) -> Any:
    """The value that the outermost error quotes."""
    try:
        return ast.literal_eval(flat.rpartition("Given value: ")[2])
    except (ValueError, SyntaxError):
        return {}


def _reason(flat: str) -> str:
    keys = _KEY.findall(flat)
    text = _KEY.sub("", flat.partition("Given value type:")[0]).rpartition("Errors: - ")[2]
    text = text.partition(" - Expected a <class 'NoneType'>")[0]
    text = " ".join(re.sub(r"<class '([^']+)'>", r"\1", text).split())
    return f"{'.'.join(keys)}: {text}" if keys else text
