"""The kernel distance against loops over pairs, and its seed."""

from __future__ import annotations

import itertools

import pytest
import torch

from smalti.eval.images.kernel_distance import KernelDistance, KernelDistanceMetric, discrepancy, kernel_distance


def features(count: int, seed: int, width: int = 3, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_pairs(first: torch.Tensor, second: torch.Tensor) -> float:
    """The unbiased estimator, pair by pair in Python floats."""

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    one, two = first.tolist(), second.tolist()
    within = [kernel(x, y) for x, y in itertools.permutations(one, 2)]
    beside = [kernel(x, y) for x, y in itertools.permutations(two, 2)]
    across = [kernel(x, y) for x in one for y in two]
    return sum(within) / len(within) + sum(beside) / len(beside) - 2 * sum(across) / len(across)


def test_all_pairs():
    first, second = features(9, 0), features(7, 1, shift=0.5)
    assert discrepancy(first, second) == pytest.approx(by_pairs(first, second), rel=1e-6)
    assert discrepancy(second, first) == pytest.approx(by_pairs(first, second), rel=1e-6)


def test_a_subset_as_large_as_both_sets_is_the_whole():
    first, second = features(9, 0), features(9, 1, shift=0.5)
    found = kernel_distance(first, second, subsets=4, subset_size=9)
    assert found.mean == pytest.approx(by_pairs(first, second), rel=1e-6)
    assert found.std == pytest.approx(0, abs=1e-9)


def test_mean_and_spread_of_the_subsets():
    first, second = features(5, 0), features(4, 1, shift=0.5)
    found = kernel_distance(first, second, subsets=3, subset_size=3, seed=5)
    generator, values = torch.Generator().manual_seed(5), []
    for _ in range(3):
        mine, theirs = (side[torch.randperm(len(side), generator=generator)[:3]] for side in (first, second))
        values.append(by_pairs(mine, theirs))
    assert found.mean == pytest.approx(sum(values) / 3, rel=1e-6)
    assert found.std == pytest.approx((sum((value - found.mean) ** 2 for value in values) / 3) ** 0.5, rel=1e-5)


def test_the_seed_decides():
    first, second = features(50, 0), features(60, 1)
    assert kernel_distance(first, second, 5, 20, seed=1) == kernel_distance(first, second, 5, 20, seed=1)
    assert kernel_distance(first, second, 5, 20, seed=1) != kernel_distance(first, second, 5, 20, seed=2)


def test_no_bias_where_the_distributions_are_equal():
    found = kernel_distance(features(600, 0), features(600, 1), subsets=40, subset_size=30)
    assert abs(found.mean) < 4 * found.std / 40**0.5
    assert kernel_distance(features(600, 0), features(600, 1, shift=1.0), 40, 30).mean > 10 * abs(found.mean)


def test_metric_equals_the_function_in_any_order_and_drops_what_comes_twice():
    first, second = features(50, 0), features(40, 1)
    metric = KernelDistanceMetric(3, subsets=6, subset_size=20, seed=3)
    for index in torch.randperm(50, generator=torch.Generator().manual_seed(1)).split(7):
        metric.update(first[index], real=False, index=index)
    metric.update(first[:5], real=False, index=torch.arange(5))
    for batch in second.split(9):
        metric.update(batch, real=True)
    expected = kernel_distance(first, second, 6, 20, 3)
    assert torch.equal(metric.features(real=False), first)
    for _ in range(2):  # asking twice draws the same subsets
        assert KernelDistance(**{k: float(v) for k, v in metric.compute().items()}) == expected
    metric.reset()
    assert metric.features(real=True).shape == (0, 3)


def test_refusals():
    first = features(9, 0)
    with pytest.raises(ValueError, match=r"got 10 of 9 images; pass subset_size=9 or score more images"):
        kernel_distance(first, features(20, 1), 2, 10)
    with pytest.raises(ValueError, match="at least one subset of two images, got 0 of 5"):
        kernel_distance(first, first, 0, 5)
    with pytest.raises(ValueError, match="at least one subset of two images, got 3 of 1"):
        KernelDistanceMetric(3, 3, 1)
    with pytest.raises(ValueError, match="at least two images a side, got 9 and 1"):
        discrepancy(first, first[:1])
    with pytest.raises(ValueError, match=r"features must be \[N, 3\], got \[9, 4\]; take all from one extractor"):
        discrepancy(first, features(9, 0, 4))
    metric = KernelDistanceMetric(3)
    with pytest.raises(ValueError, match="features must be finite, got NaN"):
        metric.update(first * torch.nan, real=True)
    with pytest.raises(TypeError, match=r"places must be whole numbers, got torch\.float32"):
        metric.update(first, real=True, index=torch.zeros(9))
    with pytest.raises(ValueError, match=r"one place per image, got \[8\] for 9 images"):
        metric.update(first, real=True, index=torch.arange(8))
    with pytest.raises(ValueError, match="places must be at least 0, got -1"):
        metric.update(first, real=True, index=torch.arange(9) - 1)
