"""GQA (arXiv 1902.09506): compositional questions with one answer each, from ``testdev_balanced_questions.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from .items import Item, Normalisation, Scores, damaged, mapping, read_json, text_of
from .vqa_accuracy import grouped


def read_gqa(files: Sequence[Path]) -> list[Item]:
    """Questions of one split.

    Args:
        files: one file, a JSON object ``{question id: {imageId, question, answer, types}}``.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: more files, a damaged one, or a split without answers.
    """
    if len(files) != 1:
        raise ValueError(f"GQA is read from one file, got {len(files)}; give testdev_balanced_questions.json")
    (path,) = files
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise damaged(path, "questions by id", type(content).__name__ if content else "none")
    entries = cast("Mapping[str, object]", content)
    return [_item(name, entry, path, number) for number, (name, entry) in enumerate(entries.items(), 1)]


def score_gqa(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """Share of right answers, over all and by structural type.

    ``official`` wants the very string. ``always`` forgives case, outer spaces and a final dot, which is what changed
    copies of the official script do.
    """
    same = _exact if normalisation == "official" else _relaxed
    each = [float(same(answer) == same(item.answers[0])) for item, answer in zip(items, answers, strict=True)]
    return grouped("accuracy", items, each)


def _item(name: str, entry: object, path: Path, number: int) -> Item:
    fields = mapping(entry, f"question {name}", path)
    image, question, answer = (text_of(fields, field, path, number) for field in ("imageId", "question", "answer"))
    types = mapping(fields.get("types") or {}, f"'types' of question {name}", path)
    group = str(types.get("structural") or "all")
    return Item(name, image, question, (answer,), group, str(types.get("detailed") or group))


def _exact(answer: str) -> str:
    return answer


def _relaxed(answer: str) -> str:
    return answer.strip().removesuffix(".").strip().lower()
