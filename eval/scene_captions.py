"""Whether captions hold for their pictures: the rules that judge drawings, turned around.

One picture has many right captions ("a circle and a square", "a circle left of a square"), so that equality with the
one it was drawn for says little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.scene_requests import TAGS, requests
from ..data.scene_world import World
from .scene_eval import Found, detect_images, verdict

_ROUNDS = 16


@dataclass(frozen=True)
class CaptionScores:
    """Shares of captions that hold."""

    true: float  #: of their own pictures
    chance: float  #: of other pictures of the same set
    verdicts: tuple[bool, ...]  #: of every caption on its own picture


def score_captions(captions: Sequence[str], images: NDArray[np.uint8], world: World, *, seed: int = 0) -> CaptionScores:
    """Judge captions on pictures.

    A caption holds if it is a sentence of the world, its picture is a correct drawing of it, and shows nothing else.

    Args:
        captions: one for each image.
        images: ``(N, size, size, 3)`` uint8, N at least two.
        world: what the pictures show.
        seed: decides which other pictures ``chance`` looks at.

    Raises:
        ValueError: fewer than two pictures, or another number of captions.
    """
    if len(captions) != len(images) or len(images) < 2:
        raise ValueError(
            f"expected one caption for each of at least two pictures, got {len(captions)} captions for {len(images)} "
            "pictures; caption every picture once"
        )
    found = detect_images(images, world)
    own = [_holds(caption, seen, world) for caption, seen in zip(captions, found, strict=True)]
    shifts = np.random.default_rng(seed).integers(1, len(found), _ROUNDS)
    other = [
        _holds(caption, found[(index + int(shift)) % len(found)], world)
        for shift in shifts
        for index, caption in enumerate(captions)
    ]
    return CaptionScores(sum(own) / len(own), sum(other) / len(other), tuple(own))


@lru_cache(maxsize=8)
def sentences(world: World) -> Mapping[str, Mapping[str, Any]]:
    """Every caption of a world with its metadata, an entry of GenEval's JSONL file."""
    asked = (request for tag in TAGS for held_out in (False, True) for request in requests(world, tag, held_out))
    return {request.caption: request.metadata() for request in asked}


def _holds(caption: str, found: Found, world: World) -> bool:
    meant = sentences(world).get(caption)
    return meant is not None and verdict(meant, found).strict
