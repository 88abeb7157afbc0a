"""How fast new types appear as images are added: token innovation and Heaps' law.

The order of the images is an accident of how they are stored, so every number is the mean over all orders, which has a
closed form: a type that m of M images have is missing from n of them with probability C(M - m, n) / C(M, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tokenizers.codes import PADDING
from .counting import Floats, Ids, combined, labels, tally
from .stream import TokenStream

LOOKED = 100  #: images after which the share of types is given
_POINTS = 48  #: of the curve
_LEAST_POINTS = 4  #: of a fit


@dataclass(frozen=True)
class Growth:
    """Types found in n of M images."""

    count: int  #: M, images
    tokens: int  #: of all of them
    images: Ids  #: ``[P]``, the n at which the curve is given, 1 and M among them
    types: Floats  #: ``[P]``, V(n)
    share_after_100: float | None  #: V(100) / V(M); None for fewer images
    new_per_image: float  #: types that the last image brings
    heaps_beta: float | None  #: of V = k (tokens)^beta, over the points below K / 2; None for fewer than four
    heaps_k: float | None  #: the factor k of the same fit
    heaps_points: int  #: points fitted

    def to_dict(self) -> dict[str, Any]:
        """Single numbers by name, without those that are None, and ``types_after``: V(n) at n = 1, 10, 100, ..."""
        names = ("count", "tokens", "share_after_100", "new_per_image", "heaps_beta", "heaps_k", "heaps_points")
        numbers = {name: getattr(self, name) for name in names}
        decades = [10**power for power in range(9) if 10**power <= self.count]
        curve = {str(n): float(self.types[int(np.searchsorted(self.images, n))]) for n in decades}
        kept = {name: value for name, value in numbers.items() if value is not None}
        return {**kept, "types_after": curve}


def growth(stream: TokenStream) -> Growth:
    """The mean of V(n) over all orders of the images; Heaps' law where the codebook is not yet half used up.

    Beyond K / 2 the fit would measure the end of the codebook (a uniform source seems to have beta = .18).
    """
    count = stream.images
    holders = _holders(stream.ids)
    decades = [10**power for power in range(9) if 10**power <= count]
    images = np.unique(np.concatenate([np.geomspace(1, count, _POINTS).round(), decades])).astype(np.int64)
    types = _expected(holders, count, images)
    after = float(types[np.searchsorted(images, LOOKED)] / types[-1]) if count >= LOOKED else None
    fitted = types < stream.size / 2
    line = None
    if fitted.sum() >= _LEAST_POINTS:
        tokens = images[fitted] * (stream.tokens / count)
        line = np.polyfit(np.log(tokens), np.log(types[fitted]), 1)
    beta, factor = (None, None) if line is None else (float(line[0]), math.exp(line[1]))
    new = float((holders == 1).sum() / count)
    return Growth(count, stream.tokens, images, types, after, new, beta, factor, int(fitted.sum()))


def _holders(ids: Ids) -> Ids:
    """In how many images each type that occurs does."""
    real = ids != PADDING
    images = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    keys = np.sort(combined([labels(ids[real]), images[real]]))
    distinct = keys[np.append(True, np.diff(keys) != 0)]
    return tally(distinct // len(ids))


def _expected(holders: Ids, count: int, images: Ids) -> Floats:
    """Mean number of types in n images, for each n."""
    times, types_of = np.unique(holders, return_counts=True)
    log = np.array([math.lgamma(value + 1) for value in range(count + 1)])
    left = count - times[:, None] - images[None]
    missing = log[count - times][:, None] - log[left.clip(min=0)] - log[count] + log[count - images][None]
    return (types_of[:, None] * -np.expm1(np.where(left < 0, -np.inf, missing))).sum(0)
