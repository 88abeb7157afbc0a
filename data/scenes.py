"""The embedded world: procedural pictures with exact captions, questions and GenEval-style metadata, from a seed.

Nothing here is read from disk or downloaded. A picture is decided by its world, split, index and seed. The splits
``train`` and ``validation`` show the same combinations of attributes under different seeds; every scene of ``heldout``
is built around a combination that neither ever shows (``scene_world.held_out_facts`` defines what counts as shown).
"""

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from .scene_layout import compose
from .scene_prompts import prompts
from .scene_questions import Question, questions
from .scene_render import render
from .scene_requests import TAGS, Request, Tag, draw_request
from .scene_world import SPLITS, Scene, Split, Thing, World
from .sources import ImageSource

__all__ = [
    "Question",
    "Scene",
    "Scenes",
    "Thing",
    "World",
    "prompts",
    "questions",
    "render",
    "sample_scene",
    "scene_for",
]

WEIGHTS: Mapping[Tag, float] = {
    "single_object": 1.0,
    "two_object": 1.0,
    "counting": 1.0,
    "colors": 1.0,
    "position": 1.5,
    "color_attr": 1.5,
}


def sample_scene(
    world: World, split: Split, index: int, seed: int = 0, weights: Mapping[Tag, float] | None = None
) -> Scene:
    """The scene at an index of a split.

    Args:
        world: what scenes are made of.
        split: ``train`` and ``validation`` never show a held-out combination; ``heldout`` always asks for one, and
            therefore has no ``single_object`` scenes.
        index: any number from 0; scenes of different indices or splits draw from unrelated random streams.
        seed: chooses among equally distributed data sets.
        weights: relative frequency of the tasks, by tag; ``WEIGHTS`` by default, absent tags never occur.

    Raises:
        ValueError: if the split is unknown, or the weights name no task that the split has.
    """
    generator = _generator("scene", split, index, seed)
    tag = _draw_tag(split, WEIGHTS if weights is None else weights, generator)
    request = draw_request(world, tag, split == "heldout", generator)
    return scene_for(request, world, generator, known_only=True)


def scene_for(request: Request, world: World, generator: np.random.Generator, *, known_only: bool = False) -> Scene:
    """A scene that shows what a request asks for and nothing else; see ``scene_layout.compose`` for the rest."""
    things = compose(request, world, generator, known_only=known_only)
    return Scene(things, request.caption, request.tag, request.metadata(), int(generator.integers(2**31)))


class Scenes(ImageSource):
    """The embedded world as a source of captioned pictures.

    Args:
        world: a preset's name, or a world of one's own.
        split: ``train``, ``validation`` or ``heldout``; see ``sample_scene``.
        count: number of pictures.
        seed: chooses among equally distributed data sets.
        size: side of the pictures in pixels; the world's own by default.
        weights: relative frequency of the tasks, by tag; see ``sample_scene``.

    Raises:
        ValueError: if the count is below 1, or the world or split is unknown.
    """

    def __init__(
        self,
        world: Literal["full", "small"] | World = "full",
        split: Split = "train",
        count: int = 10_000,
        *,
        seed: int = 0,
        size: int | None = None,
        weights: dict[Tag, float] | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}; an empty source has no pictures")
        _check_split(split)
        base = World.named(world) if isinstance(world, str) else world
        self.world = base if size is None else base.resized(size)
        self.split: Split = split
        self.count = count
        self.seed = seed
        self.weights = weights
        self._last: tuple[int, Scene] | None = None  # pixels, caption and questions of a picture are asked for in turn

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What the picture at ``index`` shows.

        Raises:
            IndexError: if the index is not in ``[0, len)``.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"index must lie in 0 to {self.count - 1}, got {index}; raise count for more pictures")
        last = self._last
        if last is None or last[0] != index:
            last = self._last = index, sample_scene(self.world, self.split, index, self.seed, self.weights)
        return last[1]

    def pixels(self, index: int) -> np.ndarray:
        """The picture at ``index`` as ``(size, size, 3)`` uint8."""
        return render(self.scene(index), self.world)

    def picture(self, index: int) -> Image.Image:
        """The picture at ``index``, mode RGB."""
        return Image.fromarray(self.pixels(index))

    def caption(self, index: int) -> str:
        """What was asked of the picture at ``index``, in words."""
        return self.scene(index).caption

    def name(self, index: int) -> str:
        """Split and index, for messages."""
        return f"{self.split}-{index:06d}"

    def questions(self, index: int) -> list[Question]:
        """Questions about the picture at ``index``, the same at every call."""
        generator = _generator("questions", self.split, index, self.seed)
        return questions(self.scene(index), self.world, generator)


def _generator(purpose: str, split: Split, index: int, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose}/{split}/{index}/{seed}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _draw_tag(split: Split, weights: Mapping[Tag, float], generator: np.random.Generator) -> Tag:
    _check_split(split)
    unknown = sorted(set(weights) - set(TAGS))
    if unknown:
        raise ValueError(f"weights must be given for {', '.join(TAGS)}, got {unknown[0]!r}; correct the name")
    tags: list[Tag] = [
        tag for tag in TAGS if weights.get(tag, 0) > 0 and (split != "heldout" or tag != "single_object")
    ]
    if not tags:
        raise ValueError(f"weights must be above 0 for a task of the {split} split, got {dict(weights)}; raise one")
    limits = np.cumsum([weights[tag] for tag in tags])
    return tags[int(np.searchsorted(limits, generator.random() * limits[-1], side="right"))]


def _check_split(split: Split) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}; correct the name")
