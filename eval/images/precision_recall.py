"""Improved precision and recall of generated sets (https://arxiv.org/abs/1904.06991).

Precision: the share of generated images that lie within the reference, recall: the share of reference images that lie
within what is generated; within a set is within reach of one of its members, as far as its k-th nearest neighbour.
Both depend on the number of images, so compare them only at equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .feature_statistics import check_features

_BLOCK = 2048  #: rows and columns of the distance matrix held at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images."""

    precision: float  #: in [0, 1]
    recall: float  #: in [0, 1]


def precision_recall(features: Tensor, reference: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall by k-th nearest neighbours, exact (all pairs, float64, block by block).

    Args:
        features: ``[N, D]`` floats, of generated images.
        reference: ``[M, D]`` floats, of real images.
        k: which neighbour sets the reach; an image is no neighbour of itself, a copy of it is.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or a set with no k-th neighbour.
    """
    check_features(features)
    check_features(reference, features.shape[1])
    smaller = min(len(features), len(reference))
    if not 1 <= k < smaller:
        raise ValueError(
            f"k must be at least 1 and below the number of images of either set, got {k} and {smaller} images; "
            "score more images or lower k"
        )
    centre = reference.double().mean(0)  # nothing changes but rounding: less cancels where features lie far from zero
    generated, real = features.double().to(centre.device) - centre, reference.double() - centre
    return PrecisionRecall(
        precision=_share_within(generated, real, _reach(real, k)),
        recall=_share_within(real, generated, _reach(generated, k)),
    )


def _reach(points: Tensor, k: int) -> Tensor:
    """``[N]``, the squared distance of each point to its k-th nearest other."""
    found: list[Tensor] = []
    for start in range(0, len(points), _BLOCK):
        rows = points[start : start + _BLOCK]
        nearest = rows.new_full((len(rows), k), torch.inf)
        for left in range(0, len(points), _BLOCK):
            distances = _squared(rows, points[left : left + _BLOCK])
            if left == start:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distances], 1).topk(k, 1, largest=False).values
        found.append(nearest.amax(1))
    return torch.cat(found)


def _share_within(points: Tensor, others: Tensor, reach: Tensor) -> float:
    """The share of points that lie within reach of at least one of the others."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for start in range(0, len(points), _BLOCK):
        for left in range(0, len(others), _BLOCK):
            distances = _squared(points[start : start + _BLOCK], others[left : left + _BLOCK])
            inside[start : start + _BLOCK] |= (distances <= reach[left : left + _BLOCK]).any(1)
    return float(inside.double().mean())


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """``[N, M]``, never below zero."""
    squares = first.square().sum(1)[:, None] + second.square().sum(1)
    return squares.sub_(first @ second.T, alpha=2).clamp_min_(0)
