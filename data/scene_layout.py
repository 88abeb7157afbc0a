"""From a request to things with colours and places, by trying layouts until one fits."""

import numpy as np
from numpy.typing import NDArray

from .scene_relations import clear_relation
from .scene_requests import Request
from .scene_world import JITTER, Thing, World, held_out_facts

_TRIES = 200  # batches of layouts; a dense world finds one in the first
_BATCH = 32


def compose(request: Request, world: World, generator: np.random.Generator, *, known_only: bool) -> tuple[Thing, ...]:
    """Draw colours, sizes and places for everything a request asks for.

    Boxes keep ``world.gap`` from each other and from the border. A requested relation is the only one that a detector
    misreading a box by ``JITTER`` pixels could see, so the picture says what its caption says and nothing beside it.

    Args:
        request: what the picture must show; nothing else is added.
        world: where it is shown.
        generator: decides everything the request leaves open.
        known_only: colours left open come from the training combinations, and so does every relation that happens to
            hold, unless the request itself asks for a held-out one.

    Raises:
        ValueError: if no layout is found, because the world's radius or gap leaves too little room.
    """
    names = [(shape, color) for shape, color in zip(request.shapes, request.colors, strict=True)] * request.count
    colored = [(shape, color or _color(shape, world, generator, known_only)) for shape, color in names]
    avoid_facts = known_only and not request.held_out(world)
    for _ in range(_TRIES):
        for layout in _layouts(len(colored), world, generator):
            things = tuple(Thing(*name, *place) for name, place in zip(colored, layout.tolist(), strict=True))
            if _says(things, request) and not (avoid_facts and held_out_facts(things, world)):
                return things
    raise ValueError(f"no room for {request.caption!r} at radius {world.radius} and gap {world.gap}; lower either")


def _color(shape: str, world: World, generator: np.random.Generator, known_only: bool) -> str:
    colors = [color for color in world.colors if not (known_only and world.color_held_out(shape, color))]
    return colors[int(generator.integers(len(colors)))]


def _layouts(count: int, world: World, generator: np.random.Generator) -> NDArray[np.float64]:
    """``(L, count, 3)`` x, y and radius in pixels of layouts whose boxes keep their distance; L may be 0."""
    draws = generator.random((_BATCH, count, 3))
    radius = world.radius[0] + draws[..., 2] * (world.radius[1] - world.radius[0])
    reach = radius + world.gap
    places = reach[..., None] + draws[..., :2] * (1 - 2 * reach[..., None])
    apart = np.abs(places[:, :, None] - places[:, None]).max(-1) >= radius[:, :, None] + radius[:, None] + world.gap
    free = (apart | np.eye(count, dtype=bool)).all((1, 2))
    return world.size * np.concatenate([places, radius[..., None]], -1)[free]


def _says(things: tuple[Thing, ...], request: Request) -> bool:
    if request.relation is None:
        return True
    return clear_relation(things[0].box, things[1].box, JITTER) == request.relation
