"""Witten-Bell models by a slow path, and on sources whose perplexity is known."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.eval.tokens.ngrams import ngram_model, perplexities
from smalti.eval.tokens.stream import TokenStream


def slow(train, test, size: int) -> list[float]:
    """Perplexities, counted one n-gram at a time."""
    rows = [[token for token in row if token >= 0] for row in train.tolist()]

    def chance(token: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        grams = [tuple(row[at : at + n]) for row in rows for at in range(len(row) - n + 1)]
        after = [gram[-1] for gram in grams if gram[:-1] == context]
        below = 1 / size if not context else chance(token, context[1:])
        return (after.count(token) + len(set(after)) * below) / (len(after) + len(set(after))) if after else below

    found = []
    for n in (1, 2, 3):
        bits = []
        for row in test.tolist():
            tokens = [token for token in row if token >= 0]
            bits += [-np.log(chance(one, tuple(tokens[max(0, at - n + 1) : at]))) for at, one in enumerate(tokens)]
        found.append(float(np.exp(np.mean(bits))))
    return found


@pytest.mark.parametrize("size", [5, 2**40])
def test_equals_the_slow_path(size):
    generator = np.random.default_rng(0)
    train, test = generator.integers(0, 4, (12, 7)), generator.integers(0, 5, (5, 7))
    train[3, 4:] = -1
    test[2, 1:] = -1
    if size > 5:
        train, test = (np.where(ids >= 0, ids * (size // 5), -1) for ids in (train, test))
    assert perplexities(train, test, size) == pytest.approx(slow(train, test, size))


def test_a_uniform_source_is_as_hard_as_its_size():
    ids = np.random.default_rng(0).integers(0, 16, (200, 64))
    found = ngram_model(TokenStream.of(ids, 16), np.random.default_rng(0))
    assert found.perplexity[0] == pytest.approx(16, rel=0.01)
    assert found.perplexity[1] == pytest.approx(16, rel=0.05)
    assert (found.trained, found.count) == (160 * 64, 40 * 64)


def test_structure_is_the_gap_to_the_controls():
    """Steps of one through 8 symbols: foretold with the token before, not without, not when shuffled."""
    starts = np.random.default_rng(0).integers(0, 8, (100, 1))
    found = ngram_model(TokenStream.of((starts + np.arange(32)) % 8, 8), np.random.default_rng(0))
    assert found.perplexity[0] == pytest.approx(8, rel=0.01)
    assert found.perplexity[1] < 1.2
    assert found.within[1] == pytest.approx(8, rel=0.1)
    assert found.across[1] == pytest.approx(8, rel=0.05)


def test_the_taste_of_an_image_survives_shuffling_within_it():
    """Each image has one symbol; its places do not matter."""
    ids = np.random.default_rng(0).integers(0, 8, (100, 1)).repeat(32, axis=1)
    found = ngram_model(TokenStream.of(ids, 8), np.random.default_rng(0))
    assert found.within[1] == pytest.approx(found.perplexity[1])
    assert found.across[1] == pytest.approx(8, rel=0.05)


def test_a_place_of_its_own_is_no_grammar():
    """Every place has two symbols of its own, drawn apart: the token before only says where one is."""
    ids = np.random.default_rng(0).integers(0, 2, (200, 8)) + 2 * np.arange(8)
    found = ngram_model(TokenStream.of(ids, 16), np.random.default_rng(0))
    assert found.perplexity[1] < 3
    assert found.in_place[1] == pytest.approx(found.perplexity[1], rel=0.02)
    assert found.within[1] > 6


def test_the_scan_order_is_read():
    rows = np.random.default_rng(0).integers(0, 8, (150, 6, 1)).repeat(6, axis=2)
    raster, column = (
        ngram_model(TokenStream.of(rows, 8, order), np.random.default_rng(0)) for order in ("raster", "column")
    )
    assert raster.perplexity[1] < 2 < 6 < column.perplexity[1]


def test_images_shorter_than_the_context():
    assert perplexities(np.array([[0], [1]]), np.array([[1]]), 2) == pytest.approx((2, 2, 2))
