"""VQAv2 (arXiv 1612.00837): a file of questions and one of annotations. Scored by :mod:`.vqa_accuracy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .items import Item, damaged, read_json, records, section, text_of, unique


def read_vqa(files: Sequence[Path]) -> list[Item]:
    """Questions with the answers of their annotators.

    Pictures are named as officially: ``COCO_val2014_000000000042`` for COCO's, else the file's ``data_type`` in the
    place of ``COCO``.

    Args:
        files: the file of questions and that of annotations, in any order.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: other files, damaged ones, or questions and annotations that do not belong together.
    """
    if len(files) != 2:
        raise ValueError(f"VQAv2 is read from its questions and its annotations, got {len(files)} file; give both")
    contents = [(path, read_json(path)) for path in files]
    contents.sort(key=lambda pair: not (isinstance(pair[1], dict) and "questions" in pair[1]))
    (asked_path, asked), (path, annotated) = contents
    questions, annotations = section(asked, "questions", asked_path), section(annotated, "annotations", path)
    known = {text_of(entry, "question_id", path, number): entry for number, entry in enumerate(annotations, 1)}
    prefix = _prefix(asked, asked_path)
    items = list[Item]()
    for number, entry in enumerate(questions, 1):
        name = text_of(entry, "question_id", asked_path, number)
        if name not in known:
            raise damaged(path, f"an annotation of every question of {asked_path.name}", f"none of question {name}")
        picture = text_of(entry, "image_id", asked_path, number)
        if not (picture.isascii() and picture.isdecimal()):
            raise damaged(asked_path, f"a whole number as 'image_id' of question {name}", repr(picture))
        image = f"{prefix}_{int(picture):012d}"
        question = text_of(entry, "question", asked_path, number)
        items.append(_item(name, image, question, known[name], path))
    if len(items) != len(known):
        raise damaged(asked_path, f"every question of {path.name}", f"{len(items)} of {len(known)}")
    return unique(items, asked_path)


def annotators(entry: Mapping[str, Any], path: Path, name: str) -> tuple[str, ...]:
    """The answers of an entry, each an object with ``answer``, or text.

    Raises:
        ValueError: no answers.
    """
    value: object = entry.get("answers")
    if isinstance(value, list) and value and all(isinstance(answer, str) for answer in value):
        return tuple(value)
    if not isinstance(value, list) or not value:
        raise damaged(path, f"the annotators' answers of question {name}", "none, as for a test split")
    return tuple(text_of(answer, "answer", path, number) for number, answer in enumerate(records(value, path), 1))


def _item(name: str, image: str, question: str, entry: Mapping[str, Any], path: Path) -> Item:
    group = str(entry.get("answer_type", "all"))
    return Item(name, image, question, annotators(entry, path, name), group, str(entry.get("question_type", group)))


def _prefix(content: Mapping[str, Any], path: Path) -> str:
    kind, split = (text_of(content, name, path, 1) for name in ("data_type", "data_subtype"))
    return f"{'COCO' if kind == 'mscoco' else kind}_{split}"
