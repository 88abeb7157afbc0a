"""Kernel distance between two sets of features (https://arxiv.org/abs/1801.01401), KID on Inception features.

The squared maximum mean discrepancy under ``(x . y / D + 1)^3``, by the estimator without bias: unlike a Frechet
distance it does not depend on the number of images, and it can come out below zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .feature_statistics import check_features
from .kept_features import KeptFeatures
from .sample_order import sample_indices

SUBSETS, SUBSET_SIZE = 100, 1000  #: as KID is usual; small sets have smaller subsets, see `subset_size`

_BLOCK = 2048  #: rows of the kernel matrix held at once


@dataclass(frozen=True)
class KernelDistance:
    """Over the subsets."""

    mean: float  #: about 0 for equal distributions; may be negative
    std: float  #: of the population of subsets (divided by their number)


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """`discrepancy` of random subsets, in float64; the same numbers for the same rows, order and seed.

    Args:
        features: ``[N, D]`` floats.
        reference: ``[M, D]`` floats.
        subsets: how many pairs of subsets, each drawn without repetition.
        subset_size: images in each, from 2 to the smaller set.
        seed: of the draws.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, no subset, or subsets larger than a set.
    """
    _check_pair(features, reference)
    _check_subsets(subsets, subset_size)
    smaller = min(len(features), len(reference))
    if subset_size > smaller:
        raise ValueError(
            f"a subset must be no larger than the smaller set, got {subset_size} of {smaller} images; "
            f"pass subset_size={smaller} or score more images"
        )
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(subsets, dtype=torch.float64)
    for at in range(subsets):
        first, second = (
            side[torch.randperm(len(side), generator=generator)[:subset_size].to(side.device)]
            for side in (features, reference)
        )
        found[at] = _discrepancy(first.double(), second.double())
    return KernelDistance(float(found.mean()), float(found.std(correction=0)))


def discrepancy(features: Tensor, reference: Tensor) -> float:
    """The unbiased estimate from all pairs, without subsets and so without a seed; ``O((N + M)^2 D)`` in float64.

    Args:
        features: ``[N, D]`` floats, N >= 2.
        reference: ``[M, D]`` floats, M >= 2.

    Raises:
        ValueError: shapes that do not fit, fewer than two rows, or features that are not finite.
    """
    _check_pair(features, reference)
    return float(_discrepancy(features.double(), reference.double()))


class KernelDistanceMetric(KeptFeatures):
    """`kernel_distance` over everything seen, equal on any number of processes with any number of batches each.

    Each process keeps its features (float32, 8 kB an image at D = 2048) with the place of their image in its set; all
    are brought together in the order of places before subsets are drawn, and an image seen before, which is what
    padding samplers add, is left out.

    Args:
        num_features: D of the extractor.
        subsets: as in `kernel_distance`.
        subset_size: the same.
        seed: the same.

    Raises:
        ValueError: no subset, or subsets of fewer than two images.
    """

    higher_is_better = False

    def __init__(self, num_features: int, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> None:
        super().__init__(num_features)
        _check_subsets(subsets, subset_size)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def update(self, features: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            features: ``[B, D]`` floats.
            real: whether they belong to the reference.
            index: ``[B]`` places of the images in their set; may be left out where one process scores all images in
                order.

        Raises:
            ValueError: another shape, features that are not finite, or a negative place.
            TypeError: places that are not whole numbers.
        """
        check_features(features, self.num_features)
        self._keep(features, real, sample_indices(index, len(features), self._kept(real)))

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``std`` over the subsets, float64 scalars.

        Raises:
            ValueError: as `kernel_distance`.
        """
        found = kernel_distance(
            self.features(real=False), self.features(real=True), self.subsets, self.subset_size, self.seed
        )
        return {
            "mean": torch.tensor(found.mean, dtype=torch.float64),
            "std": torch.tensor(found.std, dtype=torch.float64),
        }


def subset_size(count: int) -> int:
    """Pictures in a subset of KID: 1,000, and of sets with no more than that the half, so that subsets differ."""
    return SUBSET_SIZE if count > SUBSET_SIZE else max(2, count // 2)


def _check_subsets(subsets: int, subset_size: int) -> None:
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"a kernel distance needs at least one subset of two images, got {subsets} of {subset_size}; raise both"
        )


def _check_pair(features: Tensor, reference: Tensor) -> None:
    check_features(features)
    check_features(reference, features.shape[1])
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a kernel distance needs at least two images a side, got {len(features)} and {len(reference)}; "
            "score more of them"
        )


def _discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Squared, unbiased: the mean kernel of distinct pairs within each set, less twice that across."""
    count, other = len(first), len(second)
    within = _kernel_sum(first, first) - _kernel_diagonal(first).sum()
    beside = _kernel_sum(second, second) - _kernel_diagonal(second).sum()
    across = _kernel_sum(first, second).to(within.device)
    return (
        within / (count * (count - 1)) + beside.to(within.device) / (other * (other - 1)) - 2 * across / (count * other)
    )


def _kernel_sum(first: Tensor, second: Tensor) -> Tensor:
    total = first.new_zeros(())
    for rows in first.split(_BLOCK):
        for columns in second.split(_BLOCK):
            total = total + (rows @ columns.T / first.shape[1] + 1).pow(3).sum()
    return total


def _kernel_diagonal(features: Tensor) -> Tensor:
    return (features.square().sum(1) / features.shape[1] + 1).pow(3)
