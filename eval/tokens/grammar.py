"""The smallest grammar that greed finds: Re-Pair (Larsson and Moffat 1999) on tokens.

A cheap stand-in for the trained grammars of the paper: how many rules the repetitions in a stream are worth, and how
much shorter it becomes, beside the same tokens shuffled.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...tokenizers.codes import PADDING
from .stream import TokenStream

BUDGET = 65_536  #: tokens read at most, in whole images: the work is done pair by pair


@dataclass(frozen=True)
class Grammar:
    """Rules ``A -> x y``, and what is left of the sequences when every pair that occurs twice is replaced."""

    count: int  #: tokens read
    rules: int  #: R
    left: int  #: symbols of all sequences after replacement
    terminals: int  #: distinct tokens

    @property
    def size(self) -> int:
        """Symbols of the whole grammar: what is left and two for each rule."""
        return self.left + 2 * self.rules

    @property
    def ratio(self) -> float:
        """Bits of the grammar over bits of the tokens, at log2 of the number of symbols each."""
        if self.terminals < 2:
            return self.size / self.count
        bits = self.size * math.log2(self.terminals + self.rules)
        return bits / (self.count * math.log2(self.terminals))

    def to_dict(self) -> dict[str, float]:
        """Fields and properties by name."""
        return {**vars(self), "size": self.size, "ratio": self.ratio}


@dataclass(frozen=True)
class Grammars:
    """The grammar of a stream beside that of its tokens shuffled across images."""

    stream: Grammar
    shuffled: Grammar

    def to_dict(self) -> dict[str, float]:
        """The fields of the stream's grammar, and ``shuffled_rules`` and ``shuffled_ratio``."""
        control = {"shuffled_rules": self.shuffled.rules, "shuffled_ratio": self.shuffled.ratio}
        return {**self.stream.to_dict(), **control}


def grammars(stream: TokenStream, generator: np.random.Generator, budget: int = BUDGET) -> Grammars:
    """Grammars of as many whole images as the budget allows, at least two.

    Args:
        stream: read in its scan order.
        generator: draws the images and shuffles the control.
        budget: tokens at most.
    """
    images = generator.permutation(stream.images)
    tokens = np.cumsum((stream.ids[images] != PADDING).sum(1))
    part = stream.part(images[: max(2, int(np.searchsorted(tokens, budget, side="right")))])
    return Grammars(_of(part), _of(part.shuffled(generator)))


def repair(sequences: Sequence[Sequence[int]]) -> Grammar:
    """Replace the most frequent pair by a new symbol until none occurs twice.

    Args:
        sequences: tokens >= 0; no pair reaches across two of them.
    """
    work = _Work(sequences)
    terminals = len({symbol for symbol in work.symbols if symbol >= 0})
    count = work.left
    while work.replace_best():
        pass
    return Grammar(count, work.rules, work.left, terminals)


def _of(stream: TokenStream) -> Grammar:
    return repair([row[row != PADDING].tolist() for row in stream.scanned])


class _Work:
    """Sequences as linked lists with the places of every pair.

    Args:
        sequences: tokens >= 0.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.symbols = [-1]  # also between sequences, at the end, and where a symbol was taken away
        for sequence in sequences:
            self.symbols += [*sequence, -1]
        last = len(self.symbols) - 1
        self.before = [max(0, place - 1) for place in range(last + 1)]
        self.after = [min(last, place + 1) for place in range(last + 1)]
        self.left, self.rules = last - len(sequences), 0
        self.next_symbol = max(self.symbols) + 1
        self.places: dict[tuple[int, int], set[int]] = defaultdict(set)
        for place in range(last):
            self._add(place)
        self.heap = [(-len(found), pair) for pair, found in self.places.items() if len(found) > 1]
        heapq.heapify(self.heap)

    def replace_best(self) -> bool:
        """Replace one pair; False when no pair occurs twice."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            found = self.places.get(pair, set())
            if len(found) < 2:
                continue
            if len(found) < -count:  # it has lost places since it was pushed
                heapq.heappush(self.heap, (-len(found), pair))
                continue
            chosen = self._apart(pair, found)
            if len(chosen) > 1:
                self._replace(pair, chosen)
                return True
        return False

    def _apart(self, pair: tuple[int, int], found: set[int]) -> list[int]:
        """Places that do not overlap, from the left; only a pair of equal symbols can overlap itself."""
        if pair[0] != pair[1]:
            return sorted(found)
        chosen: list[int] = []
        taken = -1
        for place in sorted(found):
            if place != taken:
                chosen.append(place)
                taken = self.after[place]
            else:
                taken = -1
        return chosen

    def _replace(self, pair: tuple[int, int], chosen: list[int]) -> None:
        symbol, self.next_symbol = self.next_symbol, self.next_symbol + 1
        self.rules += 1
        touched: set[tuple[int, int]] = set()
        for place in chosen:
            second = self.after[place]
            for start in (self.before[place], place, second):
                self._remove(start)
            follower = self.after[second]
            self.symbols[place], self.symbols[second] = symbol, -1
            self.after[place], self.before[follower] = follower, place
            self.left -= 1
            touched |= {made for start in (self.before[place], place) if (made := self._add(start)) is not None}
        self.places.pop(pair, None)
        for made in touched:
            if len(self.places[made]) > 1:
                heapq.heappush(self.heap, (-len(self.places[made]), made))

    def _pair(self, place: int) -> tuple[int, int] | None:
        first, second = self.symbols[place], self.symbols[self.after[place]]
        return None if first < 0 or second < 0 else (first, second)

    def _add(self, place: int) -> tuple[int, int] | None:
        pair = self._pair(place)
        if pair is not None:
            self.places[pair].add(place)
        return pair

    def _remove(self, place: int) -> None:
        pair = self._pair(place)
        if pair is not None and pair in self.places:
            self.places[pair].discard(place)
