"""Whether a generator draws anew or from memory: how near its pictures of the embedded world are to training's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.scene_render import render
from ..data.scene_world import World
from ..data.scenes import sample_scene

_BLOCK = 256


@dataclass(frozen=True)
class Nearest:
    """The training picture nearest to each of N pictures."""

    distances: NDArray[np.float64]  #: ``(N,)`` root mean square difference over pixels and channels, in levels of 255
    indices: NDArray[np.int64]  #: ``(N,)`` of the training scenes


def nearest_training(images: NDArray[np.uint8], world: World, count: int) -> Nearest:
    """Compare pictures with the first training pictures of a world.

    A distance means something beside that of pictures which cannot be remembered, such as the world's own renders of
    the split ``heldout``: a generator whose distances are clearly smaller repeats what it was shown.

    Args:
        images: ``(N, size, size, 3)`` uint8.
        world: whose training scenes are drawn; copies are found only if the training used the same world.
        count: number of training scenes, from the first one.

    Raises:
        ValueError: if the pictures have another size than the world's, or ``count`` is below 1.
    """
    if images.shape[1:] != (world.size, world.size, 3) or images.dtype != np.uint8 or count < 1:
        raise ValueError(
            f"expected uint8 pictures (N, {world.size}, {world.size}, 3) and a count of at least 1, got "
            f"{images.dtype} {images.shape} and {count}; pass what the world's generator drew"
        )
    # Sums of products of levels are whole numbers far below 2 ** 53, so float64 keeps a copy at exactly 0.
    given = images.reshape(len(images), -1).astype(np.float64)
    best = np.full(len(given), np.inf)
    indices = np.zeros(len(given), dtype=np.int64)
    for start in range(0, count, _BLOCK):
        scenes = [sample_scene(world, "train", index) for index in range(start, min(start + _BLOCK, count))]
        shown = np.stack([render(scene, world) for scene in scenes]).reshape(len(scenes), -1).astype(np.float64)
        squares = (given**2).sum(1)[:, None] + (shown**2).sum(1) - 2 * given @ shown.T
        place = squares.argmin(1)
        found = squares[np.arange(len(given)), place]
        indices = np.where(found < best, place + start, indices)
        best = np.minimum(best, found)
    return Nearest(np.sqrt(best / given.shape[1]), indices)
