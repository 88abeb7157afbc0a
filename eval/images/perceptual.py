"""Perceptual distances as scores: the mean over a set of pairs, with the identity of the weights that gave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...tokenizers.perceptual import LPIPS, BackboneLoss, Perceptual
from ..protocol import state_hash
from .float32 import full_float32
from .summed import SummedMetric


class PerceptualMetric(SummedMetric):
    """Mean perceptual distance over all pairs seen, exact however unevenly the pairs fall on processes.

    The network runs in float32 under any autocast. States are a float64 sum and an integer count, added across
    processes; float64 does not exist on MPS: keep the metric on the CPU there.

    Args:
        distance: over a frozen network, built from local files.
        name: of the distance and its network, for protocols.
    """

    higher_is_better = False

    total: Tensor
    count: Tensor

    def __init__(self, distance: Perceptual, name: str) -> None:
        super().__init__()
        self.distance, self.name = distance, name
        self.weights_hash = state_hash(distance.network.state_dict())  #: SHA-256 of the network
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, target: Tensor) -> None:
        """Add one batch.

        Args:
            reconstruction: ``(B, 3, H, W)`` floats in ``[-1, 1]``, on the metric's device.
            target: the same shape and range.

        Raises:
            TypeError: if a tensor is not floating point.
            ValueError: if shapes differ, a side is too small for the network, or values leave ``[-1, 1]`` (NaN does).
        """
        for images in (reconstruction, target):
            _check_range(images)
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False), full_float32():
            self.total += self.distance.distances(reconstruction, target).double().sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """The mean, a float64 scalar >= 0.

        Raises:
            ValueError: if no pair was seen.
        """
        if int(self.count) == 0:
            raise ValueError("expected at least one pair, got none; call update() before compute()")
        return self.total / self.count

    def describe(self) -> dict[str, Any]:
        """Which network gave the distances, as JSON values for a protocol record."""
        return {
            "name": self.name,
            "weights_hash": self.weights_hash,
            "values": "[-1, 1]",
            "reduction": "of each pair, then the mean",
        }


class LPIPSMetric(PerceptualMetric):
    """Mean LPIPS.

    Args:
        distance: of version 0.1. AlexNet (``net="alex"``) is the customary one for scores; a number from VGG is another
            number.
    """

    def __init__(self, distance: LPIPS) -> None:
        super().__init__(distance, f"LPIPS 0.1, {distance.net}")


class BackboneMetric(PerceptualMetric):
    """Mean distance of the normalised hidden states of a vision model; a number of its own for every model.

    Args:
        distance: over any vision model of ``transformers``.
    """

    def __init__(self, distance: BackboneLoss) -> None:
        layers = ", ".join(map(str, distance.layers))
        super().__init__(distance, f"hidden states of {type(distance.network).__name__}, layers {layers}")


def _check_range(images: Tensor) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}; use data.transforms.from_uint8")
    peak = images.abs().amax() if images.numel() else torch.zeros(())
    if not bool(peak <= 1 + 1e-4):  # written so that NaN fails; the slack is rounding in half precision
        raise ValueError(f"images must lie in [-1, 1], got a magnitude of {float(peak):.4g}; clamp or rescale them")
