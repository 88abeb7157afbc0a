"""The Frechet distance against normals whose distance is known in closed form."""

from __future__ import annotations

import warnings

import pytest
import torch

from smalti.eval.frechet import frechet_distance


def normal(count: int, mean: list[float], spread: list[float], seed: int = 0) -> torch.Tensor:
    """Features whose mean and covariance are exactly those."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    rows = rows - rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T).view(len(mean), -1)).T)
    return rows * torch.tensor(spread) + torch.tensor(mean)


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


def test_a_dimension_without_spread_is_no_trouble():
    first = torch.cat([normal(50, [0.0], [1.0]), torch.ones(50, 1, dtype=torch.float64)], 1)
    assert frechet_distance(first, first + torch.tensor([0.0, 2.0])) == pytest.approx(4.0)


def test_too_few_images_are_said():
    with pytest.warns(UserWarning, match="3 images do not determine the covariance of 5 features"):
        frechet_distance(torch.randn(3, 5), torch.randn(9, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(torch.randn(6, 5), torch.randn(9, 5))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), "take both from one extractor"),
        (torch.ones(1, 2), torch.ones(3, 2), "needs at least two images, got 1 and 3"),
        (torch.tensor([[0.0], [torch.nan], [1.0]]), torch.ones(3, 1), "must be finite"),
    ],
)
def test_what_cannot_be_compared(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)
