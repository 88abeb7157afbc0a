"""Re-Pair on strings whose grammar is known."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from smalti.eval.tokens.grammar import Grammar, grammars, repair
from smalti.eval.tokens.stream import TokenStream


@pytest.mark.parametrize(
    ("texts", "rules", "left"),
    [
        (["abababab"], 2, 2),  # A -> ab, B -> AA, left: BB
        (["abcd"], 0, 4),
        (["aaaa"], 1, 2),  # A -> aa, left: AA
        (["aaa"], 0, 3),  # its two pairs overlap
        (["aaaaaaaa"], 2, 2),
        (["ab", "ab"], 1, 2),
        (["a", "b", "a", "b"], 0, 4),  # no pair reaches across two sequences
        (["abcabcabc"], 2, 3),
        ([""], 0, 0),
    ],
)
def test_by_hand(texts, rules, left):
    found = repair([text.encode() for text in texts])
    assert (found.rules, found.left) == (rules, left)
    assert found.count == sum(map(len, texts))
    assert found.terminals == len(set("".join(texts)))


def slow(symbols: list[int]) -> tuple[int, int]:
    """Rules and symbols left, with every pair counted anew in every round."""
    rules, fresh = 0, max(symbols) + 1
    while True:
        counts: dict[tuple[int, int], int] = {}
        ends: dict[tuple[int, int], int] = {}
        for at, pair in enumerate(pairwise(symbols)):
            if ends.get(pair) != at:  # the place before overlaps
                counts[pair], ends[pair] = counts.get(pair, 0) + 1, at + 1
        best = max(counts.values(), default=0)
        if best < 2:
            return rules, len(symbols)
        pair = min(pair for pair, count in counts.items() if count == best)
        merged: list[int] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == pair:
                merged[-1] = fresh
            else:
                merged.append(symbol)
        symbols, rules, fresh = merged, rules + 1, fresh + 1


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_the_slow_path(seed):
    """Ties may fall otherwise, so sizes agree closely, not exactly."""
    symbols = random.Random(seed).choices(range(6), weights=(8, 4, 2, 1, 1, 1), k=400)
    found = repair([symbols])
    rules, left = slow(symbols)
    assert found.size == pytest.approx(left + 2 * rules, rel=0.02)


def test_bits():
    assert Grammar(count=8, rules=2, left=2, terminals=2).ratio == pytest.approx(6 * 2 / 8)
    assert Grammar(count=8, rules=3, left=2, terminals=1).ratio == 1


def test_structure_is_the_gap_to_the_shuffled_tokens():
    motif = np.random.default_rng(0).integers(0, 32, (16, 4))
    ids = motif[np.random.default_rng(1).integers(0, 16, (64, 8))].reshape(64, 32)
    found = grammars(TokenStream.of(ids, 32), np.random.default_rng(0))
    assert found.stream.count == found.shuffled.count == 2048
    assert found.stream.ratio < 0.6 * found.shuffled.ratio
    assert found.to_dict()["shuffled_rules"] == found.shuffled.rules


def test_the_budget_is_kept_in_whole_images():
    ids = np.random.default_rng(0).integers(0, 9, (20, 10))
    assert grammars(TokenStream.of(ids, 9), np.random.default_rng(0), budget=75).stream.count == 70
    assert grammars(TokenStream.of(ids, 9), np.random.default_rng(0), budget=1).stream.count == 20
