"""The Frechet distance against normals whose distance is known in closed form, and against a matrix root."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from smalti.eval.images import feature_statistics, frechet
from smalti.eval.images.feature_statistics import FeatureStatistics
from smalti.eval.images.frechet import FrechetDistance, frechet_distance, statistics_distance


def normal(count: int, mean: list[float], spread: list[float], seed: int = 0) -> torch.Tensor:
    """Features whose mean and covariance are exactly those."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    rows = rows - rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T).view(len(mean), -1)).T)
    return rows * torch.tensor(spread) + torch.tensor(mean)


def correlated(count: int, width: int, seed: int) -> torch.Tensor:
    """Rectified and correlated, as pooled features of a network are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width // 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width // 4, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return (rows @ mixing * (1 + seed / 10) + 0.3 * noise).relu()


def root_by_iteration(matrix: torch.Tensor) -> torch.Tensor:
    """Denman and Beavers 1976: a matrix root by inversions alone."""
    root, inverse = matrix, torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(30):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    return root


def with_root(root, first: torch.Tensor, second: torch.Tensor) -> float:
    """The definition, with a root of the product of the covariances."""
    one, two = torch.cov(first.T), torch.cov(second.T)
    apart = (first.mean(0) - second.mean(0)).square().sum()
    return float(apart + one.trace() + two.trace() - 2 * root(one @ two).trace())


def seen(metric: FrechetDistance, features: torch.Tensor, real: bool, batch: int = 64) -> None:
    for rows in features.split(batch):
        metric.update(rows, real)


def test_of_diagonal_normals():  # (1 - 4)^2 + (2 - 2)^2 + (3 - 1)^2 + (0.5 - 1)^2
    first, second = normal(500, [1.0, 2.0], [3.0, 0.5]), normal(400, [4.0, 2.0], [1.0, 1.0], 1)
    assert frechet_distance(first, second) == pytest.approx(9 + 4 + 0.25)
    assert frechet_distance(second, first) == pytest.approx(9 + 4 + 0.25)


def test_turning_both_changes_nothing_and_equal_sets_are_at_zero():
    first, second = normal(500, [1.0, 2.0, 0.0], [3.0, 0.5, 1.0]), normal(400, [4.0, 2.0, 1.0], [1.0, 1.0, 2.0], 1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(frechet_distance(first, second))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_covariances_that_do_not_commute():  # tr (C1 C2)^(1/2) of 2 x 2 is sqrt(tr C1 C2 + 2 sqrt(det C1 C2))
    first, second = normal(300, [0.0, 0.0], [2.0, 1.0]), normal(300, [0.0, 0.0], [3.0, 1.0], 1)
    angle = torch.tensor(0.7, dtype=torch.float64)
    second = second @ torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2)
    one, two = torch.cov(first.T), torch.cov(second.T)
    root = ((one @ two).trace() + 2 * (torch.det(one) * torch.det(two)).sqrt()).sqrt()
    assert frechet_distance(first, second) == pytest.approx(float(one.trace() + two.trace() - 2 * root))


@pytest.mark.parametrize("columns", [40, 256])
def test_equals_a_root_by_iteration(columns, monkeypatch):
    for module in (frechet, feature_statistics):
        monkeypatch.setattr(module, "_COLUMNS", columns)
    first, second = correlated(700, 96, 1), correlated(500, 96, 2)
    assert frechet_distance(first, second) == pytest.approx(with_root(root_by_iteration, first, second), rel=1e-8)


def test_equals_the_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = correlated(900, 192, 1), correlated(700, 192, 2)

    def root(matrix: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.real(linalg.sqrtm(matrix.numpy())))

    assert frechet_distance(first, second) == pytest.approx(with_root(root, first, second), rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*do not determine the covariance")
def test_fewer_images_than_features_are_exact_too():
    # Of centred rows A and B, tr (C1 C2)^(1/2) is the sum of the singular values of A B^T: no covariance needed.
    first, second = correlated(60, 128, 1), correlated(90, 128, 2)
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (first, second))
    shared = torch.linalg.svdvals(a @ b.T).sum()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    exact = float(apart + a.square().sum() + b.square().sum() - 2 * shared)
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(exact, rel=1e-8)


def test_a_dimension_without_spread_is_no_trouble():
    first = torch.cat([normal(50, [0.0], [1.0]), torch.ones(50, 1, dtype=torch.float64)], 1)
    assert frechet_distance(first, first + torch.tensor([0.0, 2.0])) == pytest.approx(4.0)
    constant = torch.ones(50, 2, dtype=torch.float64)
    assert frechet_distance(constant, constant + 1) == pytest.approx(2.0)


def test_too_few_images_are_said():
    with pytest.warns(UserWarning, match="3 images do not determine the covariance of 5 features"):
        frechet_distance(torch.randn(3, 5), torch.randn(9, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(torch.randn(6, 5), torch.randn(9, 5))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.randn(3, 2), torch.randn(3, 4), "equally many features, got 2 and 4; take both from one extractor"),
        (torch.ones(3), torch.ones(3, 4), r"features must be \[N, D\], got \[3\]; take all from one extractor"),
        (torch.ones(1, 2), torch.ones(3, 2), "needs at least two images, got 1; score more"),
        (torch.tensor([[0.0], [torch.nan], [1.0]]), torch.ones(3, 1), "features must be finite, got NaN"),
    ],
)
def test_what_cannot_be_compared(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)


def test_metric_equals_the_function_whatever_the_batches():
    first, second = correlated(230, 32, 1), correlated(170, 32, 2)
    metric = FrechetDistance(32)
    seen(metric, first, real=False)
    seen(metric, second[:0], real=True)
    seen(metric, second, real=True, batch=7)
    answer = metric.compute()
    assert answer.dtype == torch.float64
    assert float(answer) == pytest.approx(frechet_distance(first, second), rel=1e-12)
    metric.reset()
    seen(metric, second, real=False)
    seen(metric, second, real=True)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-9)


def test_a_mean_far_larger_than_the_spread_costs_no_digits():
    first, second = normal(400, [0.0, 0.0], [1.0, 2.0]), normal(300, [0.0, 0.0], [2.0, 2.0], 1)
    metric = FrechetDistance(2)
    seen(metric, first * 2**-10 + 2**20, real=False, batch=33)  # shifts and scales that float64 represents
    seen(metric, second * 2**-10 + 2**20, real=True, batch=50)
    assert float(metric.compute()) * 2**20 == pytest.approx(1.0, rel=1e-5)  # sums about zero lose all of it


def test_a_known_reference_stands_in_for_images_and_survives_reset():
    first, second = correlated(230, 32, 1), correlated(170, 32, 2)
    metric, known = FrechetDistance(32), FeatureStatistics.from_features(second)
    metric.set_reference(known)
    seen(metric, first, real=False)
    assert float(metric.compute()) == pytest.approx(frechet_distance(first, second), rel=1e-12)
    metric.reset()
    seen(metric, second, real=False)
    assert metric.statistics(real=True) is known
    mine = metric.statistics(real=False)
    assert mine.count == 170
    assert statistics_distance(mine, known) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="either statistics or images, got both; leave out real images"):
        metric.update(second, real=True)


def test_statistics_stay_as_they_were_read():
    first, second = correlated(60, 8, 1), correlated(50, 8, 2)
    metric = FrechetDistance(8)
    seen(metric, first, real=False)
    early = metric.statistics(real=False)
    seen(metric, second, real=False)
    metric.reset()
    torch.testing.assert_close(early.mean, first.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(early.covariance, first.T.cov(), rtol=1e-12, atol=1e-12)


def test_places_leave_out_what_comes_twice():
    first, second = (rows.float() for rows in (correlated(60, 8, 1), correlated(50, 8, 2)))
    metric = FrechetDistance(8)
    for index in torch.randperm(60, generator=torch.Generator().manual_seed(0)).split(7):
        metric.update(first[index], real=False, index=index)
    metric.update(first[[0, 0, 59]], real=False, index=torch.tensor([0, 0, 59]))
    seen(metric, second, real=True)
    assert metric.statistics(real=False).count == 60
    assert float(metric.compute()) == pytest.approx(frechet_distance(first, second), rel=1e-12)
    whole = FrechetDistance(8)  # images with a place and without: none of the latter is ever the same
    whole.update(first[:20], real=False, index=torch.arange(20))
    whole.update(first[10:20], real=False, index=torch.arange(10, 20))
    whole.update(first[20:], real=False)
    seen(whole, second, real=True)
    assert float(whole.compute()) == pytest.approx(frechet_distance(first, second), rel=1e-10)
    metric.reset()
    with pytest.raises(ValueError, match="at least two images, got 0"):
        metric.statistics(real=False)


def test_state_is_float64_after_half_and_survives_pickle():
    first, second = correlated(60, 8, 1), correlated(50, 8, 2)
    metric = FrechetDistance(8)
    seen(metric, first, real=False)
    holder = torch.nn.ModuleList([metric]).half()
    assert metric.features_scatter.dtype == torch.float64
    again: FrechetDistance = pickle.loads(pickle.dumps(holder[0]))
    seen(again, second, real=True)
    assert float(again.compute()) == pytest.approx(frechet_distance(first, second), rel=1e-12)


def test_refusals_of_the_metric():
    metric = FrechetDistance(4)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        FrechetDistance(0)
    with pytest.raises(ValueError, match="features must be finite, got NaN"):
        metric.update(torch.full((3, 4), torch.nan), real=False)
    with pytest.raises(ValueError, match=r"features must be \[N, 4\], got \[3, 5\]"):
        metric.update(torch.ones(3, 5), real=False)
    with pytest.raises(ValueError, match=r"one place per image, got \[2\] for 3 images"):
        metric.update(torch.ones(3, 4), real=False, index=torch.arange(2))
    placed = FrechetDistance(4)
    placed.update(torch.randn(3, 4), real=True, index=torch.arange(3))
    with pytest.raises(ValueError, match="got 3 images already; call reset"):
        placed.set_reference(FeatureStatistics.from_features(torch.randn(9, 4)))
    metric.update(torch.randn(5, 4), real=True)
    with pytest.raises(ValueError, match="got 5 images already; call reset"):
        metric.set_reference(FeatureStatistics.from_features(torch.randn(9, 4)))
    with pytest.raises(ValueError, match="must have 4 features, got 3; take both from one extractor"):
        metric.set_reference(FeatureStatistics.from_features(torch.randn(9, 3)))
    with pytest.raises(ValueError, match=r"covariance of the features needs at least two images, got 0; call update"):
        metric.compute()
