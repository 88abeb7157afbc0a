"""TextVQA (arXiv 1904.08920): questions about text in pictures. Scored by :mod:`.vqa_accuracy`.

Published numbers differ in whether the prompt holds the words that an OCR system read, so they are an input of their
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from .items import Item, damaged, read_json, section, text_of, unique
from .vqa import annotators


def read_textvqa(files: Sequence[Path]) -> list[Item]:
    """Questions of ``TextVQA_0.5.1_val.json``.

    Args:
        files: that file.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, or a split without answers.
    """
    if len(files) != 1:
        raise ValueError(f"TextVQA is read from one file, got {len(files)}; give that of one split")
    (path,) = files
    items = list[Item]()
    for number, entry in enumerate(section(read_json(path), "data", path), 1):
        name, image, question = (
            text_of(entry, field, path, number) for field in ("question_id", "image_id", "question")
        )
        items.append(Item(name, image, question, annotators(entry, path, name), "all", "all"))
    return unique(items, path)


def read_ocr(path: Path) -> dict[str, str]:
    """The words read in every picture, with commas between them, by the picture's name.

    Args:
        path: a file as ``TextVQA_Rosetta_OCR_v0.2_val.json``: entries ``{image_id, ocr_tokens}`` under ``data``.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a damaged one.
    """
    found: dict[str, str] = {}
    for number, entry in enumerate(section(read_json(path), "data", path), 1):
        found[text_of(entry, "image_id", path, number)] = ", ".join(_tokens(entry, path, number))
    return found


def with_ocr(item: Item, read: Mapping[str, str]) -> str:
    """The question followed by the words read in its picture."""
    return f"{item.question}\nReference OCR token: {read.get(item.image, '')}"


def _tokens(entry: Mapping[str, Any], path: Path, number: int) -> list[str]:
    value: object = entry.get("ocr_tokens")
    tokens = cast("list[object]", value) if isinstance(value, list) else None
    if tokens is None or not all(isinstance(token, str) for token in tokens):
        raise damaged(path, f"a list of words as 'ocr_tokens' of entry {number}", type(value).__name__)
    return [str(token) for token in tokens]
