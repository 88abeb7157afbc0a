"""How close generated pictures come to others, as sets: FID, KID, Inception score, precision and recall.

With prompts also how well each picture fits its own. A number belongs to its reference, its extractor and its count;
all three stand in the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...data.processes import ALONE, Processes
from ..presets import Preset
from ..protocol import Protocol, Result, text_hash
from .clip_score import CLIPScoreMetric, CLIPScorer
from .extractors import FeatureExtractor
from .feature_statistics import FeatureStatistics, Reference
from .frechet import FrechetDistance, statistics_distance
from .inception import FIDInception
from .inception_score import InceptionScoreMetric
from .kernel_distance import SUBSETS, kernel_distance, subset_size
from .picture_sets import ContentHash, PictureSet
from .precision_recall import precision_recall

Progress: TypeAlias = Callable[[int, int], None]

SPLITS = 10  #: of the Inception score; sets with fewer pictures than splits have a picture in each
NEIGHBOURS = 3  #: of precision and recall


@dataclass(frozen=True)
class GenerationSettings:
    """How generated pictures are scored."""

    batch_size: int = 32  #: pictures handled together
    kernel: bool = False  #: also KID; needs pictures as the reference, and keeps every feature in memory
    coverage: bool = False  #: also precision and recall; needs the same
    seed: int = 0  #: of KID's subsets
    rewritten: bool = False  #: whether another model rewrote the prompts before the pictures were drawn
    sampler: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: how the pictures were drawn, for the protocol

    @property
    def keeps_features(self) -> bool:
        """Whether single features are needed, not their mean and covariance alone."""
        return self.kernel or self.coverage


@dataclass(frozen=True)
class _Side:
    """What was read of one set."""

    statistics: FeatureStatistics
    features: Tensor | None  #: [N, D] float32, where they are kept
    content: str


def evaluate_generation(
    pictures: PictureSet,
    reference: Reference | PictureSet,
    extractor: FeatureExtractor,
    settings: GenerationSettings | None = None,
    *,
    clip: CLIPScorer | None = None,
    prompts: Sequence[str] | None = None,
    device: str = "cpu",
    preset: Preset | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Score generated pictures against a reference.

    Args:
        pictures: the generated ones, as they are saved. Their order is that of the prompts, and decides the splits of
            the Inception score.
        reference: statistics, also of a training set, or pictures.
        extractor: features; the Inception of FID gives the Inception score too.
        settings: which scores besides FID.
        clip: how well a picture fits its prompt; None leaves that out.
        prompts: one for each picture.
        device: of the extractor.
        preset: a published protocol; any other is refused before the work.
        progress: told how many of how many pictures of a set are done: the drawn ones, then those of the reference.
        processes: share the batches; each gets all scores, bit for bit those of one process.

    Returns:
        Scores ``fid``, ``inception_score``, ``kid``, ``precision``, ``recall``, ``clip_score``, ``clip_s`` and
        ``truncated`` (`CLIPScoreMetric`); the protocol's data set is the reference, the pictures' own hash stands
        beside it.

    Raises:
        BrokenImageError: a picture cannot be read.
        ValueError: pictures of several sizes or of another size than the reference's, statistics of another extractor,
            statistics where single features are needed, prompts of another number than pictures, a protocol that is not
            the preset's, or features that are not finite.
    """
    settings = settings or GenerationSettings()
    protocol = _protocol(pictures, reference, extractor, settings, clip, prompts)
    if preset is not None:
        preset.check(protocol)
        protocol = replace(protocol, preset=preset.name)
    _check(pictures, reference, extractor, settings, clip, prompts)
    told = progress or _quiet
    inception = None
    if isinstance(extractor, FIDInception):
        inception = InceptionScoreMetric(len(pictures), min(SPLITS, len(pictures)))
    scorer = None if clip is None or prompts is None else CLIPScoreMetric(clip)
    reader = _Reader(extractor, settings, device, told, processes)
    mine = reader.read(pictures, inception, scorer, prompts or ())
    if isinstance(reference, Reference):
        theirs = _Side(reference.statistics, None, reference.dataset_hash)
    else:
        theirs = reader.read(reference)
        protocol = replace(protocol, dataset_hash=theirs.content, reference_hash=theirs.content)
    scores: dict[str, Any] = {"fid": statistics_distance(mine.statistics, theirs.statistics)}
    if inception is not None:
        found = inception.compute()
        scores["inception_score"] = {name: float(value) for name, value in found.items()}
    if mine.features is not None and theirs.features is not None:
        scores |= _between(mine.features, theirs.features, settings)
    if scorer is not None:
        scores |= {name: value.item() for name, value in scorer.compute().items() if name != "count"}
    return Result(scores, protocol, {"pictures": pictures.name, "pictures_hash": mine.content})


def reference_of(
    pictures: PictureSet,
    extractor: FeatureExtractor,
    split: str,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Reference:
    """Statistics of pictures, with their identity, to score others against.

    Args:
        pictures: at least two.
        extractor: features.
        split: ``train``, ``validation``, ``test`` or ``generated``.
        batch_size: pictures handled together.
        device: of the extractor.
        progress: as in `evaluate_generation`.
        processes: likewise.

    Raises:
        BrokenImageError: a picture cannot be read.
        ValueError: an unknown split, fewer than two pictures, pictures of several sizes, features that are not finite.
    """
    side = _Reader(extractor, GenerationSettings(batch_size), device, progress or _quiet, processes).read(pictures)
    return Reference(
        statistics=side.statistics,
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        dataset=pictures.name,
        dataset_hash=side.content,
        split=split,
        crop=pictures.describe(),
    )


@dataclass(frozen=True)
class _Reader:
    """How the pictures of a set are looked at, once each."""

    extractor: FeatureExtractor
    settings: GenerationSettings
    device: str
    progress: Progress
    processes: Processes

    @torch.inference_mode()
    def read(
        self,
        pictures: PictureSet,
        inception: InceptionScoreMetric | None = None,
        captions: CLIPScoreMetric | None = None,
        prompts: Sequence[str] = (),
    ) -> _Side:
        """One pass over a set; what scores single pictures is fed on the way."""

        def look(first: int, images: Tensor) -> dict[str, Any]:
            fits = None if captions is None else captions.of(images, prompts[first : first + len(images)])
            return {**self._features(images, logits=inception is not None), "fits": fits}

        frechet, kept, content = FrechetDistance(self.extractor.num_features), list[Tensor](), ContentHash()
        done = 0
        for found in pictures.shared(self.settings.batch_size, self.processes, look, content):
            features: Tensor = found["features"]
            frechet.update(features, real=False)
            if self.settings.keeps_features:
                kept.append(features)
            if inception is not None:
                inception.update(found["logits"], torch.arange(done, done + len(features)))
            if captions is not None:
                captions.add(found["fits"])
            done += len(features)
            self.progress(done, len(pictures))
        return _Side(frechet.statistics(real=False), torch.cat(kept) if kept else None, content.digits)

    def _features(self, images: Tensor, logits: bool) -> dict[str, Tensor]:
        """``[B, D]`` on the CPU, and the logits of an Inception where they are scored."""
        levels = images.to(self.device)
        if not logits or not isinstance(self.extractor, FIDInception):
            return {"features": self.extractor(levels).cpu()}
        found = self.extractor.outputs(levels)
        return {"features": found.pool.cpu(), "logits": found.logits.cpu()}


def _between(features: Tensor, reference: Tensor, settings: GenerationSettings) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    if settings.kernel:
        size = subset_size(min(len(features), len(reference)))
        kernel = kernel_distance(features, reference, SUBSETS, size, seed=settings.seed)
        scores["kid"] = {"mean": kernel.mean, "std": kernel.std}
    if settings.coverage:
        found = precision_recall(features, reference, NEIGHBOURS)
        scores |= {"precision": found.precision, "recall": found.recall}
    return scores


def _protocol(
    pictures: PictureSet,
    reference: Reference | PictureSet,
    extractor: FeatureExtractor,
    settings: GenerationSettings,
    clip: CLIPScorer | None,
    prompts: Sequence[str] | None,
) -> Protocol:
    """How it will be measured; hashes of pictures are known only when they were read."""
    stored = isinstance(reference, Reference)
    extra: dict[str, Any] = {
        "reference_split": reference.split if stored else "pictures",
        "reference_count": reference.statistics.count if stored else len(reference),
        "reference_crop": reference.crop if stored else reference.describe(),
    }
    if isinstance(extractor, FIDInception):
        extra["inception_score"] = {"splits": min(SPLITS, len(pictures)), "order": "that of the files"}
    if settings.kernel:
        size = subset_size(len(pictures) if stored else min(len(pictures), len(reference)))
        extra["kid"] = {"subsets": SUBSETS, "subset_size": size, "kernel": "polynomial of degree 3"}
    if settings.coverage:
        extra["precision_recall"] = {"neighbours": NEIGHBOURS}
    if clip is not None:
        extra["clip_score"] = CLIPScoreMetric(clip).describe()
    name = reference.dataset if stored else reference.name
    return Protocol(
        task="generation",
        dataset=name,
        dataset_hash=reference.dataset_hash if stored else "",
        count=len(pictures),
        dtype="float32",
        seed=settings.seed,
        crop=pictures.describe(),
        reference=f"{'statistics' if stored else 'pictures'} of {name}",
        reference_hash=reference.identity if stored else None,
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        prompts_hash=None if prompts is None else text_hash(prompts),
        rewritten=None if prompts is None else settings.rewritten,
        sampler=settings.sampler or None,
        extra=extra,
    )


def _check(
    pictures: PictureSet,
    reference: Reference | PictureSet,
    extractor: FeatureExtractor,
    settings: GenerationSettings,
    clip: CLIPScorer | None,
    prompts: Sequence[str] | None,
) -> None:
    if prompts is not None and len(prompts) != len(pictures):
        raise ValueError(
            f"there must be one prompt for each picture, got {len(prompts)} prompts for {len(pictures)} pictures; "
            "write them in the order of the pictures, one a line"
        )
    if clip is not None and prompts is None:
        raise ValueError("a CLIP score needs the prompt of each picture, got none; pass them, or leave CLIP out")
    if isinstance(reference, Reference):
        reference.require(extractor=extractor.name, weights_hash=extractor.weights_hash, task="generation")
        if settings.keeps_features:
            raise ValueError(
                "KID, precision and recall compare single pictures, got statistics as the reference; pass pictures, or "
                "leave them out"
            )
    size, other = (_size(of) for of in (pictures, reference))
    if other is not None and size != other:
        raise ValueError(
            f"pictures and reference must be of one size, got {size[0]}x{size[1]} and {other[0]}x{other[1]} (height x "
            "width); crop the reference to that size"
        )


def _size(of: Reference | PictureSet) -> Any:
    """``[H, W]``, or None where unknown."""
    crop = of.crop if isinstance(of, Reference) else of.describe()
    return None if crop is None else crop["size"]


def _quiet(done: int, total: int) -> None:
    """Tell nobody."""
