"""Entropies against distributions whose bits are known."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from smalti.eval.tokens.entropy import (
    conditional_entropies,
    entropy,
    mutual_information,
    plug_in,
    token_entropy,
    usage,
)
from smalti.eval.tokens.stream import TokenStream

K = 16_384


def zipfian(s: float, tokens: int, seed: int = 0) -> tuple[float, np.ndarray]:
    """Bits of the source, and the counts of a sample."""
    shares = np.arange(1, K + 1) ** -float(s)
    shares /= shares.sum()
    counts = np.bincount(np.random.default_rng(seed).choice(K, tokens, p=shares), minlength=K)
    return float(-(shares * np.log2(shares)).sum()), counts[counts > 0]


def test_by_hand():  # shares 1/2, 1/4, 1/8, 1/8
    found = entropy(np.array([4, 2, 1, 1]), 4)
    assert found.plug_in == pytest.approx(1.75)
    assert found.miller_madow == pytest.approx(1.75 + 3 / 16 / np.log(2))
    assert found.coverage == 0.75
    assert (found.count, found.types) == (8, 4)


def test_certainty_is_no_bit():
    found = entropy(np.array([9]), 5)
    assert (found.plug_in, found.miller_madow, found.estimate, found.coverage) == (0, 0, pytest.approx(0), 1)


def test_the_estimate_is_that_of_the_accumulation_curve():
    """The seen part is the mean of 1/m over draws without replacement: sum over k of the chance that a type is new."""
    counts, total = np.array([5, 3, 2, 2]), 12  # no type once: nothing is left to extrapolate
    slow = Fraction(0)
    for k in range(1, total):
        for x in counts.tolist():
            slow += Fraction(1, k) * Fraction(x, total) * Fraction(comb(total - 1 - (x - 1), k), comb(total - 1, k))
    assert entropy(counts, 9).estimate == pytest.approx(float(slow) / np.log(2))


@pytest.mark.parametrize(("images", "plain", "corrected"), [(100, 13.46, 13.83), (1000, 13.95, 14.00)])
def test_uniform_tokens(images, plain, corrected):
    bits, counts = zipfian(0, images * 256)
    found = entropy(counts, K)
    assert bits == 14
    assert found.plug_in == pytest.approx(plain, abs=0.02)
    assert found.miller_madow == pytest.approx(corrected, abs=0.02)
    assert found.estimate == pytest.approx(14, abs=0.05)
    assert not found.estimate_biased
    assert found.miller_madow_biased == (images == 100)
    assert found.perplexity == pytest.approx(K, rel=0.04)


@pytest.mark.parametrize("s", [0.5, 1, 1.5])
def test_the_estimate_beats_miller_madow_on_zipf(s):
    errors = []
    for seed in range(4):
        bits, counts = zipfian(s, 25_600, seed)
        found = entropy(counts, K)
        errors.append((abs(found.estimate - bits), abs(found.miller_madow - bits)))
    ours, theirs = np.mean(errors, axis=0)
    assert ours < 0.08
    assert ours < 0.6 * theirs


def test_no_estimate_exceeds_what_the_types_can_have():
    """Uniform tokens of eight types: by chance the estimate comes out above three bits about every other time."""
    draws = [np.random.default_rng(seed).integers(0, 8, (4, 12)) for seed in range(20)]
    found = [token_entropy(TokenStream.of(ids, 8)) for ids in draws]
    assert max(one.estimate for one in found) == 3
    assert max(one.perplexity for one in found) == 8
    known = [
        one for ids in draws for one in conditional_entropies(TokenStream.of(ids, 8), np.random.default_rng(0)).values()
    ]
    assert all(0 <= one.estimate <= 3 for one in known)
    assert entropy(np.array([1, 1]), 2).estimate <= 1


def test_too_few_tokens_are_labelled():
    bits, counts = zipfian(1, 2_560)
    found = entropy(counts, K)
    assert bits - found.estimate > 0.2
    assert found.estimate_biased
    assert found.miller_madow_biased
    assert entropy(np.ones(9, np.int64), K).estimate_biased  # no type came twice


def test_usage_beside_that_of_a_uniform_source():
    ids = np.random.default_rng(0).integers(0, K, (10, 256))
    found = usage(TokenStream.of(ids, K))
    assert found.count == 2560
    assert found.usage == pytest.approx(0.144, abs=0.003)
    assert found.uniform == pytest.approx(0.145, abs=0.001)
    assert usage(TokenStream.of(np.zeros((2, 3), np.int64), 1)).usage == 1


def markov(keep: float, images: int, length: int) -> np.ndarray:
    """Two symbols, the next one the same with probability ``keep``."""
    generator = np.random.default_rng(0)
    turns = generator.random((images, length)) > keep
    turns[:, 0] = generator.random(images) > 0.5
    return np.cumsum(turns, axis=1) % 2


def binary(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def test_a_chain_of_two_symbols():
    stream = TokenStream.of(markov(0.9, 500, 64).astype(np.int64), 2)
    assert token_entropy(stream).estimate == pytest.approx(1, abs=0.01)
    found = conditional_entropies(stream, np.random.default_rng(0))
    assert set(found) == {"previous"}
    assert found["previous"].count == 500 * 63
    assert found["previous"].plug_in == pytest.approx(binary(0.1), abs=0.02)
    assert found["previous"].estimate == pytest.approx(binary(0.1), abs=0.02)
    assert found["previous"].shuffled == pytest.approx(1, abs=0.01)
    information = mutual_information(stream, np.random.default_rng(0))
    for steps in (1, 2, 4, 8):  # the chance of standing on the same symbol is (1 + .8^d) / 2
        expected = 1 - binary((1 + 0.8**steps) / 2)
        assert information[f"next_{steps}"].gain == pytest.approx(expected, abs=0.02)


def test_rows_of_a_grid_that_alternate():
    """Every row is constant, and rows are drawn at random: the left neighbour tells all, the upper one nothing."""
    rows = np.random.default_rng(0).integers(0, 2, (400, 8, 1))
    found = conditional_entropies(TokenStream.of(rows.repeat(8, axis=2), 2), np.random.default_rng(0))
    assert found["left"].plug_in == pytest.approx(0, abs=1e-9)
    assert found["left"].gain == pytest.approx(1, abs=0.01)
    assert found["up"].plug_in == pytest.approx(1, abs=0.01)
    assert found["up"].gain == pytest.approx(0, abs=0.01)
    assert found["left_up"].plug_in == pytest.approx(0, abs=1e-9)
    information = mutual_information(TokenStream.of(rows.repeat(8, axis=2), 2), np.random.default_rng(0))
    assert set(information) == {f"{way}_{steps}" for way in ("right", "down") for steps in (1, 2, 4)}
    assert information["right_4"].gain == pytest.approx(1, abs=0.01)
    assert information["down_1"].gain == pytest.approx(0, abs=0.01)


def test_the_control_has_the_bias_of_the_measure():
    ids = np.random.default_rng(0).integers(0, 1000, (20, 16, 16))
    found = conditional_entropies(TokenStream.of(ids, 1000), np.random.default_rng(0))
    assert found["left"].plug_in < 6  # of 10 bits
    assert abs(found["left"].gain) < 0.02
    assert found["left_up"].estimate_biased


def test_plug_in_of_equal_shares():
    assert plug_in(np.full(8, 3)) == pytest.approx(3)
