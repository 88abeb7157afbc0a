"""The Inception score against its definition image by image."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from smalti.eval.images.inception_score import InceptionScoreMetric, inception_score

pytestmark = pytest.mark.filterwarnings("ignore:.*do not show how often each class is drawn")


def logits(count: int, seed: int = 0, classes: int = 7) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 3


def by_definition(block: torch.Tensor) -> float:
    """Loops over images and classes in Python floats."""
    chances = []
    for row in block.tolist():
        powers = [math.exp(value - max(row)) for value in row]
        chances.append([power / sum(powers) for power in powers])
    overall = [sum(column) / len(chances) for column in zip(*chances, strict=True)]
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, overall, strict=True)) for row in chances]
    return math.exp(sum(divergences) / len(divergences))


def test_equals_the_definition_on_consecutive_blocks():
    rows = logits(30)
    blocks = [by_definition(block) for block in rows.split(10)]
    score = inception_score(rows, splits=3)
    assert score.mean == pytest.approx(sum(blocks) / 3, rel=1e-6)
    assert score.std == pytest.approx((sum((block - score.mean) ** 2 for block in blocks) / 3) ** 0.5, rel=1e-6)
    assert inception_score(rows, splits=1).mean == pytest.approx(by_definition(rows), rel=1e-6)


def test_bounds():  # sure of 8 classes alike: 8; the same answer for all: 1
    sure = torch.eye(8).repeat(5, 1) * 2000  # probabilities of exactly 0 and 1
    assert inception_score(sure, splits=5).mean == pytest.approx(8)
    assert inception_score(sure, splits=5).std == pytest.approx(0, abs=1e-9)
    assert inception_score(torch.ones(9, 8).cumsum(1), splits=1).mean == pytest.approx(1)


def test_order_decides_and_sorting_by_class_is_visible():
    sorted_by_class = torch.eye(4).repeat_interleave(12, 0) * 50
    assert inception_score(sorted_by_class, splits=4).mean == pytest.approx(1)
    assert inception_score(sorted_by_class.view(4, 12, 4).transpose(0, 1).reshape(48, 4), 4).mean == pytest.approx(4)


@pytest.mark.parametrize("count", [30, 32])
def test_metric_equals_the_function_in_any_order_and_drops_what_comes_twice(count):
    rows = logits(count)
    metric, order = InceptionScoreMetric(count, 5, 7), torch.randperm(count, generator=torch.Generator().manual_seed(1))
    for index in order.split(7):
        metric.update(rows[index], index)
    metric.update(rows[:4], torch.arange(4))
    metric.update(rows[[3, 3]], torch.tensor([3, 3]))
    expected = inception_score(rows, 5)
    assert float(metric.compute()["mean"]) == pytest.approx(expected.mean, rel=1e-12)
    assert float(metric.compute()["std"]) == pytest.approx(expected.std, rel=1e-9)


def test_places_may_be_left_out_in_one_process():
    rows = logits(30)
    metric = InceptionScoreMetric(30, 3, 7)
    for batch in rows.split(8):
        metric.update(batch)
    assert float(metric.compute()["mean"]) == pytest.approx(inception_score(rows, 3).mean, rel=1e-12)


def test_few_images_are_said_once():
    metric = InceptionScoreMetric(199, 2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in logits(199).split(50):
            metric.update(batch)
        inception_score(logits(200), 2)
    for score in (metric.compute, lambda: inception_score(logits(199), 2)):
        with pytest.warns(UserWarning, match="199 images in 2 splits do not show how often .* too small") as caught:
            score()
        assert len(caught) == 1


def test_sums_stay_float64():
    metric = InceptionScoreMetric(30, 3, 7)
    metric.update(logits(30).half())
    torch.nn.ModuleList([metric]).half()
    assert metric.marginals.dtype == metric.compute()["mean"].dtype == torch.float64


def test_refusals():
    with pytest.raises(ValueError, match="got 3 images in 10 splits; score more images or take fewer splits"):
        inception_score(logits(3))
    with pytest.raises(ValueError, match="got 3 images in 0 splits"):
        InceptionScoreMetric(3, 0)
    with pytest.raises(ValueError, match=r"logits must be \[N, K\], got \[30\]"):
        inception_score(logits(30)[:, 0])
    with pytest.raises(ValueError, match="logits must be finite, got NaN"):
        inception_score(logits(30) * torch.nan)
    metric = InceptionScoreMetric(20, 2, 7)
    with pytest.raises(ValueError, match=r"logits must be \[B, 7\], got \[3, 8\]"):
        metric.update(logits(3, classes=8))
    with pytest.raises(ValueError, match="below 20, the number of images to score, got 20; pass count="):
        metric.update(logits(21))
    metric.update(logits(5))
    with pytest.raises(ValueError, match="expected 20 images, got 5 of them; score all"):
        metric.compute()
    metric.seen += 1  # as a sum over processes leaves it
    with pytest.raises(ValueError, match="got 5 on several; use a sampler that does not pad"):
        metric.compute()
