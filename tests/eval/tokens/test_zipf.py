"""Zipf's exponent on planted sources."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.eval.tokens.stream import TokenStream
from smalti.eval.tokens.zipf import exponent, least_squares, ngram_zipf, split_half, zipf

K = 16_384


def planted(s: float, tokens: int, size: int = K, seed: int = 0) -> TokenStream:
    """Independent tokens of p(rank) ~ rank^-s, their names shuffled, in images of 16 x 16."""
    generator = np.random.default_rng(seed)
    shares = np.arange(1, size + 1) ** -float(s)
    ids = generator.permutation(size)[generator.choice(size, tokens, p=shares / shares.sum())]
    return TokenStream.of(ids.reshape(-1, 16, 16), size)


@pytest.mark.parametrize("s", [0, 0.5, 1, 1.5])
def test_a_planted_exponent_is_recovered(s):
    found = zipf(planted(s, 512_000), np.random.default_rng(0))
    assert found.count == 512_000
    assert found.exponent == pytest.approx(s, abs=0.05)


def test_ranks_of_the_same_sample_make_a_uniform_source_look_steep():
    found = zipf(planted(0, 512_000), np.random.default_rng(0))
    assert found.same_sample > 0.1
    assert found.ols > 0.1
    assert abs(found.exponent) < 0.01


@pytest.mark.parametrize("size", [7, 4096, 5000, 10**6])
@pytest.mark.parametrize("s", [-0.5, 0, 1, 1.7])
def test_the_exponent_solves_the_likelihood(s, size):
    ranks = np.arange(1, size + 1, dtype=float)
    shares = ranks**-s / (ranks**-s).sum()
    assert exponent(float((shares * np.log(ranks)).sum()), size) == pytest.approx(s, abs=1e-5)


def test_exact_shares_under_their_own_ranks():  # 2520 / r has the exponent 1 exactly
    counts = np.array([2520 // rank for rank in range(1, 11)])
    assert split_half(counts, counts, 10) == pytest.approx(1, abs=1e-6)
    slope, explained = least_squares(counts)
    assert (slope, explained) == (pytest.approx(1), pytest.approx(1))


def test_ties_share_their_ranks():  # all tied: ranks say nothing, whatever the counts
    assert split_half(np.array([3, 3, 3]), np.array([90, 9, 1]), 3) == pytest.approx(0, abs=1e-6)
    # types that the ranking half lacks tie with those that nobody has seen
    assert split_half(np.array([5, 0]), np.array([0, 4]), 1000) < 0


def test_least_squares_without_a_slope():
    assert least_squares(np.array([4])) == (0, 0)
    slope, explained = least_squares(np.array([2, 2, 2]))
    assert (slope, explained) == (pytest.approx(0, abs=1e-12), 1)


def test_ngrams_of_a_grid_and_of_a_sequence():
    ids = np.random.default_rng(0).integers(0, 3, (40, 3, 4))
    grid = ngram_zipf(TokenStream.of(ids, 3), np.random.default_rng(0))
    assert set(grid) == {f"horizontal_{n}" for n in (2, 3, 4)} | {"vertical_2", "vertical_3", "square_4"}
    assert grid["horizontal_3"].count == 40 * 3 * 2
    assert grid["square_4"].count == 40 * 2 * 3
    assert grid["horizontal_2"].types == 9
    assert abs(grid["horizontal_2"].exponent) < 0.15
    assert grid["horizontal_2"].seen == 1
    row = ngram_zipf(TokenStream.of(ids.reshape(40, 12), 3), np.random.default_rng(0))
    assert set(row) == {"horizontal_2", "horizontal_3", "horizontal_4"}


def test_ngrams_that_never_come_again_say_so():
    found = ngram_zipf(planted(0, 25_600), np.random.default_rng(0))["horizontal_4"]
    assert found.seen == 0
    assert found.exponent == pytest.approx(0, abs=0.01)


def test_of_a_huge_joint_codebook():
    found = ngram_zipf(TokenStream.of(np.arange(64).reshape(4, 16), 4096**16), np.random.default_rng(0))
    assert np.isfinite(found["horizontal_4"].exponent)
