"""Linear probes on features whose classes are known."""

from __future__ import annotations

import pytest
import torch

from smalti.eval.probe import linear_probe


def clouds(count: int, seed: int, apart: float = 6.0) -> tuple[torch.Tensor, list[str]]:
    """Three clouds on a triangle, in features of unlike scale."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(3, (count,), generator=generator)
    middles = apart * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    rows = middles[numbers] + torch.randn(count, 2, generator=generator)
    return rows * torch.tensor([1e-3, 1e3]) + 5, ["abc"[number] for number in numbers.tolist()]


def test_classes_that_lie_apart_are_told_apart():
    score = linear_probe(*clouds(300, 0), *clouds(200, 1))
    assert score.accuracy > 0.97
    assert (score.classes, score.count) == (3, 200)
    assert 0.2 < score.chance < 0.5


def test_features_without_a_class_are_at_chance():
    _, labels = clouds(600, 0)
    noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(9))
    score = linear_probe(noise[:400], labels[:400], noise[400:], labels[400:])
    assert score.accuracy == pytest.approx(score.chance, abs=0.1)


def test_it_is_the_optimum_and_draws_nothing():
    """Two classes on a line: the boundary of the symmetric problem is in the middle, whatever the random state."""
    train, labels = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), ["low", "low", "high", "high"]
    test, expected = torch.tensor([[-0.01], [0.01]]), ["low", "high"]
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert linear_probe(train, labels, test, expected).accuracy == 1


def test_a_class_that_training_lacks_is_missed():
    train, labels = clouds(60, 0)
    assert linear_probe(train, labels, train[:1], ["d"]).accuracy == 0


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"], {}, "needs one label for each feature row"),
        (["a", "a"], {}, r"at least two classes, got \['a'\]"),
        (["a", "b"], {"penalty": 0.0}, "penalty of a probe must be above 0"),
    ],
)
def test_what_cannot_be_fitted(labels, options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(torch.zeros(2, 3), labels, torch.zeros(1, 3), ["a"], **options)
