"""MMBench, development split (arXiv 2307.06281): choices in every rotation, right only if right in all of them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .choices import letter_of
from .items import LETTERS, Item, Normalisation, Scores, damaged, read_text, unique
from .vqa_accuracy import grouped

TURN = 1_000_000  #: added to a question's index for each rotation of its choices

_COLUMNS = ("index", "question", "A", "B", "answer", "image")
_EMPTY = ("", "nan")
_REFERENCE = 64  # a shorter image field is the index of the row that holds the picture


def read_mmbench(files: Sequence[Path]) -> list[Item]:
    """Questions, each once for every rotation of its choices.

    The distributed file holds the rotations as rows of their own, of index ``index + k * 1000000``: where any row has
    such an index, all are taken as they are. Otherwise choices are rotated here, and the rotation by k puts choice k
    first.

    Args:
        files: one TSV file of ``index, question, hint, A, B, C, D, answer, category, image``, the pictures in base64,
            or as the index of the row that holds it.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, a split without answers, or a rotation without its question.
    """
    if len(files) != 1:
        raise ValueError(f"MMBench is read from one file, got {len(files)}; give the TSV of the development split")
    (path,) = files
    csv.field_size_limit(1 << 30)  # pictures are longer than the module's usual limit
    rows = list(csv.DictReader(io.StringIO(read_text(path)), delimiter="\t"))
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise damaged(path, f"a column {missing[0]!r} of tab-separated values", "none")
    asked = [_item(row, path, number) for number, row in enumerate(rows, 1)]
    given = {item.id: row["image"] for item, row in zip(asked, rows, strict=True)}
    asked = unique([replace(item, data=_picture(given, item, path)) for item in asked], path)
    if all(item.id == item.origin for item in asked):
        return [turned for item in asked for turned in _rotations(item)]
    alone = next((item for item in asked if item.origin not in given), None)
    if alone is not None:
        raise damaged(path, f"question {alone.origin} beside its rotation {alone.id}", "none")
    return asked


def score_mmbench(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """``circular``: share of questions right in every rotation, in all and by category; ``single``: right as filed."""
    read = [letter_of(answer, item.choices, normalisation) for item, answer in zip(items, answers, strict=True)]
    right = {item.id: letter == item.answers[0] for item, letter in zip(items, read, strict=True)}
    wrong = {item.origin for item in items if not right[item.id]}
    first = [item for item in items if item.id == item.origin]
    scores = grouped("circular", first, [float(item.origin not in wrong) for item in first])
    single = sum(right[item.id] for item in first) / len(first)
    return scores | {"single": single, "unparsed": sum(letter is None for letter in read) / len(read)}


def _item(row: Mapping[str, str | None], path: Path, number: int) -> Item:
    """A row as it is, its picture left out."""
    index, question, answer, image = (row.get(name) or "" for name in ("index", "question", "answer", "image"))
    if not (index.isascii() and index.isdecimal()):
        raise damaged(path, f"a whole number as 'index' of row {number}", repr(index))
    choices = [text for letter in LETTERS if (text := (row.get(letter) or "").strip()) not in _EMPTY]
    if answer not in tuple(LETTERS[: len(choices)]):
        raise damaged(path, f"the letter of a choice as answer of question {index}", repr(answer))
    hint = (row.get("hint") or "").strip()
    origin = str(int(index) % TURN)
    return Item(
        str(int(index)),
        image if len(image) <= _REFERENCE else origin,
        question if hint in _EMPTY else f"{hint}\n{question}",
        (answer,),
        group=row.get("category") or "all",
        kind=row.get("category") or "all",
        choices=tuple(choices),
        lettered=True,
        origin=origin,
    )


def _rotations(item: Item) -> list[Item]:
    choices, right = item.choices, LETTERS.index(item.answers[0])
    return [
        replace(
            item,
            id=str(int(item.id) + turn * TURN),
            answers=(LETTERS[(right - turn) % len(choices)],),
            choices=choices[turn:] + choices[:turn],
        )
        for turn in range(len(choices))
    ]


def _picture(given: Mapping[str, str | None], item: Item, path: Path) -> bytes:
    """The picture of a row's own, or that of the row it names."""
    own = given[item.id] or ""
    text = own if len(own) > _REFERENCE else given.get(item.image) or ""
    try:
        return base64.b64decode(text if len(text) > _REFERENCE else "!", validate=True)
    except ValueError as error:
        raise damaged(path, f"a picture in base64 for question {item.id}", "something else") from error
