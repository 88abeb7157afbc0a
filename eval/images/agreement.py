"""Semantic agreement: whether two pictures mean the same to a frozen vision network, however their pixels differ.

Knows no network: what is compared are features. A cosine says little by itself, because the features of any two
pictures share a direction; the chance level is what unrelated pictures of the same set reach.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .summed import SummedMetric


class AgreementMetric(SummedMetric):
    """Mean cosine of paired features, exact however unevenly the pairs fall on batches and processes.

    States are float64 sums: the chance level is that of all pairs of different pictures, from the sums of the unit
    vectors alone. float64 does not exist on MPS: keep the metric on the CPU there.

    Args:
        num_features: D.
    """

    higher_is_better = True

    matched: Tensor
    first_sum: Tensor
    second_sum: Tensor
    count: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        for name in ("first_sum", "second_sum"):
            self.add_state(name, torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("matched", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add one batch of pairs.

        Args:
            first: ``[B, D]`` floats, features of the originals.
            second: ``[B, D]`` floats, features of their counterparts.

        Raises:
            ValueError: other or unequal shapes, or features that are not finite.
        """
        width = self.first_sum.shape[0]
        if first.shape != second.shape or first.ndim != 2 or first.shape[1] != width:
            raise ValueError(
                f"agreement compares two batches [B, {width}] of features, got {list(first.shape)} and "
                f"{list(second.shape)}; take both from the network that it was made for"
            )
        if not bool(first.isfinite().all() & second.isfinite().all()):
            raise ValueError("features must be finite, got NaN or infinity; the network is damaged, or needs float32")
        a, b = (F.normalize(each.to(self.count.device).double(), dim=1) for each in (first, second))
        self.matched += (a * b).sum()
        self.first_sum += a.sum(0)
        self.second_sum += b.sum(0)
        self.count += len(a)

    def compute(self) -> dict[str, Tensor]:
        """The means over all pairs seen.

        Returns:
            ``agreement``, the mean cosine of each picture's features with its own counterpart's, and
            ``agreement_chance``, with the counterparts of all other pictures; float64 scalars in [-1, 1]. One pair has
            no chance level.

        Raises:
            ValueError: no pair was seen.
        """
        count = int(self.count)
        if count == 0:
            raise ValueError("expected at least one pair, got none; call update() before compute()")
        found = {"agreement": self.matched / count}
        if count > 1:
            found["agreement_chance"] = (self.first_sum @ self.second_sum - self.matched) / (count * (count - 1))
        return found
