"""Features of two sets of images, kept with the place of each image until all processes bring theirs together."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from .sample_order import first_of_each

SIDES = ("features", "reference")  #: what the states of the two sets begin with


class KeptFeatures(Metric):
    """Base of metrics that keep features, float32, in the order of places, whichever process saw an image first.

    An image that comes twice, on one process or on several (which is what padding samplers add), is kept once.

    Args:
        num_features: D of the extractor.
    """

    is_differentiable = False
    full_state_update = True  # places of a batch alone are no set

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        for side in SIDES:
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_places", [], dist_reduce_fx="cat")

    def features(self, real: bool) -> Tensor:
        """``[N, D]`` float32 of the images kept, each once, in the order of their places; of this process alone."""
        side = SIDES[int(real)]
        rows, places = self._joined(f"{side}_rows"), self._joined(f"{side}_places")
        return rows[first_of_each(places)]

    def _keep(self, features: Tensor, real: bool, places: Tensor) -> None:
        side = SIDES[int(real)]
        self._parts(f"{side}_rows").append(features.detach().float().to(self.device))
        self._parts(f"{side}_places").append(places.to(self.device))

    def _kept(self, real: bool) -> int:
        """Features that this process added, repeated ones too."""
        return sum(len(places) for places in self._parts(f"{SIDES[int(real)]}_places"))

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        for side in SIDES:  # one tensor per process, also where it saw no image: all must gather alike
            for name in (f"{side}_rows", f"{side}_places"):
                setattr(self, name, [self._joined(name)])
        super()._sync_dist(dist_sync_fn, process_group)

    def _parts(self, name: str) -> list[Tensor]:
        return cast("list[Tensor]", getattr(self, name))

    def _joined(self, name: str) -> Tensor:
        """All parts; after a gathering there is one, no longer in a list."""
        found: Tensor | list[Tensor] = getattr(self, name)
        if isinstance(found, Tensor):
            return found
        empty = (
            torch.zeros(0, self.num_features, device=self.device)
            if name.endswith("_rows")
            else torch.zeros(0, dtype=torch.int64, device=self.device)
        )
        return torch.cat([empty, *found])
