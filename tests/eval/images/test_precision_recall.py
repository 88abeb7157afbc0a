"""Precision and recall by hand and against plain loops."""

from __future__ import annotations

import pytest
import torch

from smalti.eval.images import precision_recall as module
from smalti.eval.images.precision_recall import PrecisionRecall, precision_recall


def by_loops(first: torch.Tensor, second: torch.Tensor, k: int) -> PrecisionRecall:
    def share(points: torch.Tensor, others: torch.Tensor) -> float:
        reach = [
            sorted(float((x - y).norm()) for j, y in enumerate(others) if j != i)[k - 1] for i, x in enumerate(others)
        ]
        inside = [any(float((p - x).norm()) <= r for x, r in zip(others, reach, strict=True)) for p in points]
        return sum(inside) / len(inside)

    return PrecisionRecall(share(first, second), share(second, first))


def test_on_a_line():
    real = torch.tensor([0.0, 1.0, 2.0, 10.0])[:, None]  # reach of the nearest other: 1, 1, 1, 8
    generated = torch.tensor([2.5, 3.5, -1.5, 30.0])[:, None]  # reach 1, 1, 4, 26.5
    # 2.5 and 3.5 lie within 8 of 10; -1.5 and 30 within nothing.
    # 0, 1 and 2 lie within 4 of -1.5, and 10 within 26.5 of 30.
    assert precision_recall(generated, real, k=1) == PrecisionRecall(0.5, 1.0)


@pytest.mark.parametrize("block", [4, 2048])
def test_equals_loops_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    first = torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = torch.randn(14, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5 + 100
    for k in (1, 3, 5):
        assert precision_recall(first + 100, second, k) == by_loops(first + 100, second, k)


def test_what_it_tells_apart():
    real = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert precision_recall(real, real) == PrecisionRecall(1.0, 1.0)
    assert precision_recall(real + 100, real) == PrecisionRecall(0.0, 0.0)
    narrow = precision_recall(real[:100] * 0.1, real)  # good pictures of little variety
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2


def test_refusals():
    real = torch.randn(5, 2)
    with pytest.raises(ValueError, match="below the number of images of either set, got 3 and 3 images"):
        precision_recall(real, real[:3])
    with pytest.raises(ValueError, match=r"k must be at least 1 .*, got 0"):
        precision_recall(real, real, k=0)
    with pytest.raises(ValueError, match=r"features must be \[N, 2\], got \[5, 3\]"):
        precision_recall(real, torch.randn(5, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        precision_recall(real * torch.nan, real)
