"""Answers given elsewhere: a file of them, in the benchmarks' own result formats, matched to the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from .items import Item, damaged, read_json, read_records, read_text, text_of

_IDS = ("question_id", "questionId", "image_id", "id", "index")
_TEXTS = ("answer", "text", "prediction", "caption")


def read_answers(path: Path, items: Sequence[Item]) -> list[str]:
    """One answer for each question, in the order of the questions.

    Args:
        path: a JSON list or JSONL of ``{question_id, answer}`` or ``{question_id, text}`` (LLaVA, VQAv2, SEED-Bench),
            ``{questionId, prediction}`` (GQA) or ``{image_id, caption}`` (COCO); a JSON object of answers by id; JSONL
            of ``{question, answer}`` in the order of the questions (POPE); or a folder of ``subtask.txt`` with lines
            ``picture<TAB>question<TAB>truth<TAB>answer`` (MME).
        items: the questions, whose ids differ.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a question without an answer or with two, or an answer to an unknown question.
    """
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"expected ids that differ in all splits, got {len(ids) - len(set(ids))} that repeat; give one answers "
            "file for each split, in the order of the splits"
        )
    given = _mme(path, items) if path.is_dir() else _by_id(path, items)
    unknown = next((name for name in given if name not in set(ids)), None)
    if unknown is not None:
        raise ValueError(
            f"expected answers to the benchmark's questions in {path}, got one to {unknown!r}, which it does not ask; "
            "give the answers to this file"
        )
    missing = [name for name in ids if name not in given]
    if missing:
        raise ValueError(
            f"expected an answer to each of {len(ids)} questions in {path}, got {len(given)}, none to {missing[0]!r}; "
            "answer every question"
        )
    return [given[name] for name in ids]


def _by_id(path: Path, items: Sequence[Item]) -> dict[str, str]:
    text = read_text(path).lstrip()
    if text.startswith("{") and "\n{" not in text.rstrip():
        content = cast("Mapping[str, object]", read_json(path))
        if (
            content
            and all(isinstance(value, str) for value in content.values())
            and not set(content) & {*_IDS, *_TEXTS, "question"}
        ):
            return {name: str(value) for name, value in content.items()}
    entries = read_records(path)
    if not any(name in entries[0] for name in _IDS) and "question" in entries[0]:
        return _in_order(entries, items, path)
    given: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        name, answer = (_field(entry, names, path, number) for names in (_IDS, _TEXTS))
        if name in given:
            raise damaged(path, "one answer to every question", f"two to question {name!r}")
        given[name] = answer
    return given


def _field(entry: Mapping[str, Any], names: Sequence[str], path: Path, number: int) -> str:
    found = next((name for name in names if name in entry), None)
    if found is None:
        raise damaged(path, f"one of the fields {', '.join(names)}", f"none in entry {number}")
    return text_of(entry, found, path, number)


def _in_order(entries: Sequence[Mapping[str, Any]], items: Sequence[Item], path: Path) -> dict[str, str]:
    if len(entries) != len(items):
        raise damaged(path, f"{len(items)} answers in the order of the questions", str(len(entries)))
    for number, (entry, item) in enumerate(zip(entries, items, strict=True), 1):
        if entry["question"] != item.question:
            raise damaged(path, f"question {item.id} as entry {number}", repr(entry["question"]))
    return {
        item.id: text_of(entry, "answer", path, number)
        for number, (entry, item) in enumerate(zip(entries, items, strict=True), 1)
    }


def _mme(folder: Path, items: Sequence[Item]) -> dict[str, str]:
    asked = {(item.origin, item.question): item.id for item in items}
    given: dict[str, str] = {}
    for path in sorted(folder.glob("*.txt")):
        for number, line in enumerate(read_text(path).splitlines(), 1):
            fields = line.split("\t")
            if len(fields) != 4:
                raise damaged(path, f"picture, question, truth and answer with tabs in line {number}", repr(line[:40]))
            origin, question = f"{path.stem}/{fields[0]}", fields[1]
            given[asked.get((origin, question), f"{origin}: {question}")] = fields[3]
    return given
