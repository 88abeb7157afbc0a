"""The embedded world in the benchmarks' own file formats, so that what scores real answers also scores it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...data.files import atomic_folder
from ...data.scene_questions import Question
from ...data.scene_relations import MIRROR
from ...data.scene_requests import Request
from ...data.scene_world import Scene, Split, World
from ...data.scenes import Scenes

_ANNOTATORS = 10
_PER_PICTURE = 10  #: ids of questions are those of their picture times this, plus 0 to 9

#: Kinds of yes-no question, each a split of POPE's format.
_BINARY = ("existence", "adversarial", "binding")


def export_scenes(
    folder: str | Path,
    world: Literal["full", "small"] | World = "full",
    count: int = 1000,
    seed: int = 0,
    split: Split = "validation",
) -> dict[str, int]:
    """Write pictures and their questions and captions.

    ``images/`` holds the pictures as PNG, ``pope_existence.json``, ``pope_adversarial.json`` and ``pope_binding.json``
    the yes-no questions as POPE's splits, ``vqa_questions.json`` and ``vqa_annotations.json`` all questions as VQAv2's
    (ten equal answers), ``gqa_questions.json`` the same as GQA's, and ``captions.json`` the captions as COCO's. Of a
    picture of two things, its caption told from the other thing is a second reference.

    Args:
        folder: new, or empty.
        world: what scenes are made of.
        count: pictures.
        seed: chooses among equally distributed sets of scenes.
        split: ``validation`` or ``heldout`` for scores of a model that was trained on scenes.

    Returns:
        Number of questions by kind.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: no pictures, or an unknown world or split.
    """
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise FileExistsError(
            f"a new or empty folder is needed for scenes, got {folder} with files in it; name another"
        )
    source = Scenes(world, split, count, seed=seed)
    asked = [(index, number, q) for index in range(count) for number, q in enumerate(source.questions(index))]
    with atomic_folder(folder) as partial:
        (partial / "images").mkdir()
        for index in range(count):
            source.picture(index).save(partial / "images" / f"{_name(source, index)}.png")
        for kind in _BINARY:
            entries = [_pope(source, index, number, q) for index, number, q in asked if q.kind == kind]
            _write_lines(partial / f"pope_{kind}.json", entries)
        _write(partial / "vqa_questions.json", _vqa_questions(source, asked))
        _write(partial / "vqa_annotations.json", _vqa_annotations(source, asked))
        _write(partial / "gqa_questions.json", _gqa(source, asked))
        _write(partial / "captions.json", _captions(source))
    kinds = [q.kind for _, _, q in asked]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def references(scene: Scene) -> list[str]:
    """The caption of a scene, and where it names two things also the one told from the other of them."""
    request = Request.from_metadata(scene.metadata)
    if len(request.shapes) == 1:
        return [scene.caption]
    relation = None if request.relation is None else MIRROR[request.relation]
    turned = Request(request.tag, request.shapes[::-1], request.colors[::-1], 1, relation)
    return [scene.caption, turned.caption]


_Asked = Sequence[tuple[int, int, Question]]


def _name(source: Scenes, index: int) -> str:
    """As VQA files of other pictures than COCO's name theirs."""
    return f"scenes_{source.split}_{index:012d}"


def _id(index: int, number: int) -> int:
    return index * _PER_PICTURE + number


def _pope(source: Scenes, index: int, number: int, question: Question) -> dict[str, Any]:
    return {
        "question_id": _id(index, number),
        "image": f"{_name(source, index)}.png",
        "text": question.question,
        "label": question.answer,
    }


def _vqa_header(source: Scenes) -> dict[str, Any]:
    about = {"description": "scenes", "version": "1", "world": source.world.to_dict(), "seed": source.seed}
    return {"info": about, "data_type": "scenes", "data_subtype": source.split, "license": {}}


def _vqa_questions(source: Scenes, asked: _Asked) -> dict[str, Any]:
    entries = [{"image_id": i, "question": q.question, "question_id": _id(i, number)} for i, number, q in asked]
    return _vqa_header(source) | {"task_type": "Open-Ended", "questions": entries}


def _vqa_annotations(source: Scenes, asked: _Asked) -> dict[str, Any]:
    entries = [
        {
            "image_id": index,
            "question_id": _id(index, number),
            "question_type": q.kind,
            "answer_type": _answer_type(q),
            "multiple_choice_answer": q.answer,
            "answers": [
                {"answer": q.answer, "answer_confidence": "yes", "answer_id": annotator}
                for annotator in range(1, _ANNOTATORS + 1)
            ],
        }
        for index, number, q in asked
    ]
    return _vqa_header(source) | {"annotations": entries}


def _answer_type(question: Question) -> str:
    if question.kind in _BINARY:
        return "yes/no"
    return "number" if question.kind == "count" else "other"


def _gqa(source: Scenes, asked: _Asked) -> dict[str, Any]:
    return {
        str(_id(index, number)): {
            "imageId": _name(source, index),
            "question": q.question,
            "answer": q.answer,
            "types": {"structural": "verify" if q.kind in _BINARY else "query", "detailed": q.kind},
            "isBalanced": True,
        }
        for index, number, q in asked
    }


def _captions(source: Scenes) -> dict[str, Any]:
    said = [(index, text) for index in range(len(source)) for text in references(source.scene(index))]
    return {
        "images": [
            {"id": i, "file_name": f"{_name(source, i)}.png", "width": source.world.size, "height": source.world.size}
            for i in range(len(source))
        ],
        "annotations": [
            {"image_id": index, "id": number, "caption": text} for number, (index, text) in enumerate(said)
        ],
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
