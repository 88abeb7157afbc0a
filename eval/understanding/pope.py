"""POPE: whether a model sees what is not there (arXiv 2305.10355). One JSONL file per split; MIT, pictures of COCO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .items import Item, Normalisation, Scores, damaged, read_records, text_of, unique

SPLITS = ("random", "popular", "adversarial")  #: the published ones

_FIELDS = ("question_id", "image", "text", "label")


def read_pope(files: Sequence[Path]) -> list[Item]:
    """Questions of one or more splits, the published ones first, whatever the order of the files.

    Args:
        files: one JSONL file per split, of ``{question_id, image, text, label}``. The split is the last word of the
            file's name, as in ``coco_pope_popular.json``; ids are unique within it only.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a damaged or foreign file, or two files of one split.
    """
    items = list[Item]()
    for path in sorted(files, key=_order):
        split = split_of(path)
        if any(item.group == split for item in items):
            raise damaged(path, "a split of its own", f"{split!r} twice")
        items += unique(_read(path, split), path)
    return items


def split_of(path: Path) -> str:
    """The split that a file of questions is named after."""
    return path.stem.rpartition("_")[2]


def yes_or_no(answer: str) -> str:
    """POPE's own parser: of the first sentence without commas, ``no`` if a word is "No", "no" or "not", else ``yes``.

    An empty answer is therefore a yes, and so are "NO" and "no!".
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def plain_yes_or_no(answer: str) -> str | None:
    """``no`` if a word is "no" or "not", ``yes`` if a word is "yes", in any case and beside any mark; else None."""
    words = set(re.findall(r"[a-z]+", answer.lower()))
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else None


def score_pope(items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation) -> Scores:
    """Accuracy, precision, recall and F1 of "yes", and the share of yes among the predictions.

    Each is the mean over the splits. ``official`` parses as POPE's script does. ``always`` takes "yes", "no" and "not"
    in any case and beside any mark; what holds none of them is wrong, counts as ``unparsed``, and is a missed yes where
    yes was right, so that recall does not rise with it.
    """
    groups = list(dict.fromkeys(item.group for item in items))
    splits: Scores = {}
    for group in groups:
        pairs = [(item, answer) for item, answer in zip(items, answers, strict=True) if item.group == group]
        splits[group] = _score(pairs, normalisation)
    names = ("f1", "accuracy", "precision", "recall", "yes_ratio", "unparsed")
    parts = [part for part in splits.values() if isinstance(part, dict)]
    means: Scores = {name: sum(float(part[name]) for part in parts) / len(parts) for name in names}  # pyright: ignore[reportArgumentType]: leaves
    return means | ({"splits": splits} if len(parts) > 1 else {})


def _score(pairs: Sequence[tuple[Item, str]], normalisation: Normalisation) -> Scores:
    parse = yes_or_no if normalisation == "official" else plain_yes_or_no
    read = [(item.answers[0], parse(answer)) for item, answer in pairs]
    hits = sum(pair == ("yes", "yes") for pair in read)
    said, true = sum(given == "yes" for _, given in read), sum(label == "yes" for label, _ in read)
    precision, recall = hits / max(said, 1), hits / max(true, 1)
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": sum(label == given for label, given in read) / len(read),
        "precision": precision,
        "recall": recall,
        "yes_ratio": said / len(read),
        "unparsed": sum(given is None for _, given in read) / len(read),
    }


def _order(path: Path) -> tuple[int, str]:
    split = split_of(path)
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def _read(path: Path, split: str) -> list[Item]:
    items = list[Item]()
    for number, entry in enumerate(read_records(path), 1):
        name, image, question, label = (text_of(entry, field, path, number) for field in _FIELDS)
        if label not in ("yes", "no"):
            raise damaged(path, f"yes or no as 'label' of entry {number}", repr(label))
        items.append(Item(name, image, question, (label,), split, split, ("yes", "no")))
    return items
