"""MME (arXiv 2306.13394): two yes-no questions per picture, in ten perception and four cognition subtasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .items import Item, Normalisation, Scores, damaged, read_text
from .pope import plain_yes_or_no

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_PICTURES = (".jpg", ".jpeg", ".png")


def read_mme(files: Sequence[Path]) -> list[Item]:
    """Questions of a release folder.

    A subtask is a folder of pictures, each with a text file of its name of two lines ``question<TAB>Yes`` or ``No``,
    beside it or in ``images`` and ``questions_answers_YN``. Ids are ``subtask/picture/1`` and ``/2``.

    Args:
        files: the release's folder alone.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: something else, an unknown subtask, a picture without questions, or other lines.
    """
    if len(files) != 1 or not files[0].is_dir():
        raise FileNotFoundError(f"MME is read from its one folder, got {', '.join(map(str, files))}; give the folder")
    folders = sorted(path for path in files[0].iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [path.name for path in folders if path.name not in PERCEPTION + COGNITION]
    if unknown or not folders:
        raise damaged(files[0], "folders named as MME's subtasks", unknown[0] if unknown else "no folder")
    return [item for folder in folders for item in _subtask(folder)]


def mme_yes_or_no(answer: str) -> str:
    """The official parser: yes or no in the first four characters of the answer in lower case, else ``other``."""
    start = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def score_mme(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """For each subtask 100 times the accuracy over questions plus 100 times that over pictures (both questions right).

    ``perception`` (2000 at most) and ``cognition`` (800) are given where all their subtasks are there; ``total`` sums
    whatever is there. ``official`` looks for yes and no in the first four characters, ``always`` among all words.
    """
    parse = mme_yes_or_no if normalisation == "official" else plain_yes_or_no
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, answer in zip(items, answers, strict=True):
        right[item.group][item.origin].append(parse(answer) == item.answers[0])
    subtasks = {name: _points(list(pictures.values())) for name, pictures in right.items()}
    scores: Scores = {"total": sum(part["score"] for part in subtasks.values())}
    for name, parts in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if set(parts) <= set(subtasks):
            scores[name] = sum(subtasks[part]["score"] for part in parts)
    scores["subtasks"] = {name: {**part} for name, part in subtasks.items()}
    return scores


def _points(pictures: Sequence[Sequence[bool]]) -> dict[str, float]:
    flat = [hit for picture in pictures for hit in picture]
    accuracy, plus = sum(flat) / len(flat), sum(map(all, pictures)) / len(pictures)
    return {"score": 100 * (accuracy + plus), "accuracy": accuracy, "accuracy_plus": plus}


def _subtask(folder: Path) -> list[Item]:
    nested = folder / "questions_answers_YN"
    texts = sorted((nested if nested.is_dir() else folder).glob("*.txt"))
    if not texts:
        raise damaged(folder, "text files of questions", "none")
    pictures = folder / "images" if nested.is_dir() else folder
    return [item for text in texts for item in _pair(text, pictures, folder.name)]


def _pair(text: Path, pictures: Path, subtask: str) -> list[Item]:
    found = [pictures / f"{text.stem}{suffix}" for suffix in _PICTURES]
    picture = next((path for path in found if path.is_file()), None)
    if picture is None:
        raise damaged(pictures, f"a picture for {text.name}", "none")
    lines = [line.rpartition("\t") for line in read_text(text).splitlines() if line.strip()]
    if len(lines) != 2 or any(answer.strip().lower() not in ("yes", "no") for _, _, answer in lines):
        raise damaged(text, "two lines of a question, a tab, and Yes or No", f"{len(lines)} lines, or others")
    origin, image = f"{subtask}/{picture.name}", picture.relative_to(pictures.parent.parent).as_posix()
    if pictures.name != "images":
        image = origin
    return [
        Item(
            f"{origin}/{number}",
            image,
            question,
            (answer.strip().lower(),),
            subtask,
            subtask,
            ("yes", "no"),
            origin=origin,
        )
        for number, (question, _, answer) in enumerate(lines, 1)
    ]
