"""GenEval's records in files that others wrote: what a line must hold, and one sentence where it does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

_SUMS = ("total_images", "total_prompts", "correct_images", "correct_prompts", "overall")


def json_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: if it is not in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got other bytes; write the file again") from error
    return lines if lines[-1] else lines[:-1]


def json_object(text: str) -> dict[str, Any]:
    """The JSON object, or an empty one where the text is none."""
    try:
        content: object = json.loads(text)
    except ValueError:
        return {}
    return _object(content) or {}


def require_case(case: dict[str, Any], verdict: Sequence[str], where: str) -> dict[str, Any]:
    """A recorded case, if it is one.

    Args:
        case: ``id``, ``metadata``, ``detections`` (by class, rows of x0, y0, x1, y1, score) and ``colors`` (by class).
        verdict: those of ``correct`` and ``reason`` that it must have too.
        where: file and line.

    Raises:
        ValueError: if a field is missing or of another kind.
    """
    wrong = next(_wrong_case(case, verdict), None)
    if wrong is not None:
        raise ValueError(f"{where} must be a recorded case, got {wrong}; record the case again")
    return case


def require_summary(recorded: dict[str, Any], path: Path) -> dict[str, Any]:
    """Recorded sums, if they are some.

    Raises:
        ValueError: if there is no object, or its numbers are none.
    """
    wrong = next(_wrong_summary(recorded), None)
    if wrong is not None:
        raise ValueError(f"--check needs a JSON object in {path}, got {wrong}; record the sums again")
    return recorded


def is_lists(value: object) -> bool:
    """Whether a value is an object whose values are lists, as detections by class are."""
    found = _object(value)
    return found is not None and all(isinstance(rows, list) for rows in found.values())


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong_case(case: dict[str, Any], verdict: Sequence[str]) -> Iterator[str]:
    yield from (
        f"a line without {name}" for name in ("id", "metadata", "detections", "colors", *verdict) if name not in case
    )
    yield from _wrong_entry(case["metadata"])
    if not is_lists(case["detections"]) or not all(
        _is_box(row) for rows in case["detections"].values() for row in rows
    ):
        yield "detections that are not, by class, lists of five finite numbers"
    if not is_lists(case["colors"]) or not all(
        color is None or isinstance(color, str) for colors in case["colors"].values() for color in colors
    ):
        yield "colors that are not, by class, lists of names"
    kinds = {"correct": bool, "reason": str}
    yield from (
        f"{name} that is no {kinds[name].__name__}" for name in verdict if not isinstance(case[name], kinds[name])
    )


def _wrong_entry(entry: object) -> Iterator[str]:
    found = _object(entry) or {}
    if not isinstance(found.get("tag"), str):
        yield "metadata without a tag"
    for name in ("include", "exclude"):
        wanted: object = found.get(name, [])
        if not isinstance(wanted, list) or not all(_is_wanted(item) for item in cast("list[object]", wanted)):
            yield f"metadata whose {name} is no list of classes with their counts"


def _wrong_summary(recorded: dict[str, Any]) -> Iterator[str]:
    if not recorded:
        yield "something else"
    yield from (f"{name} that is no number" for name in _SUMS if name in recorded and not is_number(recorded[name]))
    tasks = _object(recorded.get("tasks", {}))
    if tasks is None or not all(_is_numbers(task) for task in tasks.values()):
        yield "tasks that are not objects of numbers"


def _is_numbers(value: object) -> bool:
    found = _object(value)
    return found is not None and all(map(is_number, found.values()))


def _is_box(row: object) -> bool:
    return (
        isinstance(row, list) and len(cast("list[object]", row)) == 5 and all(map(is_number, cast("list[object]", row)))
    )


def _is_wanted(item: object) -> bool:
    found = _object(item)
    if found is None or not isinstance(found.get("class"), str) or not isinstance(found.get("count"), int):
        return False
    position: object = found.get("position", ["", 0])
    pair = cast("list[object]", position) if isinstance(position, list) else []
    placed = len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int) and pair[1] >= 0
    return placed and isinstance(found.get("color", ""), str)


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
