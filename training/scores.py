"""Means over all items of a validation, whatever the number of processes. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from ..tokenizers.quantizers import distributed


class Scores:
    """Sums and counts by name, which processes need not have alike: one may have fewer batches, or none of a kind.

    They are kept on the CPU, in float64, which not every device has.
    """

    def __init__(self) -> None:
        self._sums = dict[str, Tensor]()
        self._counts = dict[str, Tensor]()

    def add(self, means: Mapping[str, Tensor], count: int | Tensor) -> None:
        """Add means over so many items.

        Args:
            means: float scalars by name.
            count: of the items, an integer or a scalar.
        """
        items = torch.as_tensor(count).cpu().double()
        for name, mean in means.items():
            weighted = torch.where(items > 0, mean.detach().cpu().double() * items, 0.0)
            self._sums[name] = self._sums.get(name, 0.0) + weighted
            self._counts[name] = self._counts.get(name, 0.0) + items

    def compute(self, device: torch.device) -> dict[str, Tensor]:
        """Means over the items of all processes, float32 scalars in the order of their names, and forget them.

        Two collective calls, on all processes; none where there is one process.

        Args:
            device: of the means, and of numbers that are reduced.
        """
        names = sorted(_named_anywhere(list(self._sums)))
        zero = torch.zeros((), dtype=torch.float64)
        rows = [(self._sums.get(name, zero), self._counts.get(name, zero)) for name in names]
        self._sums, self._counts = {}, {}
        if not rows:
            return {}
        table = torch.stack([torch.stack(row) for row in rows])
        if distributed():
            table = table.to(device)
            dist.all_reduce(table)
        means = (table[:, 0] / table[:, 1].clamp_min(1)).float().to(device)
        return dict(zip(names, means.unbind(), strict=True))


def _named_anywhere(names: list[str]) -> set[str]:
    if not distributed():
        return set(names)
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, names)
    return {name for part in found for name in part}
