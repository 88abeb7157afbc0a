"""Every score of one decoder: its pictures beside the originals, as 8-bit levels.

Several decoders of the same codes are scored alike; what the networks see in the originals is computed once for all.
Knows nothing about codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.transforms import from_uint8
from ...tokenizers.perceptual import LPIPS, BackboneLoss
from .agreement import AgreementMetric
from .extractors import FeatureExtractor
from .feature_statistics import FeatureStatistics
from .frechet import FrechetDistance
from .kernel_distance import SUBSETS, KernelDistanceMetric, subset_size
from .metrics import ReconstructionMetrics
from .perceptual import BackboneMetric, LPIPSMetric


@dataclass(frozen=True)
class Features:
    """What the networks see in a batch of B pictures, on the CPU; None where nothing asks."""

    extractor: Tensor | None  #: [B, D]
    teacher: Tensor | None  #: [B, E]


@dataclass(frozen=True)
class Judges:
    """The networks that look at pictures. What is None scores nothing."""

    extractor: FeatureExtractor | None = None  #: features for rFID and KID
    teacher: FeatureExtractor | None = None  #: features for semantic agreement
    lpips: LPIPS | None = None
    perceptual: BackboneLoss | None = None  #: a perceptual distance without published weights
    device: str | torch.device = "cpu"  #: where all of them are, and the pictures

    def look(self, levels: Tensor, *, extractor: bool = True) -> Features:
        """Features of ``[B, 3, H, W]`` uint8 pictures.

        Args:
            levels: the pictures.
            extractor: whether those of the extractor are wanted.
        """
        first = None if self.extractor is None or not extractor else self.extractor(levels).cpu()
        if self.teacher is self.extractor and first is not None:
            return Features(first, first)
        return Features(first, None if self.teacher is None else self.teacher(levels).cpu())


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored of one decoder, besides what the judges decide."""

    count: int  #: pictures in all
    seed: int = 0  #: of KID's subsets
    compatibility: bool = False  #: also the values of other conventions, named as such
    kernel: bool = False  #: also KID; keeps every feature in memory
    reference: FeatureStatistics | None = None  #: of the originals, for rFID; None takes the originals themselves


class DecodedScores:
    """The scores of one decoder, batch by batch.

    Args:
        judges: the networks.
        settings: what is scored.
    """

    def __init__(self, judges: Judges, settings: ScoreSettings) -> None:
        self._judges, self._settings, device = judges, settings, judges.device
        self._pixels = ReconstructionMetrics(settings.compatibility)
        self._lpips = None if judges.lpips is None else LPIPSMetric(judges.lpips).to(device)
        self._perceptual = None if judges.perceptual is None else BackboneMetric(judges.perceptual).to(device)
        self._agreement = None if judges.teacher is None else AgreementMetric(judges.teacher.num_features)
        self._frechet = self._kernel = None
        if judges.extractor is not None:
            width = judges.extractor.num_features
            self._frechet = FrechetDistance(width)
            if settings.kernel:
                self._kernel = KernelDistanceMetric(width, SUBSETS, subset_size(settings.count), settings.seed)
            if settings.reference is not None:
                self._frechet.set_reference(settings.reference)

    @property
    def needs_extractor(self) -> bool:
        """Whether the extractor's features of the originals are compared with."""
        return self._frechet is not None and (self._settings.reference is None or self._kernel is not None)

    def describe(self) -> dict[str, Any]:
        """What names the scores more closely, for a protocol."""
        found: dict[str, Any] = {"pixels": self._pixels.describe()}
        if self._kernel is not None:
            kernel = {"subsets": self._kernel.subsets, "subset_size": self._kernel.subset_size}
            found["kid"] = kernel | {"kernel": "polynomial of degree 3"}
        for name, metric in (("lpips", self._lpips), ("perceptual", self._perceptual)):
            if metric is not None:
                found[name] = metric.describe()
        if (teacher := self._judges.teacher) is not None:
            found["agreement"] = {
                "features": teacher.name,
                "weights_hash": teacher.weights_hash,
                "value": "cosine of each pair, then the mean; chance is the mean over all pairs of different pictures",
            }
        return found

    def update(self, originals: Tensor, rebuilt: Tensor, before: Features) -> None:
        """Add a batch.

        Args:
            originals: ``[B, 3, H, W]`` uint8, on the device.
            rebuilt: likewise.
            before: what the judges see in the originals.
        """
        self.add(self.of(originals, rebuilt, before))

    def of(self, originals: Tensor, rebuilt: Tensor, before: Features) -> dict[str, Any]:
        """What `update` adds of a batch, on the CPU, for another process to `add`; arguments as there."""
        seen, images = from_uint8(rebuilt), from_uint8(originals)
        sums = {"pixels": self._pixels.of(seen.cpu(), images.cpu())}
        for name, metric in (("lpips", self._lpips), ("perceptual", self._perceptual)):
            if metric is not None:
                sums[name] = metric.of(seen, images)
        after = self._judges.look(rebuilt)
        if self._agreement is not None:
            sums["agreement"] = self._agreement.of(_there(before.teacher), _there(after.teacher))
        return {"sums": sums, "before": before.extractor, "after": after.extractor}

    def add(self, found: Mapping[str, Any]) -> None:
        """Add what `of` found in a batch; batches in the order of their pictures."""
        metrics = {"pixels": self._pixels, "lpips": self._lpips, "perceptual": self._perceptual}
        for name, metric in {**metrics, "agreement": self._agreement}.items():
            if metric is not None:
                metric.add(found["sums"][name])
        if self._frechet is not None:
            self._frechet.update(_there(found["after"]), real=False)
            if self._settings.reference is None:
                self._frechet.update(_there(found["before"]), real=True)
        if self._kernel is not None:
            self._kernel.update(_there(found["before"]), real=True)
            self._kernel.update(_there(found["after"]), real=False)

    def compute(self) -> dict[str, Any]:
        """Over everything added."""
        found: dict[str, Any] = {name: value.item() for name, value in self._pixels.compute().items()}
        found.pop("count")
        for name, metric in (("lpips", self._lpips), ("perceptual", self._perceptual)):
            if metric is not None:
                found[name] = float(metric.compute())
        if self._frechet is not None:
            found["rfid"] = float(self._frechet.compute())
        if self._kernel is not None:
            found["kid"] = {name: float(value) for name, value in self._kernel.compute().items()}
        if self._agreement is not None:
            found |= {name: float(value) for name, value in self._agreement.compute().items()}
        return found


def _there(features: Tensor | None) -> Tensor:
    assert features is not None
    return features
