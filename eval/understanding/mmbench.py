"""MMBench, development split (arXiv 2307.06281): choices in every rotation, right only if right in all of them."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .choices import letter_of
from .items import LETTERS, Item, Normalisation, Scores, damaged, read_text, unique
from .vqa_accuracy import grouped

TURN = 1_000_000  #: added to a question's index for each rotation of its choices

_COLUMNS = ("index", "question", "A", "B", "answer", "image")
_REFERENCE = 64  # a shorter image field is the index of the row that holds the picture


def read_mmbench(files: Sequence[Path]) -> list[Item]:
    """Questions, each once for every rotation of its choices.

    The rotation by k puts choice k first and has the id ``index + k * 1000000``, k = 0 being the file's own order.

    Args:
        files: one TSV file of ``index, question, hint, A, B, C, D, answer, category, image``, the pictures in base64,
            or as the index of the row that holds it.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, or a split without answers.
    """
    if len(files) != 1:
        raise ValueError(f"MMBench is read from one file, got {len(files)}; give the TSV of the development split")
    (path,) = files
    csv.field_size_limit(1 << 30)  # pictures are longer than the module's usual limit
    rows = list(csv.DictReader(io.StringIO(read_text(path)), delimiter="\t"))
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise damaged(path, f"a column {missing[0]!r} of tab-separated values", "none")
    pictures = {row["index"]: row["image"] for row in rows}
    return unique([item for row in rows for item in _rotations(row, pictures, path)], path)


def score_mmbench(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """``circular``: share of questions right in every rotation, in all and by category; ``single``: right as filed."""
    read = [letter_of(answer, item.choices, normalisation) for item, answer in zip(items, answers, strict=True)]
    turns: dict[str, list[bool]] = defaultdict(list)
    for item, letter in zip(items, read, strict=True):
        turns[item.origin].append(letter == item.answers[0])
    first = [item for item in items if item.id == item.origin]
    scores = grouped("circular", first, [float(all(turns[item.origin])) for item in first])
    single = sum(turns[item.origin][0] for item in first) / len(first)
    return scores | {"single": single, "unparsed": sum(letter is None for letter in read) / len(read)}


def _rotations(row: Mapping[str, str], pictures: Mapping[str, str], path: Path) -> list[Item]:
    index = row["index"]
    choices = [row[letter].strip() for letter in LETTERS if (row.get(letter) or "").strip() not in ("", "nan")]
    if not index.isdigit() or row["answer"] not in tuple(LETTERS[: len(choices)]):
        raise damaged(path, f"the letter of a choice as answer of question {index}", repr(row["answer"]))
    image = index if len(row["image"]) > _REFERENCE else row["image"]
    data, right = _picture(pictures.get(image), path, index), LETTERS.index(row["answer"])
    hint = (row.get("hint") or "").strip()
    question = f"{hint}\n{row['question']}" if hint not in ("", "nan") else row["question"]
    group = row.get("category") or "all"
    return [
        Item(
            str(int(index) + turn * TURN),
            image,
            question,
            (LETTERS[(right - turn) % len(choices)],),
            group,
            group,
            tuple(choices[turn:] + choices[:turn]),
            lettered=True,
            origin=index,
            data=data,
        )
        for turn in range(len(choices))
    ]


def _picture(text: str | None, path: Path, index: str) -> bytes:
    try:
        return base64.b64decode(text or "!", validate=True)
    except binascii.Error as error:
        raise damaged(path, f"a picture in base64 for question {index}", "something else") from error
