"""What a linear classifier reads from frozen features: the least that a language model could."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ProbeScore:
    """How a probe did on features it was not fitted to."""

    accuracy: float  #: share of right classes
    chance: float  #: share of the commonest training class among the tested
    classes: int
    count: int  #: tested


def linear_probe(
    train: Tensor, labels: Sequence[str], test: Tensor, expected: Sequence[str], penalty: float = 1e-3
) -> ProbeScore:
    """Fit multinomial logistic regression and test it.

    Features are standardized by the training set; weights (not biases) carry ``penalty / 2`` times their square; the
    convex problem is solved by L-BFGS in float64 from zero, so that nothing is drawn and nothing is tuned.

    Args:
        train: ``[N, C]`` floats.
        labels: N class names.
        test: ``[M, C]`` floats.
        expected: M class names; one that training lacks counts as missed.
        penalty: of the weights, > 0.

    Raises:
        ValueError: counts that do not fit, fewer than two classes, or a penalty that is not above 0.
    """
    if len(train) != len(labels) or len(test) != len(expected) or train.shape[1:] != test.shape[1:] or not len(test):
        raise ValueError(
            f"a probe needs one label for each feature row, got {list(train.shape)} with {len(labels)} labels and "
            f"{list(test.shape)} with {len(expected)}; label every picture once"
        )
    if penalty <= 0:
        raise ValueError(f"the penalty of a probe must be above 0, got {penalty}; 1e-3 is the default")
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"a probe needs at least two classes, got {names}; label pictures of several kinds")
    numbers = {name: number for number, name in enumerate(names)}
    wanted = torch.tensor([numbers[label] for label in labels])
    rows, others = _standardized(train.double().cpu(), test.double().cpu())
    weights = _fitted(rows, wanted, len(names), penalty)
    found = (others @ weights[:-1] + weights[-1]).argmax(1).tolist()
    commonest = names[int(torch.bincount(wanted).argmax())]
    right = sum(names[number] == name for number, name in zip(found, expected, strict=True))
    common = sum(name == commonest for name in expected)
    return ProbeScore(right / len(expected), common / len(expected), len(names), len(expected))


def _standardized(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-8)
    return (train - mean) / spread, (test - mean) / spread


def _fitted(rows: Tensor, wanted: Tensor, classes: int, penalty: float) -> Tensor:
    """``[C + 1, K]``, the biases last."""
    weights = torch.zeros(rows.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        fit = F.cross_entropy(rows @ weights[:-1] + weights[-1], wanted)
        value = fit + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)  # pyright: ignore[reportArgumentType]: typed for floats
    return weights.detach()
