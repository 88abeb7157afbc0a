"""Means over items of a validation, and how items are dealt out; two processes are tried in `test_distributed.py`."""

from __future__ import annotations

import pytest
import torch

from smalti.training.resume import DealtOrder
from smalti.training.scores import Scores

CPU = torch.device("cpu")


def test_means_are_over_items_and_not_over_batches():
    scores = Scores()
    scores.add({"loss": torch.tensor(1.0), "only": torch.tensor(5.0)}, 3)
    scores.add({"loss": torch.tensor(9.0)}, torch.tensor(1))
    found = scores.compute(CPU)
    assert {name: value.item() for name, value in found.items()} == {"loss": 3.0, "only": 5.0}
    assert scores.compute(CPU) == {}


def test_a_mean_over_nothing_is_zero_and_does_not_count():
    scores = Scores()
    scores.add({"loss": torch.tensor(torch.nan)}, 0)
    assert scores.compute(CPU)["loss"].item() == 0.0
    scores.add({"loss": torch.tensor(2.0)}, 1)
    scores.add({"loss": torch.tensor(torch.nan)}, 0)
    assert scores.compute(CPU)["loss"].item() == 2.0


@pytest.mark.parametrize(("length", "world"), [(5, 2), (7, 3), (2, 4), (6, 1)])
def test_every_item_is_dealt_out_once(length, world):
    orders = [DealtOrder(list(range(length)), rank, world) for rank in range(world)]
    dealt = [list(order) for order in orders]
    assert sorted(item for part in dealt for item in part) == list(range(length))
    assert dealt[0] == list(range(0, length, world))
    assert [len(order) for order in orders] == [len(part) for part in dealt]
