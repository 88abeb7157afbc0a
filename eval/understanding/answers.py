"""Answers given elsewhere: a file of them, in the benchmarks' own result formats, matched to the questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from .items import Item, damaged, read_json, read_records, read_text, text_of

#: The field that tells questions of one id in several splits apart.
GROUP = "group"

_IDS = ("question_id", "questionId", "image_id", "id", "index")
_TEXTS = ("answer", "text", "prediction", "caption")
_ASKED = ("prompt", "question")
_REPEATED = f"a {GROUP!r} in every entry, or one answers file for each split, as ids repeat in the splits,"


def read_answers(path: Path, items: Sequence[Item]) -> list[str]:
    """One answer for each question, in the order of the questions.

    Args:
        path: a JSON list or JSONL of ``{question_id, answer}`` or ``{question_id, text}`` (LLaVA, VQAv2, SEED-Bench),
            ``{questionId, prediction}`` (GQA) or ``{image_id, caption}`` (COCO); a JSON object of answers by id; JSONL
            of ``{question, answer}`` in the order of the questions (POPE); or a folder of ``subtask.txt`` with lines
            ``picture<TAB>question<TAB>truth<TAB>answer`` (MME). A ``prompt`` or ``question`` beside an id must be the
            question, whatever is put behind it.
        items: the questions. Where ids repeat in several splits, every entry must name its split as ``group``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a question without an answer or with two, an answer to an unknown question or to
            another one of the same id, or questions in place of answers.
    """
    ids = _names(items)
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


def read_split_answers(
    paths: Sequence[Path], groups: Sequence[str], items: Sequence[Item], known: Sequence[str] = ()
) -> list[str]:
    """One answer for each question, from one file for every split.

    Args:
        paths: files as `read_answers` takes them.
        groups: the split that each of them answers.
        items: the questions of all splits.
        known: other splits that there are.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: another number of files than of splits, a file named after another split than it is given for, or
            as `read_answers`.
    """
    if len(paths) != len(groups):
        raise ValueError(
            f"expected one answers file for each of {len(groups)} splits, got {len(paths)}; give them in the order of "
            "the splits' files"
        )
    found: dict[str, list[str]] = {}
    for path, group in zip(paths, groups, strict=True):
        named = set(re.split(r"[\W_]+", path.stem.lower())) & {name.lower() for name in (*groups, *known)}
        if named and group.lower() not in named:
            raise ValueError(
                f"expected answers to split {group!r}, got {path.name}, named after {', '.join(sorted(named))}; give "
                "answers in the order of the splits' files"
            )
        found[group] = read_answers(path, [item for item in items if item.group == group])
    left = {group: iter(answers) for group, answers in found.items()}
    return [next(left[item.group]) for item in items]


def _names(items: Sequence[Item]) -> list[str]:
    """What tells the questions apart: their ids, with their split where ids repeat."""
    ids = [item.id for item in items]
    return ids if len(set(ids)) == len(ids) else [_name(item.group, item.id) for item in items]


def _name(group: str, name: str) -> str:
    return f"{group}: {name}"


def _by_id(path: Path, items: Sequence[Item]) -> dict[str, str]:
    repeated, text = len({item.id for item in items}) < len(items), read_text(path).lstrip()
    if text.startswith("{") and "\n{" not in text.rstrip():
        content = cast("Mapping[str, object]", read_json(path))
        if (
            content
            and all(isinstance(value, str) for value in content.values())
            and not set(content) & {*_IDS, *_TEXTS, "question"}
        ):
            if repeated:
                raise damaged(path, _REPEATED, "answers by id")
            return {name: str(value) for name, value in content.items()}
    entries = read_records(path)
    if not any(name in entries[0] for name in _IDS) and "question" in entries[0]:
        return _in_order(entries, items, path)
    asked = dict(zip(_names(items), items, strict=True))
    given: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        _check_answers(entry, path, number)
        name, answer = (_field(entry, names, path, number) for names in (_IDS, _TEXTS))
        if repeated:
            if GROUP not in entry:
                raise damaged(path, _REPEATED, f"none in entry {number}")
            name = _name(text_of(entry, GROUP, path, number), name)
        if name in given:
            raise damaged(path, "one answer to every question", f"two to question {name!r}")
        if name in asked:
            _check_question(entry, asked[name], path, number)
        given[name] = answer
    return given


def _check_answers(entry: Mapping[str, Any], path: Path, number: int) -> None:
    """Refuse an entry of a benchmark's questions, whose ``text`` would be taken for an answer."""
    question = next((name for name in ("label", "image") if name in entry), None)
    others = {*_TEXTS, *_ASKED} - {"text"}
    if question is not None and others.isdisjoint(entry):
        raise damaged(path, "answers", f"a question with its {question!r} as entry {number}")


def _check_question(entry: Mapping[str, Any], item: Item, path: Path, number: int) -> None:
    """Refuse an answer to another question of the same id; a suffix may follow the question, a hint stand above it."""
    for name in _ASKED:
        said: object = entry.get(name)
        if isinstance(said, str) and not said.startswith(item.question) and not item.question.endswith(f"\n{said}"):
            raise damaged(path, f"{item.question!r} as {name!r} of question {item.id} in entry {number}", repr(said))


def _field(entry: Mapping[str, Any], names: Sequence[str], path: Path, number: int) -> str:
    found = next((name for name in names if name in entry), None)
    if found is None:
        raise damaged(path, f"one of the fields {', '.join(names)}", f"none in entry {number}")
    return text_of(entry, found, path, number)


def _in_order(entries: Sequence[Mapping[str, Any]], items: Sequence[Item], path: Path) -> dict[str, str]:
    if len({item.id for item in items}) < len(items):
        raise damaged(path, _REPEATED, "answers without ids")
    if len(entries) != len(items):
        raise damaged(path, f"{len(items)} answers in the order of the questions", str(len(entries)))
    for number, (entry, item) in enumerate(zip(entries, items, strict=True), 1):
        question = text_of(entry, "question", path, number)
        if question != item.question:
            raise damaged(path, f"question {item.id} as entry {number}", repr(question))
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
            name = asked.get((origin, question), f"{origin}: {question}")
            if name in given:
                raise damaged(path, "one answer to every question", f"two to question {name!r}")
            given[name] = fields[3]
    return given
