"""How far a score over prompts would move with other prompts: a bootstrap that draws the prompts, not the images.

Images of one prompt succeed and fail together, so an interval over images would be too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """95 % intervals (percentiles 2.5 and 97.5 of the resamples)."""

    overall: Interval  #: of the unweighted mean of the task scores
    tasks: dict[str, Interval]  #: of each task's share of correct images, in the order of the tasks' first prompts


def bootstrap_intervals(
    tags: Sequence[str], correct: Sequence[int], images: Sequence[int], *, resamples: int = 1000, seed: int = 0
) -> Intervals:
    """Resample prompts within their tasks.

    Args:
        tags: each prompt's task.
        correct: each prompt's number of correct images.
        images: each prompt's number of images, at least one.
        resamples: how often all prompts are drawn.
        seed: decides the draws.

    Raises:
        ValueError: if there are no prompts, not one number of each kind a prompt, or no resamples.
    """
    if not tags or not len(tags) == len(correct) == len(images) or resamples < 1:
        raise ValueError(
            "a bootstrap needs at least one prompt, two numbers of each and a resample, got "
            f"{len(tags)} tasks, {len(correct)} and {len(images)} numbers and {resamples} resamples; give them all"
        )
    names, right = np.asarray(tags), np.asarray(correct, dtype=np.float64)
    total = np.asarray(images, dtype=np.float64)
    generator = np.random.default_rng(seed)
    shares: dict[str, NDArray[np.float64]] = {}
    for tag in dict.fromkeys(tags):
        chosen = np.flatnonzero(names == tag)
        drawn = generator.choice(chosen, size=(resamples, len(chosen)))
        shares[tag] = right[drawn].sum(1) / total[drawn].sum(1)
    overall = np.mean(list(shares.values()), axis=0)
    return Intervals(_ends(overall), {tag: _ends(share) for tag, share in shares.items()})


def _ends(resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(low), float(high)
