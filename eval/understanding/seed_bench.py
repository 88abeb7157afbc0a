"""SEED-Bench, image part (arXiv 2307.16125): questions with four choices. Scored by :mod:`.choices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .items import LETTERS, Item, damaged, mapping, read_json, section, text_of, unique

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def read_seed_bench(files: Sequence[Path]) -> list[Item]:
    """Questions of ``SEED-Bench.json`` whose ``data_type`` is ``image``; those about videos are left out.

    Args:
        files: that file.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, or one without questions about pictures.
    """
    if len(files) != 1:
        raise ValueError(f"SEED-Bench is read from one file, got {len(files)}; give SEED-Bench.json")
    (path,) = files
    content = read_json(path)
    entries = section(content, "questions", path)
    types = mapping(content.get("question_type") or {}, "numbers by type as 'question_type'", path)
    names = {str(number): name for name, number in types.items()}
    items = [
        _item(entry, names, path, number)
        for number, entry in enumerate(entries, 1)
        if text_of(entry, "data_type", path, number) == "image"
    ]
    if not items:
        raise damaged(path, "questions whose 'data_type' is 'image'", "none")
    return unique(items, path)


def _item(entry: Mapping[str, Any], names: Mapping[str, str], path: Path, number: int) -> Item:
    name, image, question, answer = (
        text_of(entry, field, path, number) for field in ("question_id", "data_id", "question", "answer")
    )
    if answer not in tuple(LETTERS[: len(_CHOICES)]):
        raise damaged(path, f"A, B, C or D as 'answer' of question {name}", repr(answer))
    kind = text_of(entry, "question_type_id", path, number)
    group = names.get(kind, kind)
    choices = tuple(text_of(entry, field, path, number) for field in _CHOICES)
    return Item(name, image, question, (answer,), group, group, choices, lettered=True)
