"""Innovation by hand, and Heaps' law where it can be read."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from smalti.eval.tokens.growth import growth
from smalti.eval.tokens.stream import TokenStream


def test_the_curve_is_the_mean_over_all_orders():
    ids = np.array([[0, 0, 1, -1], [1, 2, -1, -1], [1, 3, 4, 5], [0, 5, 5, 1]])
    found = growth(TokenStream.of(ids, 9))
    curves = []
    for order in permutations(range(4)):
        kinds = [set(row[row >= 0].tolist()) for row in ids[list(order)]]
        curves.append([len(set[int]().union(*kinds[:n])) for n in (1, 2, 3, 4)])
    assert found.images.tolist() == [1, 2, 3, 4]
    assert found.types == pytest.approx(np.mean(curves, axis=0))
    assert found.new_per_image == pytest.approx(found.types[3] - found.types[2])
    assert (found.count, found.tokens, found.share_after_100) == (4, 13, None)


def test_the_order_of_the_images_does_not_matter():
    ids = np.random.default_rng(0).integers(0, 500, (150, 16))
    one, other = growth(TokenStream.of(ids, 500)), growth(TokenStream.of(ids[::-1].copy(), 500))
    assert np.array_equal(one.types, other.types)
    assert one.share_after_100 == pytest.approx(float(one.types[one.images == 100][0]) / len(np.unique(ids)))


def test_a_uniform_source_uses_up_its_codebook():
    found = growth(TokenStream.of(np.random.default_rng(0).integers(0, 100, (200, 64)), 100))
    assert found.share_after_100 == pytest.approx(1)
    assert found.new_per_image == 0
    assert found.heaps_beta is None  # half of the codebook is gone after two images
    assert "heaps_beta" not in found.to_dict()
    expected = 100 * (1 - 0.99 ** (64 * found.images))
    assert found.types == pytest.approx(expected, abs=4)


def test_heaps_law_of_a_zipf_source():  # beta is 1 / s for s above 1
    shares = np.arange(1, 10**5 + 1) ** -1.5
    ids = np.random.default_rng(0).choice(10**5, (1000, 100), p=shares / shares.sum())
    found = growth(TokenStream.of(ids, 10**5))
    assert found.heaps_points == len(found.images)
    assert found.heaps_beta == pytest.approx(1 / 1.5, abs=0.03)


def test_where_every_token_is_new():  # V = tokens
    disjoint = growth(TokenStream.of(np.arange(1000).reshape(10, 100), 10**4))
    assert (disjoint.heaps_beta, disjoint.heaps_k) == (pytest.approx(1), pytest.approx(1))
    assert disjoint.to_dict()["types_after"]["10"] == pytest.approx(1000)
