"""Whether pictures of scenes show the right objects: shape and colour of every one, by the analytic detector.

Places and sizes do not count, nor what a caption says: the truth is the scene itself. Knows nothing about what drew the
pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.scene_world import Scene, World
from .bootstrap import Interval
from .detector import THRESHOLD, SceneDetector
from .geneval import kept_detections

#: How often each (shape, colour) is there; the colour is None where it is none of the palette.
Objects: TypeAlias = Counter[tuple[str, str | None]]

_NORMAL = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class ObjectAccuracy:
    """How many pictures show exactly the objects of their scenes."""

    right: float  #: share of scenes whose objects are all there with shape and colour, and nothing else
    interval: Interval  #: 95 % interval of ``right`` (Wilson)
    found: float  #: share of all objects that are there with shape and colour
    chance: float | None  #: mean of ``right`` when pictures are judged by the other scenes; None for one scene
    scenes: int
    objects: int  #: in all scenes
    verdicts: tuple[bool, ...]  #: one for each scene

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, without the verdicts."""
        low, high = self.interval
        chance = {} if self.chance is None else {"chance": self.chance}
        counts = {"scenes": self.scenes, "objects": self.objects}
        return {"right": self.right, "low": low, "high": high, "found": self.found, **chance, **counts}


def object_accuracy(images: NDArray[np.uint8], scenes: Sequence[Scene], world: World) -> ObjectAccuracy:
    """Detect the objects of pictures and compare them with those of their scenes.

    Args:
        images: ``(N, size, size, 3)`` uint8, one picture for each scene.
        scenes: N >= 1, what the pictures should show.
        world: that the scenes belong to, at the size of the pictures.

    Raises:
        ValueError: another number of pictures than scenes, none, or pictures of another size than the world's.
    """
    return judge_objects(detect_objects(images, world), [scene_objects(scene) for scene in scenes])


def detect_objects(images: NDArray[np.uint8], world: World) -> list[Objects]:
    """What the detector finds above its frozen threshold in each of ``(N, size, size, 3)`` uint8 pictures.

    Raises:
        ValueError: pictures of another size than the world's.
    """
    detector = SceneDetector(world)
    return [
        Counter(
            (shape, detection.color)
            for shape, detections in detector.detect(image).items()
            for detection in kept_detections(detections, THRESHOLD)
        )
        for image in images
    ]


def scene_objects(scene: Scene) -> Objects:
    """What a scene is made of."""
    return Counter((thing.shape, thing.color) for thing in scene.things)


def judge_objects(found: Sequence[Objects], true: Sequence[Objects]) -> ObjectAccuracy:
    """Compare what was found in pictures with what is true.

    Args:
        found: from :func:`detect_objects`, one for each picture.
        true: from :func:`scene_objects`, in the same order.

    Raises:
        ValueError: different numbers of both, or none.
    """
    if len(found) != len(true) or not true:
        raise ValueError(
            f"objects are judged picture by picture, got {len(found)} pictures for {len(true)} scenes; pass one "
            "for each, and at least one"
        )
    count = len(true)
    verdicts = tuple(seen == meant for seen, meant in zip(found, true, strict=True))
    there = sum((seen & meant).total() for seen, meant in zip(found, true, strict=True))
    objects = sum(meant.total() for meant in true)
    right = sum(verdicts)
    return ObjectAccuracy(
        right=right / count,
        interval=wilson_interval(right, count),
        found=there / max(1, objects),
        chance=None if count == 1 else (_agreeing_pairs(found, true) - right) / (count * (count - 1)),
        scenes=count,
        objects=objects,
        verdicts=verdicts,
    )


def wilson_interval(successes: int, count: int) -> Interval:
    """95 % interval of a share, after Wilson (1927): inside [0, 1], and not empty at its ends.

    Args:
        successes: among ``count``.
        count: >= 1.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"an interval needs trials and no more successes, got {successes} of {count}; count them")
    share, square = successes / count, _NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = _NORMAL / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    low = 0.0 if successes == 0 else middle - reach  # rounding would leave 1e-17 of it
    high = 1.0 if successes == count else middle + reach
    return low, high


def _agreeing_pairs(found: Sequence[Objects], true: Sequence[Objects]) -> int:
    """How many pairs of a picture and a scene, its own or another, agree."""
    pictures = Counter(frozenset(seen.items()) for seen in found)
    return sum(pictures[frozenset(meant.items())] for meant in true)
