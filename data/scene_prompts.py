"""The world's prompt file: GenEval's schema and tags (arXiv 2310.11513), training and held-out requests together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_file
from .scene_requests import TAGS, Request, Tag, requests
from .scene_world import World

# Shares of all requests of a task; they make 45, 77 and 98 prompts of the full world's 56, 224 and 5,040.
_SHARES: dict[Tag, float] = {"two_object": 45 / 56, "position": 77 / 224}
_PAIRS_PER_COLORED_SHAPE = 98 / 80


def prompts(world: World, seed: int = 0) -> list[dict[str, Any]]:
    """The prompts of SceneEval, in GenEval's task order.

    Every shape, every count above one and every coloured shape is asked for; ordered pairs, positions and pairs of
    coloured shapes are drawn, with training and held-out requests in the proportion in which they exist. The full
    world has 8, 45, 24, 80, 77 and 98 prompts.

    Args:
        world: decides what can be asked.
        seed: decides the drawn prompts and the order within each task.

    Returns:
        Entries of a GenEval JSONL file, each with ``seen``: whether training showed everything it combines.
    """
    generator = np.random.default_rng(seed)
    return [
        {**request.metadata(), "seen": not request.held_out(world)}
        for tag in TAGS
        for request in _task(world, tag, generator)
    ]


def to_jsonl(entries: Sequence[Mapping[str, Any]]) -> str:
    """The prompts as the text of a JSONL file, one entry a line."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def prompts_sha256(entries: Sequence[Mapping[str, Any]]) -> str:
    """Hex digest of ``to_jsonl``: equal for equal prompts in equal order."""
    return hashlib.sha256(to_jsonl(entries).encode()).hexdigest()


def write_prompts(path: str | Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the prompts as a JSONL file, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(to_jsonl(entries), encoding="utf-8")


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSONL file of prompts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is not a JSON object with ``tag``, ``include`` and ``prompt``.
    """
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(_existing(path).read_text(encoding="utf-8").splitlines(), start=1):
        entry = _parsed(line)
        if entry is None:
            raise ValueError(
                f"{path}:{number} must be an object with tag, include and prompt, got {line[:60]!r}; fix it"
            )
        entries.append(entry)
    return entries


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a prompt file at {path}, found none; write one with write_prompts")
    return Path(path)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and {"tag", "include", "prompt"} <= entry.keys() else None


def _task(world: World, tag: Tag, generator: np.random.Generator) -> list[Request]:
    """The task's prompts: all of its requests or a sample, known and held out in their natural proportion."""
    known, held_out = requests(world, tag, held_out=False), requests(world, tag, held_out=True)
    known = tuple(request for request in known if tag != "counting" or request.count > 1)
    total = len(known) + len(held_out)
    wanted = round(_SHARES.get(tag, 1.0) * total)
    if tag == "color_attr":
        wanted = min(total, round(_PAIRS_PER_COLORED_SHAPE * len(world.shapes) * len(world.colors)))
    from_held_out = round(wanted * len(held_out) / total)
    chosen = _sample(known, wanted - from_held_out, generator) + _sample(held_out, from_held_out, generator)
    return [chosen[i] for i in generator.permutation(len(chosen))]


def _sample(pool: tuple[Request, ...], count: int, generator: np.random.Generator) -> list[Request]:
    return [pool[i] for i in generator.permutation(len(pool))[:count]]
