"""What is left of pictures after a tokenizer's codes: pixel errors, perceptual distance, rFID, and the codes' cost.

Originals and reconstructions are compared as the 8-bit pictures that would be saved, and the Frechet distance is taken
to the originals after the same crop: what rFID means. Against training-set statistics the number is another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...data.base import ImageSource
from ...data.transforms import Crop, from_uint8, to_uint8
from ...tokenizers.base import VisualTokenizer
from ...tokenizers.perceptual import LPIPS
from ..codebook_use import CodebookUse
from ..presets import Preset
from ..protocol import QUANTISER, Protocol, Result
from .extractors import FeatureExtractor
from .feature_statistics import Reference
from .float32 import full_float32
from .frechet import FrechetDistance
from .kernel_distance import KernelDistanceMetric
from .lpips import LPIPSMetric
from .metrics import ReconstructionMetrics
from .picture_sets import ContentHash, Levels, PictureSet, arrays

SUBSETS, SUBSET_SIZE = 100, 1000  #: of KID; small sets have smaller subsets, see `subset_size`

Sink: TypeAlias = Callable[[Iterator[Levels]], None]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class ReconstructionSettings:
    """How reconstructions are scored."""

    crop: Crop  #: to the size that the tokenizer takes
    dataset: str  #: name of the pictures and their split
    batch_size: int = 32  #: pictures handled together; moves no score beyond rounding
    compatibility: bool = False  #: also the values of other conventions, named as such
    kernel: bool = False  #: also KID to the originals; keeps every feature in memory
    seed: int = 0  #: of decoders that draw, and of KID's subsets


@torch.inference_mode()
def evaluate_reconstruction(
    tokenizer: VisualTokenizer,
    source: ImageSource,
    settings: ReconstructionSettings,
    extractor: FeatureExtractor | None = None,
    lpips: LPIPS | None = None,
    reference: Reference | None = None,
    *,
    preset: Preset | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> Result:
    """Crop, code and decode every picture of a source, and score what comes back.

    Args:
        tokenizer: of any family that has a pixel decoder, on any device.
        source: the pictures, at least two for rFID.
        settings: crop, batch size, what is scored besides.
        extractor: features for rFID; None leaves it out.
        lpips: the perceptual distance, on the tokenizer's device; None leaves it out.
        reference: statistics of the originals after the same crop; None takes the originals themselves. That they are
            of these very pictures is known once all were read, and not at all of a converted file: the protocol's
            ``reference_verified`` says so.
        preset: a published protocol; any other is refused before the work.
        sink: takes the reconstructions, uint8 ``[H, W, 3]`` in order, as they are made: a writer of files. It must read
            all of them.
        progress: told how many of how many pictures are done.

    Returns:
        Scores ``psnr``, ``ssim``, ``l1``, ``capped`` (`ReconstructionMetrics`), ``lpips``, ``rfid``, ``kid``, and by
        codebook ``usage`` (share of its codes that were drawn), ``uniform_usage`` (what as many equally likely codes
        would draw) and ``perplexity``; ``tokens`` and ``bits`` of one picture. The protocol holds a hash of the
        pictures' pixels.

    Raises:
        BrokenImageError: a picture cannot be read.
        ValueError: a reference of another extractor, crop or count, of the training set, of drawn or of other pictures;
            a protocol that is not the preset's; pictures of a size that the tokenizer does not take; decoded pictures
            or features that are not finite.
    """
    pictures, content = PictureSet(source, settings.dataset, settings.crop), ContentHash()
    if reference is not None:
        _check_reference(reference, extractor, pictures)
    scoring = _Scoring(tokenizer, settings, extractor, lpips, reference, len(pictures))
    protocol = Protocol(
        task="reconstruction",
        dataset=settings.dataset,
        dataset_hash="",  # known when every picture was read
        count=len(pictures),
        dtype=str(tokenizer.dtype).removeprefix("torch."),
        seed=settings.seed,
        crop=settings.crop.describe(),
        filter=str(settings.crop.describe()["filter"]),
        quantiser=QUANTISER,
        reference="the originals after the same crop" if reference is None else f"statistics of {reference.dataset}",
        reference_hash=None if reference is None else reference.identity,
        extractor=None if extractor is None else extractor.name,
        weights_hash=None if extractor is None else extractor.weights_hash,
        preset=None if preset is None else preset.name,
        extra=scoring.conventions | _about(reference),
    )
    if preset is not None:
        preset.check(protocol)

    def rebuilt() -> Iterator[Tensor]:
        done = 0
        for originals in pictures.batches(settings.batch_size, content):
            yield scoring.add(originals, done)
            done += len(originals)
            if progress is not None:
                progress(done, len(pictures))
        if reference is not None:  # before a sink closes its file
            _check_same(reference, content.digits)

    (sink or _exhaust)(arrays(rebuilt()))
    found = {"dataset_hash": content.digits, "reference_hash": protocol.reference_hash or content.digits}
    model = {"tokenizer": type(tokenizer).__name__, "tokenizer_fingerprint": tokenizer.fingerprint()}
    return Result(scoring.scores(), replace(protocol, **found), model)


class _Scoring:
    """The scores of one tokenizer, batch by batch."""

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        settings: ReconstructionSettings,
        extractor: FeatureExtractor | None,
        lpips: LPIPS | None,
        reference: Reference | None,
        count: int,
    ) -> None:
        self._tokenizer, self._extractor = tokenizer, extractor
        self._lpips = None if lpips is None else LPIPSMetric(lpips).to(tokenizer.device)
        self._generator = torch.Generator(tokenizer.device).manual_seed(settings.seed)
        self._pixels = ReconstructionMetrics(settings.compatibility)
        self._use = CodebookUse(tokenizer.spec)
        self._frechet = self._kernel = None
        self._own_originals = reference is None
        if extractor is not None:
            self._frechet = FrechetDistance(extractor.num_features)
            if settings.kernel:
                size = subset_size(count)
                self._kernel = KernelDistanceMetric(extractor.num_features, SUBSETS, size, settings.seed)
            if reference is not None:
                self._frechet.set_reference(reference.statistics)

    @property
    def conventions(self) -> dict[str, Any]:
        """What names the scores more closely, for a protocol."""
        found: dict[str, Any] = {"pixels": self._pixels.describe()}
        if self._kernel is not None:
            kernel = {"subsets": self._kernel.subsets, "subset_size": self._kernel.subset_size}
            found["kid"] = kernel | {"kernel": "polynomial of degree 3"}
        if self._lpips is not None:
            found["lpips"] = self._lpips.describe()
        return found

    def add(self, originals: Tensor, first: int) -> Tensor:
        """Score a batch ``[B, 3, H, W]`` uint8, which begins with picture ``first``; its reconstruction, likewise."""
        images = from_uint8(originals).to(self._tokenizer.device)
        with full_float32():
            codes = self._tokenizer.encode(images.to(self._tokenizer.dtype))
            decoded = self._tokenizer.decode(codes, self._generator).float()
        if not bool(decoded.isfinite().all()):
            wrong = int((~decoded.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"decoded pictures must be finite, got NaN or infinity in picture {first + wrong}; the tokenizer is "
                "damaged, or needs float32"
            )
        rebuilt = to_uint8(decoded)
        seen = from_uint8(rebuilt)
        self._use.add(codes)
        self._pixels.update(seen.cpu(), from_uint8(originals))
        if self._lpips is not None:
            self._lpips.update(seen, images)
        self._compare(originals.to(images.device), rebuilt, first)
        return rebuilt.cpu()

    def scores(self) -> dict[str, Any]:
        """Over everything added."""
        found: dict[str, Any] = {name: value.item() for name, value in self._pixels.compute().items()}
        found.pop("count")
        if self._lpips is not None:
            found["lpips"] = float(self._lpips.compute())
        if self._frechet is not None:
            found["rfid"] = float(self._frechet.compute())
        if self._kernel is not None:
            found["kid"] = {name: float(value) for name, value in self._kernel.compute().items()}
        return found | self._use.scores()

    def _compare(self, originals: Tensor, rebuilt: Tensor, first: int) -> None:
        if self._extractor is None or self._frechet is None:
            return
        after = self._extractor(rebuilt).cpu()
        self._frechet.update(after, real=False)
        if self._own_originals or self._kernel is not None:
            before = self._extractor(originals).cpu()
            if self._own_originals:
                self._frechet.update(before, real=True)
            if self._kernel is not None:
                self._kernel.update(before, real=True)
                self._kernel.update(after, real=False)


def _exhaust(pictures: Iterator[Levels]) -> None:
    deque(pictures, maxlen=0)


def subset_size(count: int) -> int:
    """Pictures in a subset of KID: 1,000, and of sets with no more than that the half, so that subsets differ."""
    return SUBSET_SIZE if count > SUBSET_SIZE else max(2, count // 2)


def _check_reference(reference: Reference, extractor: FeatureExtractor | None, pictures: PictureSet) -> None:
    if extractor is None:
        raise ValueError(
            f"statistics need the extractor that made them, {reference.extractor}, got none; name it, or leave the "
            "statistics out"
        )
    reference.require(extractor=extractor.name, weights_hash=extractor.weights_hash, task="reconstruction")
    if reference.crop is not None and reference.crop != pictures.describe():
        raise ValueError(
            f"rFID compares with the originals after the same crop, got statistics of {reference.crop} for pictures of "
            f"{pictures.describe()}; make the statistics with this crop, or leave them out"
        )
    if reference.statistics.count != len(pictures):
        raise ValueError(
            f"rFID compares with the originals, got statistics of {reference.statistics.count} pictures for "
            f"{len(pictures)}; take the same pictures, or leave the statistics out"
        )


def _check_same(reference: Reference, content: str) -> None:
    if reference.knows_pictures and reference.dataset_hash != content:
        raise ValueError(
            f"rFID compares with the originals, got statistics of other pictures ({reference.dataset}, "
            f"{reference.dataset_hash[:12]}) than those reconstructed ({content[:12]}); make the statistics of these "
            "pictures in this order, or leave them out"
        )


def _about(reference: Reference | None) -> dict[str, Any]:
    """What rFID is measured against, for a protocol."""
    if reference is None:
        return {"reference_split": "originals"}
    return {"reference_split": reference.split, "reference_verified": reference.knows_pictures}
