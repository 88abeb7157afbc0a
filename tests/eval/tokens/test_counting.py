"""Counting by sorting against counting by dictionaries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smalti.eval.tokens.counting import Table, combined, labels, tally, tally_halves


@pytest.mark.parametrize("top", [4, 2**20, 2**40])
def test_rows_are_told_apart(top):
    generator = np.random.default_rng(0)
    columns = [generator.choice([0, 1, top - 1], 300) for _ in range(4)]
    keys, rows = combined(columns), list(zip(*columns, strict=True))
    assert len(set(zip(keys.tolist(), rows, strict=True))) == len(set(keys.tolist())) == len(set(rows))
    assert keys.min() >= 0
    assert keys.max() < 2**62


@pytest.mark.parametrize("scale", [1, 10**9])
def test_counts(scale):
    keys = np.random.default_rng(0).integers(0, 50, 200) * scale
    expected = Counter(keys.tolist())
    assert tally(keys).tolist() == [expected[key] for key in sorted(expected)]
    table = Table.of(keys)
    asked = np.array([key * scale for key in (0, 49, 50, 7)])
    assert table.look_up(asked).tolist() == [expected[key] for key in asked.tolist()]
    assert len(tally(keys[:0])) == 0
    assert Table.of(keys[:0]).look_up(asked).tolist() == [0] * 4


def test_halves():
    first, second = tally_halves(np.array([5, 5, 9]), np.array([2, 9, 9, 2]))
    assert (first.tolist(), second.tolist()) == ([0, 2, 1], [2, 0, 2])


def test_labels_keep_the_order():
    assert labels(np.array([40, 10, 40, 70])).tolist() == [1, 0, 1, 2]
