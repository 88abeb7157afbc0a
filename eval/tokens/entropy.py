"""Bits per token: entropies, what neighbours tell, how much of a codebook is used.

The plug-in entropy is too small while types are unseen: after 100 images of 256 tokens, a uniform codebook of 16,384
codes measures 13.46 bits in place of 14. Miller and Madow's correction (13.83) is what papers use, if any. The estimate
to read is that of Chao, Wang and Jost (https://doi.org/10.1111/2041-210X.12108), which reads how fast new types appear
(13.99); of the plug-in, Miller-Madow, jackknife, Grassberger, Chao-Shen, James-Stein and NSB estimators it was the
closest over Zipf sources of s = 0 to 1.5. Every estimate says when it cannot be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .counting import Floats, Ids, combined, tally
from .stream import TokenStream, windows

ESTIMATOR = "chao-wang-jost"  #: the one to read
SLACK = 0.1  #: bits that unseen types could add, above which the estimate counts as biased
GAP = 0.05  #: bits by which Miller-Madow may differ from the estimate before it counts as biased
DISTANCES = (1, 2, 4, 8)  #: at which the mutual information is measured

#: Offsets (down, right) of the known tokens, then of the one to tell.
_NEIGHBOURS: dict[str, tuple[tuple[int, int], ...]] = {
    "left": ((0, 0), (0, 1)),
    "up": ((0, 0), (1, 0)),
    "left_up": ((1, 0), (0, 1), (1, 1)),
}


@dataclass(frozen=True)
class Entropy:
    """Estimates of one entropy, in bits."""

    count: int  #: N, tokens
    types: int  #: distinct ones
    coverage: float  #: estimated probability that a new token is of a type seen before, in [0, 1] (Good and Turing)
    plug_in: float  #: of the observed shares
    miller_madow: float  #: plug-in + (types - 1) / 2N nats
    estimate: float  #: of Chao, Wang and Jost, clamped to [0, log2 K], which it may leave by chance
    slack: float  #: bits that the estimate misses if all other types of the codebook have what probability is left

    @property
    def perplexity(self) -> float:
        """2 to the estimate: equally likely tokens that would be as hard to guess."""
        return 2.0**self.estimate

    @property
    def estimate_biased(self) -> bool:
        """Whether the estimate may be too small by more than :data:`SLACK` bits."""
        return self.slack > SLACK

    @property
    def miller_madow_biased(self) -> bool:
        """Whether Miller-Madow is off by more than :data:`GAP` bits, as far as the estimate can tell."""
        return self.estimate_biased or abs(self.estimate - self.miller_madow) > GAP

    def to_dict(self) -> dict[str, float]:
        """Fields and properties by name; whether biased as 0 or 1."""
        biased = {
            "estimate_biased": int(self.estimate_biased),
            "miller_madow_biased": int(self.miller_madow_biased),
        }
        return {**vars(self), "perplexity": self.perplexity, **biased}


@dataclass(frozen=True)
class Usage:
    """How much of a codebook the whole set draws."""

    count: int  #: N, tokens
    types: int  #: distinct ones
    usage: float  #: types / K
    uniform: float  #: what N tokens of a uniform source would draw: 1 - (1 - 1/K)^N

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Conditional:
    """What neighbours leave unknown of a token: H(token | neighbours), in bits."""

    count: int  #: places at which the neighbours exist
    plug_in: float  #: of the observed shares; too small, like its control
    shuffled: float  #: plug-in with the tokens dealt to other neighbours at random: the same bias, no structure
    estimate: float  #: difference of two estimates of Chao, Wang and Jost, clamped to [0, log2 K]
    slack: float  #: the larger one of the two estimates', as in `Entropy`

    @property
    def gain(self) -> float:
        """Bits that the neighbours tell beyond chance."""
        return self.shuffled - self.plug_in

    @property
    def estimate_biased(self) -> bool:
        """Whether too few combinations were seen to trust the estimate; the gain is a lower bound then."""
        return self.slack > SLACK

    def to_dict(self) -> dict[str, float]:
        """Fields and properties by name; whether biased as 0 or 1."""
        return {**vars(self), "gain": self.gain, "estimate_biased": int(self.estimate_biased)}


@dataclass(frozen=True)
class Information:
    """Mutual information of two tokens at a distance, in bits."""

    count: int  #: pairs
    plug_in: float  #: of the observed shares; too large
    shuffled: float  #: of the same tokens paired at random: what the bias alone gives

    @property
    def gain(self) -> float:
        """Bits beyond chance."""
        return self.plug_in - self.shuffled

    def to_dict(self) -> dict[str, float]:
        """Fields and the gain by name."""
        return {**vars(self), "gain": self.gain}


def entropy(counts: Ids, size: int) -> Entropy:
    """Estimate an entropy from counts.

    Only the estimate to read is clamped to what K types can have; the plug-in cannot leave it, and Miller-Madow is
    given as papers do.

    Args:
        counts: ``[V]``, of the types that occur.
        size: K, how many types there could be.
    """
    total, types = int(counts.sum()), len(counts)
    times, types_of = np.unique(counts, return_counts=True)  # few distinct counts stand for many types
    often = dict(zip(times.tolist(), types_of.tolist(), strict=True))
    once, twice = often.get(1, 0), often.get(2, 0)
    plug_in = math.log(total) - float((types_of * times * np.log(times)).sum()) / total
    seen = float((types_of * times * (_digamma([total]) - _digamma(times))).sum()) / total
    nats = seen + _unseen(total, once, twice)
    bits = math.log(2)
    return Entropy(
        total,
        types,
        1 - once / total,
        plug_in / bits,
        (plug_in + (types - 1) / (2 * total)) / bits,
        _clamped(nats / bits, size),
        _slack(total, size - types, once, twice),
    )


def token_entropy(stream: TokenStream) -> Entropy:
    """Entropy of single tokens, H1."""
    return entropy(tally(stream.flat), stream.size)


def usage(stream: TokenStream) -> Usage:
    """Share of the codebook that the whole set draws."""
    count, types = stream.tokens, len(tally(stream.flat))
    return Usage(count, types, types / stream.size, -math.expm1(count * math.log1p(-1 / max(stream.size, 2))))


def conditional_entropies(stream: TokenStream, generator: np.random.Generator) -> dict[str, Conditional]:
    """H(token | left), H(token | up), H(token | left and up) on grids; H(token | previous) on other layouts.

    Args:
        stream: the tokens; neighbours are those of the layout, whatever the scan order.
        generator: deals the tokens of the controls.
    """
    found: dict[str, Conditional] = {}
    for name, offsets in _NEIGHBOURS.items():
        if stream.is_grid or name == "left":
            *known, token = windows(stream.planes, offsets)
            if len(token):
                found[name if stream.is_grid else "previous"] = _conditional(known, token, stream.size, generator)
    return found


def mutual_information(stream: TokenStream, generator: np.random.Generator) -> dict[str, Information]:
    """Mutual information at the distances of :data:`DISTANCES` that fit: ``right_1``, ..., ``down_8``; elsewhere
    ``next_1``, ...; arguments as `conditional_entropies`."""
    across, down = ("right", "down") if stream.is_grid else ("next", "")
    places = {f"{across}_{steps}": (0, steps) for steps in DISTANCES}
    places |= {f"{down}_{steps}": (steps, 0) for steps in DISTANCES if stream.is_grid}
    found: dict[str, Information] = {}
    for name, offset in places.items():
        first, second = windows(stream.planes, ((0, 0), offset))
        if len(first):
            apart = plug_in(tally(first)) + plug_in(tally(second))
            together = plug_in(tally(combined([first, second])))
            dealt = plug_in(tally(combined([first, generator.permutation(second)])))
            found[name] = Information(len(first), apart - together, apart - dealt)
    return found


def plug_in(counts: Ids) -> float:
    """Entropy of observed shares, in bits."""
    total = int(counts.sum())
    return math.log2(total) - float((counts * np.log2(counts)).sum()) / total


def _conditional(known: Sequence[Ids], token: Ids, size: int, generator: np.random.Generator) -> Conditional:
    context = combined(known)
    apart = entropy(tally(context), size ** len(known))
    joint = entropy(tally(combined([context, token])), size ** (len(known) + 1))
    dealt = plug_in(tally(combined([context, generator.permutation(token)])))
    before = apart.plug_in
    estimate = _clamped(joint.estimate - apart.estimate, size)
    slack = max(apart.slack, joint.slack)
    return Conditional(len(token), joint.plug_in - before, dealt - before, estimate, slack)


def _clamped(bits: float, size: int) -> float:
    """Bits that K types can have."""
    return min(max(0.0, bits), math.log2(size))


def _unseen(total: int, once: int, twice: int) -> float:
    """Nats of the types that were not seen, from those seen once and twice (Chao, Wang and Jost, equation 7)."""
    if not once:
        return 0.0
    new = _renewal(total, once, twice)
    if new >= 1:
        return 0.0
    log = math.log1p(-new)
    later = np.arange(1, total, dtype=np.float64)
    rest = -math.log(new) - float((np.exp(later * log) / later).sum())
    return once / total * math.exp(-(total - 1) * log) * rest


def _renewal(total: int, once: int, twice: int) -> float:
    """Mean probability of the types seen once."""
    if twice:
        return 2 * twice / ((total - 1) * once + 2 * twice)
    return 2 / ((total - 1) * (once - 1) + 2)


def _slack(total: int, unseen: int, once: int, twice: int) -> float:
    """Bits between the unseen types that the estimate presumes and all ``unseen`` ones, at one probability."""
    if not once or unseen < 1:
        return 0.0
    presumed = once**2 / (2 * twice) if twice else once * (once - 1) / 2
    return once / total * max(0.0, math.log2(unseen) - math.log2(max(presumed, 1)))


def _digamma(values: Ids | list[int]) -> Floats:
    return torch.digamma(torch.as_tensor(values, dtype=torch.float64)).numpy()
