"""What a caption asks for: GenEval's six tasks (arXiv 2310.11513) as requests, their words and their metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any, Literal, Self, get_args

import numpy as np

from .scene_relations import RELATIONS
from .scene_world import World

Tag = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]

TAGS: tuple[Tag, ...] = get_args(Tag)
COUNT_WORDS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Request:
    """One caption before it is words."""

    tag: Tag
    shapes: tuple[str, ...]  #: one, or two different ones; for a position the thing that is placed comes first
    colors: tuple[str | None, ...]  #: one per shape, None where any colour will do
    count: int = 1  #: how many things of the only shape; 1 where there are two shapes
    relation: str | None = None  #: one of ``RELATIONS``: where the first shape is, seen from the second

    @property
    def caption(self) -> str:
        """The request in words: lower case, no punctuation."""
        if self.tag == "counting":
            return f"{COUNT_WORDS[self.count]} {plural(self.shapes[0]) if self.count > 1 else self.shapes[0]}"
        phrases = [_phrase(shape, color) for shape, color in zip(self.shapes, self.colors, strict=True)]
        return f" {self.relation or 'and'} ".join(phrases)

    def metadata(self) -> dict[str, Any]:
        """The request as an entry of GenEval's JSONL file: a position lists its target first, a count its excess."""
        include = [_included(shape, color, self.count) for shape, color in zip(self.shapes, self.colors, strict=True)]
        if self.relation is not None:
            include.reverse()
            include[1]["position"] = [self.relation, 0]
        entry: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            entry["exclude"] = [{"class": self.shapes[0], "count": self.count + 1}]
        return {**entry, "prompt": self.caption}

    @classmethod
    def from_metadata(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of the world's prompt file back.

        Args:
            entry: metadata as written by ``metadata``; further fields are ignored.

        Raises:
            ValueError: if the tag is unknown, or the entry asks for more than its task can.
        """
        if entry["tag"] not in TAGS:
            raise ValueError(f"tag must be one of {', '.join(TAGS)}, got {entry['tag']!r}; correct the prompt file")
        include = list(entry["include"])
        relation: str | None = None
        if len(include) == 2 and "position" in include[1]:
            include.reverse()
            relation = include[0]["position"][0]
        shapes = tuple(item["class"] for item in include)
        if len(include) > 2 or len(set(shapes)) < len(shapes) or (len(include) == 2 and include[0]["count"] != 1):
            raise ValueError(f"a prompt must ask for one shape or for two single ones, got {include}; split the prompt")
        return cls(entry["tag"], shapes, tuple(item.get("color") for item in include), include[0]["count"], relation)

    def held_out(self, world: World) -> bool:
        """Whether the request names a combination that training never shows."""
        colored = [(shape, color) for shape, color in zip(self.shapes, self.colors, strict=True) if color is not None]
        if any(world.color_held_out(shape, color) for shape, color in colored):
            return True
        if len(self.shapes) == 1:
            return world.count_held_out(self.shapes[0], self.count)
        if world.pair_held_out(*self.shapes):
            return True
        return self.relation is not None and world.relation_held_out(self.shapes[0], self.relation, self.shapes[1])


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


@lru_cache(maxsize=64)  # a colour pair task has thousands of requests, and every scene of a training run draws one
def requests(world: World, tag: Tag, held_out: bool) -> tuple[Request, ...]:
    """Every request of a task that the world allows, in a fixed order.

    Args:
        world: decides shapes, colours, counts and what is held out.
        tag: the task; ``single_object`` names no combination, so none of its requests is held out.
        held_out: whether the requests shall be those that training never shows.
    """
    return tuple(request for request in _all_requests(world, tag) if request.held_out(world) == held_out)


def draw_request(world: World, tag: Tag, held_out: bool, generator: np.random.Generator) -> Request:
    """One request of a task, all being equally likely.

    Raises:
        ValueError: if the task has none, as ``single_object`` has none that is held out.
    """
    choices = requests(world, tag, held_out)
    if not choices:
        raise ValueError(f"{tag} has no {'held-out' if held_out else 'training'} request in this world; leave it out")
    return choices[int(generator.integers(len(choices)))]


def _all_requests(world: World, tag: Tag) -> list[Request]:
    if tag == "single_object":
        return [Request(tag, (shape,), (None,)) for shape in world.shapes]
    if tag == "counting":
        counts = range(1, world.max_count + 1)
        return [Request(tag, (shape,), (None,), count) for shape, count in product(world.shapes, counts)]
    if tag == "colors":
        return [Request(tag, (shape,), (color,)) for shape, color in product(world.shapes, world.colors)]
    pairs = list(permutations(world.shapes, 2))
    if tag == "two_object":
        return [Request(tag, pair, (None, None)) for pair in pairs]
    if tag == "position":
        return [Request(tag, pair, (None, None), 1, relation) for pair, relation in product(pairs, RELATIONS)]
    return [Request(tag, pair, colors) for pair, colors in product(pairs, permutations(world.colors, 2))]


def _phrase(shape: str, color: str | None) -> str:
    words = shape if color is None else f"{color} {shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _included(shape: str, color: str | None, count: int) -> dict[str, Any]:
    return {"class": shape, "count": count} | ({} if color is None else {"color": color})
