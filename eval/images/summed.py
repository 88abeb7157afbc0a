"""Metrics whose states are sums: what one batch adds can be measured in one process and counted in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric


class SummedMetric(Metric):
    """Base of metrics of which every state is a sum over batches: ``add(of(batch))`` is ``update(batch)``."""

    is_differentiable = False
    full_state_update = False

    def of(self, *batch: Any) -> dict[str, Tensor]:
        """What ``update(*batch)`` would add to each state, on the CPU; the metric stays as it is."""
        kept = {name: getattr(self, name) for name in self._defaults}
        updates = self._update_count
        self.reset()
        try:
            self.update(*batch)
            return {name: getattr(self, name).cpu() for name in self._defaults}
        finally:
            for name, value in kept.items():
                setattr(self, name, value)
            self._update_count = updates

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Count what `of` found, here or in another process."""
        for name, value in sums.items():
            setattr(self, name, getattr(self, name) + value.to(self.device))
        self._update_count += 1
        self._computed = None
