"""Distance between two sets of features, each taken as a normal distribution (https://arxiv.org/abs/1706.08500).

What the features are decides what the number means: a Frechet distance belongs to its extractor and to the size of its
sets, and is never compared across either.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .feature_statistics import FeatureStatistics, Moments, check_features
from .kept_features import SIDES, KeptFeatures
from .sample_order import sample_indices

_COLUMNS = 256  #: of a product computed at once: narrow enough to leave most of the zeros out


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of means and unbiased covariances, in float64.

    Args:
        features: ``[N, D]`` floats.
        reference: ``[M, D]`` floats.

    Returns:
        The distance, >= 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two rows, or features that are not finite.
    """
    return _distance(FeatureStatistics.from_features(features), FeatureStatistics.from_features(reference))


def statistics_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets whose features are gone.

    The trace of the root is the sum of the roots of the eigenvalues of ``F^T C2 F`` for any ``F F^T = C1``: never
    complex. ``F`` is the Cholesky factor, or, where ``C1`` has no full rank, its eigenvectors above rounding.

    Returns:
        The distance, >= 0. Warns if a set has fewer images than features.

    Raises:
        ValueError: of different widths.
    """
    return _distance(first, second)


class FrechetDistance(KeptFeatures):
    """`frechet_distance` over everything seen, exact however unevenly the images fall on processes.

    States are float64 and do not follow ``half()``; float64 does not exist on MPS, keep the metric on the CPU there.
    A process that saw no image, or fewer batches than others, takes part like any other.

    Without places, an image that comes twice counts twice: use a sampler that does not pad (not ``DistributedSampler``,
    which repeats images until all processes have equally many), or pass ``index``. An image with a place counts once,
    whichever processes saw it; its features are kept for that (float32, 8 kB an image at D = 2048), where the sums
    alone need no more memory for more images.

    Args:
        num_features: D of the extractor.

    Raises:
        ValueError: if ``num_features`` is below 1.
    """

    higher_is_better = False

    features_mean: Tensor
    features_scatter: Tensor
    features_count: Tensor
    reference_mean: Tensor
    reference_scatter: Tensor
    reference_count: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}; pass the extractor's")
        self._reference: FeatureStatistics | None = None
        for side in SIDES:
            empty = Moments.zeros(num_features)
            # Gathered rather than summed: each process keeps its scatter about its own mean.
            self.add_state(f"{side}_mean", empty.mean, dist_reduce_fx=None)
            self.add_state(f"{side}_scatter", empty.scatter, dist_reduce_fx=None)
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)

    def set_reference(self, statistics: FeatureStatistics) -> None:
        """Compare with known statistics, which `reset` keeps; on every process with the same.

        Raises:
            ValueError: of another width, or images of the reference were already added.
        """
        if len(statistics.mean) != self.num_features:
            raise ValueError(
                f"reference statistics must have {self.num_features} features, got {len(statistics.mean)}; "
                "take both from one extractor"
            )
        if seen := int(self.reference_count) + self._kept(real=True):
            raise ValueError(
                f"the reference must be either statistics or images, got {seen} images already; call reset() first"
            )
        self._reference = statistics

    def update(self, features: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            features: ``[B, D]`` floats; B may be 0.
            real: whether they belong to the reference.
            index: ``[B]`` places of the images in their set; an image whose place came before is left out.

        Raises:
            ValueError: another width, features that are not finite, a negative place, another number of places than of
                images, or ``real`` although statistics were set.
            TypeError: places that are not whole numbers.
        """
        check_features(features, self.num_features)
        if real and self._reference is not None:
            raise ValueError("the reference must be either statistics or images, got both; leave out real images")
        if index is not None:
            self._keep(features, real, sample_indices(index, len(features), 0))
            return
        side = SIDES[int(real)]
        mean, scatter, count = (getattr(self, f"{side}_{part}") for part in ("mean", "scatter", "count"))
        Moments(mean, scatter, int(count)).add(features.detach().double().to(mean.device))
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(features))

    def statistics(self, real: bool) -> FeatureStatistics:
        """Of everything seen on all processes, on the CPU; every process must ask.

        Raises:
            ValueError: fewer than two images.
        """
        if real and self._reference is not None:
            return self._reference
        with self.sync_context(should_sync=not self._is_synced, should_unsync=not self._is_synced):
            moments = self._moments(real)
        if moments.count < 2:
            raise ValueError(
                f"a covariance of the {SIDES[int(real)]} needs at least two images, got {moments.count}; call update() "
                "with more"
            )
        return FeatureStatistics(moments.mean, moments.covariance(), moments.count)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            ValueError: fewer than two images on a side.
        """
        return torch.tensor(_distance(self.statistics(real=False), self.statistics(real=True)), dtype=torch.float64)

    def _moments(self, real: bool) -> Moments:
        """A copy, on the CPU, of what this process saw; after a gathering, of what all did."""
        side, merged = SIDES[int(real)], Moments.zeros(self.num_features)
        means, scatters, counts = (getattr(self, f"{side}_{part}").cpu() for part in ("mean", "scatter", "count"))
        if means.ndim == 1:
            means, scatters, counts = means[None], scatters[None], counts[None]
        for part in zip(means, scatters, counts.tolist(), strict=True):
            merged.merge(Moments(*part))
        merged.merge(Moments.of(self.features(real)))
        return merged


def _distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"statistics must have equally many features, got {len(first.mean)} and {len(second.mean)}; "
            "take both from one extractor"
        )
    fewest, width = min(first.count, second.count), len(first.mean)
    if fewest < width:
        warnings.warn(
            f"{fewest} images do not determine the covariance of {width} features; the distance is too large and "
            "depends on the number of images",
            stacklevel=3,
        )
    between = (first.mean.cpu() - second.mean.cpu()).square().sum()
    # The smaller set is factored: its rank bounds that of the product, so no eigenvalue below is zero but for rounding.
    smaller, larger = sorted((first, second), key=lambda statistics: statistics.count)
    product = _product(smaller.covariance.cpu(), smaller.count, larger.covariance.cpu())
    shared = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
    spread = first.covariance.trace().cpu() + second.covariance.trace().cpu()
    return float((between + spread - 2 * shared).clamp_min(0))


def _product(covariance: Tensor, count: int, other: Tensor) -> Tensor:
    """The lower triangle of ``F^T other F`` with ``F F^T = covariance``; F has no more columns than its rank."""
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    if count > len(covariance):
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed) and bool(factor.diagonal().square().min() > rounding * covariance.diagonal().max()):
            return _triangular_product(factor, other)
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > rounding * values[-1]
    factor = vectors[:, kept] * values[kept].sqrt()
    return factor.T @ other @ factor


def _triangular_product(factor: Tensor, other: Tensor) -> Tensor:
    """The lower triangle of ``F^T other F`` of a lower triangular F, with a third of the work of two full products."""
    product = torch.zeros_like(other)
    for start in range(0, len(other), _COLUMNS):
        stop = start + _COLUMNS
        columns = other[start:, start:] @ factor[start:, start:stop]
        product[start:, start:stop] = factor[start:, start:].T @ columns
    return product
