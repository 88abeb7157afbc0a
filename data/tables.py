"""Pictures and captions listed in a CSV or JSON table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .base import RowSource, as_text, check_columns
from .decoding import decode


class CaptionTable(RowSource):
    """Picture files and captions listed in a table.

    A table may name pictures anywhere: absolute paths and ``../`` are common, and nothing but pictures is read. It says
    which files of this machine are opened, so take tables of strangers as you would take their commands.

    Args:
        path: ``.csv`` with a header, ``.jsonl`` with one object a line, or ``.json`` with one list of objects; UTF-8.
        image_column: column of the picture files.
        caption_column: column of the captions; None reads none.
        root: folder the picture files are relative to; the table's own where None.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table has another suffix, is empty or malformed, or lacks a column.
        TypeError: an entry is not text.
    """

    def __init__(
        self,
        path: str | Path,
        image_column: str = "image",
        caption_column: str | None = "caption",
        root: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.image_column, self.caption_column = image_column, caption_column
        self.root = Path(root) if root is not None else self.path.parent
        if not self.path.is_file():
            raise FileNotFoundError(f"expected a table of pictures, got {str(path)!r}, which is no file; check it")
        if self.path.suffix.lower() not in (".csv", ".jsonl", ".json"):
            raise ValueError(
                f"expected a table named .csv, .jsonl or .json, got {self.path.name!r}; rename or convert it"
            )
        first = next(_table_rows(self.path), None)
        if first is None:
            raise ValueError(f"expected rows in {str(path)!r}, got none; check the table")
        check_columns(first, image_column, caption_column, str(path))

    def picture(self, index: int) -> Image.Image:
        return decode(self.root / self.name(index), self.name(index))

    def caption(self, index: int) -> str | None:
        return self.rows["caption"][index] if self.caption_column is not None else None

    def name(self, index: int) -> str:
        return self.rows["image"][index]

    def _load(self) -> datasets.Dataset:
        images: list[str] = []
        captions: list[str | None] = []
        for number, row in enumerate(_table_rows(self.path)):
            where = f"row {number} of {str(self.path)!r}"
            image = as_text(row.get(self.image_column), self.image_column, where)
            if not image:
                raise ValueError(
                    f"expected a file in column {self.image_column!r} of {where}, got nothing; fill or drop the row"
                )
            images.append(image)
            if self.caption_column is not None:
                captions.append(as_text(row.get(self.caption_column), self.caption_column, where))
        columns = {"image": images} | ({"caption": captions} if self.caption_column is not None else {})
        text = datasets.Value("string")
        return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, text)))


def _table_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a table as mappings.

    Raises:
        ValueError: it is malformed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
                return
            rows = (
                (json.loads(line) for line in file if line.strip())
                if path.suffix.lower() == ".jsonl"
                else json.load(file)
            )
            for row in rows:
                if not isinstance(row, dict):
                    raise ValueError(f"expected a list of objects, got {type(row).__name__}")
                yield row
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"expected a well-formed table, got {str(path)!r} ({error}); repair it") from error
