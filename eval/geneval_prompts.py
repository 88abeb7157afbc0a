"""The 553 official prompts of GenEval (arXiv 2310.11513), drawn anew and byte-identical to the published file.

The names of classes, colours and relations, the plurals and the order of the draws are GenEval's (MIT, Dhruba Ghosh
2023). Wrong plurals ("two sheeps") are part of the published prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from ..data.files import atomic_file
from ..data.scene_prompts import prompts_sha256, to_jsonl
from .geneval import COLORS

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,"
    "tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,"
    "tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
#: The 80 classes of COCO in its order, under GenEval's names ("computer mouse", "tv remote", "computer keyboard").
COCO_NAMES = tuple(_NAMES.split(","))
#: SHA-256 of the published ``evaluation_metadata.jsonl``, which `write_geneval_prompts` writes.
GENEVAL_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"

_SEED, _DRAWS_PER_TASK = 43, 100
_RELATIONS = ("left of", "right of", "above", "below")
_NUMBERS = ("two", "three", "four")

Entry = dict[str, Any]


def geneval_prompts() -> list[Entry]:
    """The 553 entries in the published order, each with ``tag``, ``include``, ``prompt`` and, if counting, ``exclude``.

    They are drawn with numpy's default generator, whose streams a later numpy may change.

    Raises:
        ValueError: if the installed numpy draws other prompts: ``prompts_sha256`` of the entries must be
            :data:`GENEVAL_SHA256`.
    """
    rng = np.random.default_rng(_SEED)
    every = [_single_object(name) for name in _classes(rng, len(COCO_NAMES))]
    for draw in (_two_object, _counting, _color, _position, _color_pair):
        every += [draw(rng) for _ in range(_DRAWS_PER_TASK)]
    unique: dict[str, Entry] = {}
    for entry in every:
        unique.setdefault(entry["prompt"], entry)
    entries = list(unique.values())
    found = prompts_sha256(entries)
    if found != GENEVAL_SHA256:
        raise ValueError(
            f"GenEval's prompts must have the sha256 {GENEVAL_SHA256}, got {found} under numpy {np.__version__}, whose "
            "random stream has changed; use an earlier numpy"
        )
    return entries


def write_geneval_prompts(path: str | Path) -> None:
    """Write the entries as ``evaluation_metadata.jsonl``, byte for byte the published file.

    Raises:
        ValueError: if the installed numpy draws other prompts.
    """
    text = to_jsonl(geneval_prompts())
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_prompt_texts(path: str | Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the prompts alone as ``generation_prompts.txt``, one a line, in the order of the entries."""
    with atomic_file(path) as partial:
        partial.write_text("".join(entry["prompt"] + "\n" for entry in entries), encoding="utf-8", newline="\n")


def _single_object(name: str) -> Entry:
    return _entry("single_object", [_wanted(name)], _with_article(name))


def _two_object(rng: Generator) -> Entry:
    first, second = _classes(rng, 2)
    text = f"{_with_article(first)} and {_with_article(second)}"
    return _entry("two_object", [_wanted(first), _wanted(second)], text)


def _counting(rng: Generator) -> Entry:
    name = COCO_NAMES[int(rng.choice(len(COCO_NAMES)))]
    count = int(rng.integers(2, 4, endpoint=True))
    plural = name + ("es" if name.endswith("s") else "s")
    exclude = [{"class": name, "count": count + 1}]
    return _entry("counting", [{"class": name, "count": count}], f"{_NUMBERS[count - 2]} {plural}", exclude)


def _color(rng: Generator) -> Entry:
    name = COCO_NAMES[1 + int(rng.choice(len(COCO_NAMES) - 1))]  # all but the first class, "person"
    color = COLORS[int(rng.choice(len(COLORS)))]
    return _entry("colors", [_wanted(name, color=color)], f"{_with_article(color)} {name}")


def _position(rng: Generator) -> Entry:
    subject, target = _classes(rng, 2)
    relation = _RELATIONS[int(rng.choice(len(_RELATIONS)))]
    include = [_wanted(target), _wanted(subject, position=[relation, 0])]
    return _entry("position", include, f"{_with_article(subject)} {relation} {_with_article(target)}")


def _color_pair(rng: Generator) -> Entry:
    names = [COCO_NAMES[1 + int(index)] for index in rng.choice(len(COCO_NAMES) - 1, size=2, replace=False)]
    colors = [COLORS[int(index)] for index in rng.choice(len(COLORS), size=2, replace=False)]
    pairs = list(zip(names, colors, strict=True))
    text = " and ".join(f"{_with_article(color)} {name}" for name, color in pairs)
    return _entry("color_attr", [_wanted(name, color=color) for name, color in pairs], text)


def _classes(rng: Generator, count: int) -> list[str]:
    return [COCO_NAMES[int(index)] for index in rng.choice(len(COCO_NAMES), size=count, replace=False)]


def _wanted(name: str, **more: object) -> Entry:
    return {"class": name, "count": 1, **more}


def _entry(tag: str, include: list[Entry], text: str, exclude: list[Entry] | None = None) -> Entry:
    limits = {} if exclude is None else {"exclude": exclude}
    return {"tag": tag, "include": include, **limits, "prompt": f"a photo of {text}"}


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
