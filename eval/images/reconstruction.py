"""What is left of pictures after a tokenizer's codes: pixel errors, perceptual distance, rFID, agreement, and the cost.

The codes are drawn once, whatever decodes them: the tokenizer, and decoders that were trained beside it. Originals and
reconstructions are compared as the 8-bit pictures that would be saved, and the Frechet distance is taken to the
originals after the same crop: what rFID means. Against training-set statistics the number is another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...data.base import ImageSource
from ...data.processes import ALONE, Processes
from ...data.transforms import Crop, from_uint8
from ...generation.detokenizers import Detokenizer
from ...tokenizers.base import VisualTokenizer
from ...tokenizers.perceptual import LPIPS, BackboneLoss
from ..codebook_use import CodebookUse
from ..presets import Preset
from ..protocol import QUANTISER, Protocol, Result
from .decoded import Rebuilder, paints
from .decoder_scores import DecodedScores, Judges, ScoreSettings
from .extractors import FeatureExtractor
from .feature_statistics import Reference
from .float32 import full_float32
from .picture_sets import ContentHash, Levels, PictureSet, arrays

#: What the tokenizer's own decoder is called among others.
PIXEL = "pixel"

Sink: TypeAlias = Callable[[Iterator[Levels]], None]
Progress: TypeAlias = Callable[[int, int], None]
Watch: TypeAlias = Callable[[Tensor, Mapping[str, Tensor]], None]


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
    teacher: FeatureExtractor | None = None,
    perceptual: BackboneLoss | None = None,
    decoders: Mapping[str, Detokenizer] | None = None,
    preset: Preset | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Crop, code and decode every picture of a source, and score what comes back.

    Args:
        tokenizer: of any family, on any device; without a pixel decoder of its own it needs ``decoders``.
        source: the pictures, at least two for rFID.
        settings: crop, batch size, what is scored besides.
        extractor: features for rFID; None leaves it out.
        lpips: the perceptual distance, on the tokenizer's device; None leaves it out.
        reference: statistics of the originals after the same crop; None takes the originals themselves. That they are
            of these very pictures is known once all were read, and not at all of a converted file: the protocol's
            ``reference_verified`` says so.
        teacher: features for semantic agreement; None leaves it out.
        perceptual: a perceptual distance over a vision model, on the tokenizer's device; None leaves it out.
        decoders: by name, trained for the tokenizer's codes and on its device, which are to be compared with its own.
            Pictures of another size than the originals are resized to that.
        preset: a published protocol; any other is refused before the work.
        sink: takes the reconstructions, uint8 ``[H, W, 3]`` in order, as they are made: a writer of files. It must read
            all of them. Of several decoders it takes those of the first, the tokenizer's own where it has one.
        progress: told how many of how many pictures are done.
        watch: shown every batch: the originals, and by decoder what came back, ``[B, 3, H, W]`` uint8 each.
        processes: share the batches; each gets all scores, bit for bit those of one process. All must be given a sink
            or a watch, which serve the first alone.

    Returns:
        Scores ``psnr``, ``ssim``, ``l1``, ``capped`` (`ReconstructionMetrics`), ``lpips``, ``perceptual``, ``rfid``,
        ``kid``, ``agreement`` and ``agreement_chance`` (`AgreementMetric`), and by codebook ``usage`` (share of its
        codes that were drawn), ``uniform_usage`` (what as many equally likely codes would draw) and ``perplexity``;
        ``tokens`` and ``bits`` of one picture. With ``decoders`` the scores of pictures stand under ``decoders`` by
        name, those of the tokenizer's own decoder under ``pixel``. The protocol holds a hash of the pictures' pixels.

    Raises:
        BrokenImageError: a picture cannot be read.
        ValueError: a reference of another extractor, crop or count, of the training set, of drawn or of other pictures;
            a protocol that is not the preset's; pictures of a size that the tokenizer does not take; decoded pictures
            or features that are not finite; a decoder for another tokenizer, one called ``pixel``, or none at all.
    """
    pictures, content = PictureSet(source, settings.dataset, settings.crop), ContentHash()
    if reference is not None:
        _check_reference(reference, extractor, pictures)
    judges = Judges(extractor, teacher, lpips, perceptual, tokenizer.device)
    scoring = _Scoring(tokenizer, decoders, settings, judges, reference, len(pictures))
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
        sampler=scoring.sampler,
        extra=scoring.conventions | _about(reference),
    )
    if preset is not None:
        preset.check(protocol)

    def work(first: int, originals: Tensor) -> dict[str, Any]:
        found, rebuilt = scoring.of(originals, first)
        shown = {"originals": originals, "rebuilt": rebuilt} if sink is not None or watch is not None else {}
        return {"found": found, "count": len(originals), **shown}

    def rebuilt() -> Iterator[Tensor]:
        done = 0
        for batch in pictures.shared(settings.batch_size, processes, work, content):
            scoring.add(batch["found"])
            if watch is not None and processes.first:
                watch(batch["originals"], batch["rebuilt"])
            if sink is not None and processes.first:
                yield next(iter(batch["rebuilt"].values()))
            done += batch["count"]
            if progress is not None:
                progress(done, len(pictures))
        if reference is not None:  # before a sink closes its file
            _check_same(reference, content.digits)

    (_exhaust if sink is None or not processes.first else sink)(arrays(rebuilt()))
    found = {"dataset_hash": content.digits, "reference_hash": protocol.reference_hash or content.digits}
    return Result(scoring.scores(), replace(protocol, **found), scoring.model)


class _Scoring:
    """The scores of one tokenizer's codes and of all their decoders, batch by batch."""

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        decoders: Mapping[str, Detokenizer] | None,
        settings: ReconstructionSettings,
        judges: Judges,
        reference: Reference | None,
        count: int,
    ) -> None:
        self._tokenizer, self._judges, self._others = tokenizer, judges, dict(decoders or {})
        _check_decoders(tokenizer, self._others)
        known = None if reference is None else reference.statistics
        scored = ScoreSettings(count, settings.seed, settings.compatibility, settings.kernel, known)
        self._size, self._use = settings.crop.shape, CodebookUse(tokenizer.spec)
        every: dict[str, VisualTokenizer | Detokenizer] = {PIXEL: tokenizer} if paints(tokenizer) else {}
        every |= self._others
        self._rebuilders = {name: Rebuilder(each, self._size, settings.seed) for name, each in every.items()}
        self._scores = {name: DecodedScores(judges, scored) for name in every}

    @property
    def conventions(self) -> dict[str, Any]:
        """What names the scores more closely, for a protocol."""
        return next(iter(self._scores.values())).describe()

    @property
    def sampler(self) -> dict[str, Any] | None:
        """How decoders draw, for a protocol; None where there is but the tokenizer's own."""
        return {name: self._drawing(decoder) for name, decoder in self._others.items()} or None

    @property
    def model(self) -> dict[str, str]:
        """What was measured."""
        found = {"tokenizer": type(self._tokenizer).__name__, "tokenizer_fingerprint": self._tokenizer.fingerprint()}
        names = {name: f"{type(each).__name__} {each.fingerprint()}" for name, each in self._others.items()}
        return found | {f"decoder {name}": about for name, about in names.items()}

    def of(self, originals: Tensor, first: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a batch ``[B, 3, H, W]`` uint8, its first picture of that number, adds to the scores; by decoder its
        reconstruction, like it.
        """
        levels = originals.to(self._tokenizer.device)
        with full_float32():
            codes = self._tokenizer.encode(from_uint8(levels).to(self._tokenizer.dtype))
        rebuilt = {name: rebuild(codes, first) for name, rebuild in self._rebuilders.items()}
        wanted = any(scores.needs_extractor for scores in self._scores.values())
        before = self._judges.look(levels, extractor=wanted)
        found = {name: scores.of(levels, rebuilt[name], before) for name, scores in self._scores.items()}
        return {"scores": found, "use": self._use.of(codes)}, {name: each.cpu() for name, each in rebuilt.items()}

    def add(self, found: Mapping[str, Any]) -> None:
        """Count what `of` found in a batch, in the order of the pictures."""
        self._use.count(found["use"])
        for name, scores in self._scores.items():
            scores.add(found["scores"][name])

    def scores(self) -> dict[str, Any]:
        """Over everything added."""
        found = {name: scores.compute() for name, scores in self._scores.items()}
        return ({"decoders": found} if self._others else found[PIXEL]) | self._use.scores()

    def _drawing(self, decoder: Detokenizer) -> dict[str, Any]:
        """What decides the pictures of a decoder besides its weights."""
        height, width = decoder.image_size
        same = (height, width) == self._size
        size = {} if same else {"resized": f"from {height}x{width} (bicubic, antialiased)"}
        return {"class": type(decoder).__name__, **decoder.numbers(), **size}


def _check_decoders(tokenizer: VisualTokenizer, decoders: Mapping[str, Detokenizer]) -> None:
    for decoder in decoders.values():
        decoder.check_tokenizer(tokenizer)
    if PIXEL in decoders:
        raise ValueError(f"a decoder must be called otherwise than {PIXEL!r}, which the tokenizer's own is; rename it")
    if not decoders and not paints(tokenizer):
        raise ValueError(
            f"pictures of codes need a decoder, got a {type(tokenizer).__name__} without one of its own; train one and "
            "name its folder"
        )


def _exhaust(pictures: Iterator[Levels]) -> None:
    deque(pictures, maxlen=0)


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
