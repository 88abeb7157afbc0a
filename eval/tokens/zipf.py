"""How steeply frequencies fall with rank: the exponent s of p(r) = r^-s / sum of k^-s over k = 1..K.

Ranking and fitting on the same sample makes even a uniform source look steep: the luckiest types come first. So ranks
come from one half of the images and counts from the other. The usual practice, a line through log count over log rank,
is given beside it, for comparison with what others print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .counting import Floats, Ids, combined, tally_halves
from .stream import TokenStream, windows

#: Offsets (down, right) of the n-grams of a grid; other layouts have only the horizontal ones, along their order.
NGRAMS: dict[str, tuple[tuple[int, int], ...]] = {
    "horizontal_2": ((0, 0), (0, 1)),
    "horizontal_3": ((0, 0), (0, 1), (0, 2)),
    "horizontal_4": ((0, 0), (0, 1), (0, 2), (0, 3)),
    "vertical_2": ((0, 0), (1, 0)),
    "vertical_3": ((0, 0), (1, 0), (2, 0)),
    "vertical_4": ((0, 0), (1, 0), (2, 0), (3, 0)),
    "square_4": ((0, 0), (0, 1), (1, 0), (1, 1)),
}

_HEAD = 4096  #: ranks summed one by one; beyond, an integral that is off by less than 1e-8
_LEAST, _MOST = -2.0, 20.0  #: bounds of s
_CAP = 10**80  #: K taken at most, so that K^-s stays a float


@dataclass(frozen=True)
class ZipfFit:
    """Exponents of one kind of n-gram."""

    count: int  #: n-grams counted
    types: int  #: distinct ones
    exponent: float  #: split-half truncated maximum likelihood over ranks 1..K^n, both ways round, in [-2, 20]
    same_sample: float  #: the same with ranks from the counts that are fitted; too large for flat sources
    ols: float  #: minus the slope of log count over log rank of what occurs: the usual practice
    ols_r2: float  #: share of the variance that the line explains, in [0, 1]
    seen: float  #: share of one half's n-grams that the other has; where it is low, the exponent means little

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return dict(vars(self))


def zipf(stream: TokenStream, generator: np.random.Generator) -> ZipfFit:
    """Fit the tokens themselves.

    Args:
        stream: the tokens.
        generator: draws which images make up the first half.
    """
    return _fits(stream, generator, {"1": ((0, 0),)})["1"]


def ngram_zipf(stream: TokenStream, generator: np.random.Generator) -> dict[str, ZipfFit]:
    """Fit every kind of n-gram of :data:`NGRAMS` that the layout has; arguments as `zipf`."""
    height, width = stream.planes.shape[1:]
    fitting = {
        name: offsets
        for name, offsets in NGRAMS.items()
        if max(row for row, _ in offsets) < height and max(column for _, column in offsets) < width
    }
    return _fits(stream, generator, fitting)


def exponent(mean_log_rank: float, size: int) -> float:
    """The s under which the mean of the natural log of the rank over 1..K is as given: the maximum likelihood.

    Args:
        mean_log_rank: in nats.
        size: K.

    Returns:
        s in [-2, 20].
    """
    low, high = _LEAST, _MOST
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(middle, size) > mean_log_rank else (low, middle)
    return (low + high) / 2


def split_half(ranked: Ids, fitted: Ids, size: int) -> float:
    """s fitted to the counts of one sample under the ranks of another.

    Types that the first sample has equally often share the mean of the logs of their ranks, which is what breaking the
    ties at random gives on average.

    Args:
        ranked: how often each type occurs in the sample that ranks; types that occur in neither may be left out.
        fitted: how often each occurs in the other one.
        size: K, with those left out.
    """
    counts, group = np.unique(-ranked, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    if counts[-1] == 0:
        sizes[-1] += min(size, _CAP) - len(ranked)  # what nobody has seen ties with what only the other half has
    ends = np.cumsum(sizes)
    logs = (_log_factorial(ends) - _log_factorial(ends - sizes)) / sizes
    return exponent(float((np.bincount(group, weights=fitted) * logs).sum() / fitted.sum()), size)


def least_squares(counts: Ids) -> tuple[float, float]:
    """Minus the slope of log count over log rank, and R^2; 0 and 0 for a single type, R^2 of 1 for equal counts."""
    if len(counts) < 2:
        return 0.0, 0.0
    logs, ranks = np.log(np.sort(counts)[::-1]), np.log(np.arange(1, len(counts) + 1))
    slope, level = np.polyfit(ranks, logs, 1)
    spread = float(((logs - logs.mean()) ** 2).sum())
    left = float(((logs - level - slope * ranks) ** 2).sum())
    return float(-slope), 1 - left / spread if spread > 0 else 1.0


def _fits(
    stream: TokenStream, generator: np.random.Generator, kinds: dict[str, tuple[tuple[int, int], ...]]
) -> dict[str, ZipfFit]:
    frames = len(stream.planes) // stream.images
    images = generator.permutation(stream.images)
    half = stream.images // 2
    planes = stream.planes.reshape(stream.images, frames, *stream.planes.shape[1:])[images]
    parts = [part.reshape(-1, *planes.shape[2:]) for part in (planes[:half], planes[half:])]
    fits: dict[str, ZipfFit] = {}
    for name, offsets in kinds.items():
        first, second = (windows(part, offsets) for part in parts)
        if len(first[0]) and len(second[0]):
            keys = combined([np.concatenate(pair) for pair in zip(first, second, strict=True)])
            fits[name] = _fit(*tally_halves(keys[: len(first[0])], keys[len(first[0]) :]), stream.size ** len(offsets))
    return fits


def _fit(first: Ids, second: Ids, size: int) -> ZipfFit:
    counts = first + second
    ordered = np.sort(counts)[::-1]
    mean = float((ordered * np.log(np.arange(1, len(ordered) + 1))).sum() / ordered.sum())
    slope, explained = least_squares(counts)
    seen = (second[first > 0].sum() / second.sum() + first[second > 0].sum() / first.sum()) / 2
    both = (split_half(first, second, size) + split_half(second, first, size)) / 2
    return ZipfFit(int(counts.sum()), len(counts), both, exponent(mean, size), slope, explained, float(seen))


def _expected(s: float, size: int) -> float:
    """Mean of log r under r^-s over 1..K."""
    size = min(size, _CAP)
    ranks = np.arange(1, min(size, _HEAD) + 1, dtype=np.float64)
    logs = np.log(ranks)
    weights = np.exp(-s * logs)
    mass, moment = float(weights.sum()), float((weights * logs).sum())
    if size > _HEAD:
        low, high = math.log(_HEAD + 0.5), math.log(size + 0.5)
        mass += _integral(1 - s, low, high)
        moment += _moment(1 - s, low, high)
    return moment / mass


def _integral(power: float, low: float, high: float) -> float:
    """Of e^(power t) dt."""
    if abs(power) * high < 1e-6:
        return high - low + power * (high**2 - low**2) / 2
    return (math.exp(power * high) - math.exp(power * low)) / power


def _moment(power: float, low: float, high: float) -> float:
    """Of t e^(power t) dt."""
    if abs(power) * high < 1e-6:
        return (high**2 - low**2) / 2 + power * (high**3 - low**3) / 3
    return (high * math.exp(power * high) - low * math.exp(power * low) - _integral(power, low, high)) / power


def _log_factorial(values: Floats) -> Floats:
    return np.array([math.lgamma(value + 1) for value in values.tolist()])
