"""Agreement: cosines by hand, chance as a slow loop over pairs, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.eval.images.agreement import AgreementMetric


def test_cosines_by_hand():
    metric = AgreementMetric(2)
    metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    found = metric.compute()
    assert float(found["agreement"]) == pytest.approx((1 + 0.8) / 2)
    assert float(found["agreement_chance"]) == pytest.approx((0.6 + 0) / 2)


def test_chance_is_the_mean_over_all_other_pairs_whatever_the_batches():
    first, second = torch.randn(7, 5), torch.randn(7, 5)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = sum(float(F.cosine_similarity(first[i], second[j], dim=0)) for i, j in pairs) / len(pairs)
    for sizes in ([7], [2, 5], [1] * 7):
        metric = AgreementMetric(5)
        for a, b in zip(first.split(sizes), second.split(sizes), strict=True):
            metric.update(a, b)
        found = metric.compute()
        assert float(found["agreement_chance"]) == pytest.approx(expected, abs=1e-6)
        assert float(found["agreement"]) == pytest.approx(float(F.cosine_similarity(first, second).mean()), abs=1e-6)


def test_one_pair_has_no_chance():
    metric = AgreementMetric(2)
    metric.update(torch.ones(1, 2), torch.ones(1, 2))
    assert {name: float(value) for name, value in metric.compute().items()} == {"agreement": pytest.approx(1)}


def test_what_does_not_fit_is_refused():
    metric = AgreementMetric(2)
    with pytest.raises(ValueError, match=r"two batches \[B, 2\] of features, got \[1, 3\] and \[1, 3\]"):
        metric.update(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        metric.update(torch.ones(1, 2), torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="expected at least one pair, got none"):
        metric.compute()
