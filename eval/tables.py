"""Tables of plain text: how results become rows, and rows Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from ..data.files import atomic_file
from .page import duration


@dataclass(frozen=True)
class Table:
    """Plain text in rows; columns that are empty throughout are left out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()  #: columns that align right


def markdown(table: Table) -> str:
    """A table as Markdown, without columns that are empty throughout."""
    kept = [at for at in range(len(table.head)) if any(row[at] for row in table.rows)]
    rules = ["---:" if at in table.numeric else "---" for at in kept]
    lines = [[table.head[at] for at in kept], rules, *[[row[at] for at in kept] for row in table.rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_markdown(path: Path, table: Table) -> str:
    """Write a table as :func:`markdown`, and return its text."""
    text = markdown(table)
    with atomic_file(path) as file:
        file.write_text(text + "\n")
    return text


def table_of(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> Table:
    """One row for every tokenizer.

    Args:
        rows: by name, what the cells are made from.
        columns: titles, and format strings over the fields of a row; beside Python's own formats ``.2M`` writes
            millions and ``time`` a duration. A cell is empty where a row lacks one of its fields.
    """
    head = ["tokenizer", *(title for title, _ in columns)]
    lines = [[name, *(_cell(shape, fields) for _, shape in columns)] for name, fields in rows.items()]
    return Table(head, lines, frozenset(range(1, len(head))))


class _Cells(Formatter):
    """Python's formats, ``.2M`` for millions and ``time`` for seconds in words."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """See :class:`string.Formatter`."""
        if format_spec == "time":
            return duration(value)
        if format_spec.endswith("M"):
            return format(value / 1e6, f"{format_spec[:-1]}f")
        return format(value, format_spec)


def _cell(shape: str, fields: Mapping[str, Any]) -> str:
    try:
        return _Cells().vformat(shape, (), fields)
    except KeyError:
        return ""
