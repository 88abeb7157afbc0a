"""Distance between two sets of features, each taken as a normal distribution (https://arxiv.org/abs/1706.08500).

What the features are decides what the number means: a Frechet distance belongs to its extractor and to the size of its
sets, and is never compared across either.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of means and unbiased covariances, in float64.

    The trace of the root is the sum of the roots of the eigenvalues of ``R C2 R``, with ``R`` the symmetric root of
    ``C1``: exact for covariances without full rank too, and never complex.

    Args:
        features: ``[N, D]`` floats.
        reference: ``[M, D]`` floats.

    Returns:
        The distance, >= 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two rows, or features that are not finite.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features must be [N, D] and [M, D], got {list(features.shape)} and {list(reference.shape)}; "
            "take both from one extractor"
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a covariance needs at least two images, got {len(features)} and {len(reference)}; score more of them"
        )
    if min(len(features), len(reference)) <= features.shape[1]:
        warnings.warn(
            f"{min(len(features), len(reference))} images do not determine the covariance of {features.shape[1]} "
            "features; the distance is too large and depends on the number of images",
            stacklevel=2,
        )
    first, second = features.double().cpu(), reference.double().cpu()
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity; check the pictures and the extractor")
    root = _root(torch.cov(first.T).reshape(2 * first.shape[1:]))
    other = torch.cov(second.T).reshape(2 * first.shape[1:])
    between = (first.mean(0) - second.mean(0)).square().sum()
    shared = _eigenvalues(root @ other @ root).sqrt().sum()
    return float((between + root.square().sum() + other.trace() - 2 * shared).clamp_min(0))


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp_min(0)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
