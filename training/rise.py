"""Whether a loss that only falls in a healthy run has risen for good. Knows nothing of what is trained."""

from __future__ import annotations

import math
from typing import Any

_GRACE = 20  #: steps in which nothing counts as a rise: codebooks start and moments fill up
_SMOOTHING = 0.95  #: of the moving average
_FLOOR = 0.1  #: share of the level after these steps that counts as best where the best is lower: ratios near zero lie


class RiseMeter:
    """Compares the moving average of a loss with its lowest value so far.

    Args:
        max_rise: ratio of both that is too much; None never finds a rise.
        patience: steps in a row for which it must be exceeded.
    """

    def __init__(self, max_rise: float | None, patience: int) -> None:
        self.max_rise, self.patience = max_rise, patience
        self._seen = self._above = 0
        self._last = self._smoothed = self._best = self._settled = 0.0

    def observe(self, level: float) -> None:
        """Take in the loss of one step; one that is not finite counts as a rise."""
        if self.max_rise is None:
            return
        finite = math.isfinite(level)
        self._last = level if finite else math.inf
        if finite:
            self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * level if self._seen else level
            self._best = min(self._best, self._smoothed) if self._seen else level
            self._seen += 1
        if self._seen == _GRACE:
            self._settled = self._smoothed
        above = not finite or self.ratio > self.max_rise
        self._above = self._above + 1 if above and self._seen > _GRACE else 0

    @property
    def ratio(self) -> float:
        """The moving average as a multiple of its best; 1 where there is none, as for losses below zero."""
        return 1.0 if self._least <= 0 else self._smoothed / self._least

    @property
    def risen(self) -> bool:
        """Whether the ratio was above ``max_rise`` for the last ``patience`` steps, the first 20 not counted."""
        return self._above >= self.patience

    @property
    def near_best(self) -> bool:
        """Whether average and last value are within half of the rise, on a logarithmic scale, of the best."""
        if self.max_rise is None or self._least <= 0:
            return True
        return max(self._smoothed, self._last) <= math.sqrt(self.max_rise) * self._least

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {name: value for name, value in vars(self).items() if name.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        vars(self).update(state)

    @property
    def _least(self) -> float:
        return max(self._best, _FLOOR * self._settled)
