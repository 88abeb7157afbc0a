"""One question of any benchmark, and reading the fields of official files with errors of one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

#: How an answer is made alike before it is compared: as the benchmark's own script does, or always and generously;
#: ``tokenised`` takes captions as words with spaces between them already.
Normalisation: TypeAlias = Literal["official", "always", "tokenised"]

#: Scores by name, nested where they are broken down.
Scores: TypeAlias = "dict[str, float | Scores]"

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """A question about a picture with its answers."""

    id: str  #: as in the official file; answers are matched by it
    image: str  #: name of the picture, with or without its extension; questions of one picture share it
    question: str  #: as in the official file; empty where a caption is asked for
    answers: tuple[str, ...]  #: right ones: one, ten of annotators, or the reference captions
    group: str  #: what scores are broken down by
    kind: str  #: questions of one kind share the answers of a blind guesser, whatever their words
    choices: tuple[str, ...] = ()  #: answers to choose from, where the benchmark gives some
    lettered: bool = False  #: the answer is the letter of a choice
    origin: str = ""  #: items of one origin count only together, where the benchmark says so
    data: bytes | None = None  #: the encoded picture, where the file holds it


def damaged(path: Path, expected: str, got: str) -> ValueError:
    """The error for a file that is not what it should be."""
    return ValueError(f"expected {expected} in {path}, got {got}; use the benchmark's official file")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a benchmark file at {path}, found none; check the path")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, "UTF-8 text", "other bytes") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; errors as :func:`read_text`, and where it does not parse."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise damaged(path, "JSON", f"text that does not parse at line {error.lineno}") from error


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """Objects, one a line (JSONL) or as one JSON list; errors as :func:`read_json`."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        return records(read_json(path), path)
    found = list[Any]()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise damaged(path, "one JSON object a line", f"something else in line {number}") from error
    return records(found, path)


def records(value: object, path: Path) -> list[Mapping[str, Any]]:
    """``value`` as a list of at least one object.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, list) or not value:
        raise damaged(path, "a list of entries", "none" if value in ([], None) else type(value).__name__)
    entries = cast("list[object]", value)
    wrong = next((number for number, entry in enumerate(entries, 1) if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise damaged(path, "an object for every entry", f"something else as entry {wrong}")
    return cast("list[Mapping[str, Any]]", entries)


def section(content: object, name: str, path: Path) -> list[Mapping[str, Any]]:
    """The list of entries called ``name`` of a JSON object.

    Raises:
        ValueError: if there is none.
    """
    mapping = cast("Mapping[str, object]", content) if isinstance(content, dict) else {}
    if name not in mapping:
        held = ", ".join(sorted(mapping)[:6]) or type(content).__name__
        raise damaged(path, f"a list called {name!r}", held)
    return records(mapping[name], path)


def mapping(value: object, what: str, path: Path) -> Mapping[str, object]:
    """``value`` as a JSON object; ``what`` says what it holds.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(value, dict):
        raise damaged(path, f"an object of {what}", type(value).__name__)
    return cast("Mapping[str, object]", value)


def text_of(entry: Mapping[str, Any], name: str, path: Path, number: int) -> str:
    """A field that is text, or a whole number, which becomes text.

    Args:
        entry: an object of a file.
        name: of the field.
        path: of the file, for messages.
        number: which entry it is, from 1, for messages.

    Raises:
        ValueError: if the field is missing or something else.
    """
    value: object = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        got = "no such field" if name not in entry else type(value).__name__
        raise damaged(path, f"text as {name!r} of entry {number}", got)
    return str(value)


def unique(items: list[Item], path: Path) -> list[Item]:
    """The items, each with an id of its own.

    Raises:
        ValueError: if two items share an id.
    """
    seen = set[str]()
    for item in items:
        if item.id in seen:
            raise damaged(path, "every question once", f"question {item.id} twice")
        seen.add(item.id)
    return items
