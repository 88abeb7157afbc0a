"""Decoders of the same codes beside each other: a tokenizer's own, one trained beside it, and one that was not trained.

Every family is shown the same pictures, coded once; every decoder is scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, runtime_checkable
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from ..data.base import ImageSource
from ..data.scene_world import World
from ..data.scenes import Scenes
from ..data.transforms import Crop, from_uint8
from ..generation.detokenizers import Detokenizer
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .detector import THRESHOLD
from .images.decoded import Rebuilder, paints
from .images.decoder_scores import DecodedScores, Features, Judges, ScoreSettings
from .images.float32 import full_float32
from .images.picture_sets import ContentHash, PictureSet
from .objects import Objects, detect_objects, judge_objects, scene_objects
from .protocol import QUANTISER, Protocol

#: Which decoder a row is of: the tokenizer's own, the trained one, one of its shape that learned nothing. The last two
#: are no decoders: the originals themselves, and plain gray pictures.
Kind = Literal["pixel", "trained", "untrained", "originals", "gray"]

_GRAY = 128


@runtime_checkable
class Renewable(TypingProtocol):
    """A detokenizer that says what it would be without training."""

    def untrained(self, seed: int = 0) -> Detokenizer:
        """The same decoder with weights that have learned nothing."""
        ...


@dataclass(frozen=True)
class DecoderData:
    """What every decoder is shown. Where the pictures are scenes of the embedded world, their objects are judged too.

    Args:
        pictures: coded and decoded, at least two.
        size: (H, W) that pictures are cropped and resized to, what the tokenizers take.
        batch_size: pictures handled together; moves no score beyond rounding.
        seed: of what decoders draw, picture by picture, and of the untrained weights.

    Raises:
        ValueError: scenes that are drawn at another size.
    """

    pictures: ImageSource
    size: tuple[int, int]
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if (world := self.world) is not None and self.size != (world.size, world.size):
            raise ValueError(
                f"objects are found in scenes as they are drawn, got scenes of {world.size}x{world.size} pixels for "
                f"decoders of {self.size[0]}x{self.size[1]}; set the size of the scenes to {self.size[0]}"
            )

    @property
    def world(self) -> World | None:
        """The embedded world that the pictures show; None where they are others."""
        return self.pictures.world if isinstance(self.pictures, Scenes) else None

    def batches(self, content: ContentHash | None = None) -> Iterator[Tensor]:
        """The pictures after the crop, ``[B, 3, H, W]`` uint8; ``content`` takes what was read."""
        return PictureSet(self.pictures, "", Crop(self.size)).batches(self.batch_size, content)

    def true_objects(self) -> list[Objects]:
        """What each of the scenes is made of."""
        source = self.pictures
        if not isinstance(source, Scenes):
            return []
        return [scene_objects(source.scene(index)) for index in range(len(source))]


@dataclass(frozen=True)
class DecoderRow:
    """What was measured about one decoder."""

    family: str  #: name of the tokenizer; empty for rows without one
    kind: Kind
    about: str  #: class and fingerprint
    scores: Mapping[str, Any]  #: numbers by name
    pictures: Tensor  #: [S, 3, H, W] uint8, the first pictures


def score_decoders(
    family: str,
    tokenizer: VisualTokenizer,
    decoder: Detokenizer,
    data: DecoderData,
    judges: Judges,
    shown: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[DecoderRow]:
    """Score all decoders of one tokenizer's codes.

    Args:
        family: name of the rows.
        tokenizer: in evaluation mode, on the device of the judges.
        decoder: trained for its codes, likewise.
        data: what is coded and decoded.
        judges: networks that compare pictures.
        shown: pictures kept.
        progress: told how many pictures of how many are done.

    Returns:
        A row for the tokenizer's own decoder, where it has one; for the trained one; and for an untrained one of the
        same shape, where its class can say what that is.

    Raises:
        ValueError: a decoder of another tokenizer, a tokenizer for pictures of another size, or decoded pictures that
            are not finite.
    """
    decoder.check_tokenizer(tokenizer)
    if tokenizer.image_size != data.size:
        raise ValueError(
            f"decoders are compared on pictures of one size, got {family} for {tokenizer.image_size} beside "
            f"{data.size} (height, width); compare them apart"
        )
    decoders = _decoders(tokenizer, decoder, data.seed)
    lines: dict[Kind, _Line] = {kind: _Line(each, data, judges, shown) for kind, each in decoders}
    done = 0
    with torch.inference_mode():
        for originals in data.batches():
            levels = originals.to(tokenizer.device)
            with full_float32():
                codes = tokenizer.encode(from_uint8(levels).to(tokenizer.dtype))
            before = judges.look(levels)
            for line in lines.values():
                line.decode(codes, levels, before)
            done += len(originals)
            if progress is not None:
                progress(done, len(data.pictures))
    true = data.true_objects()
    return [line.row(family, kind, true) for kind, line in lines.items()]


@dataclass(frozen=True)
class References:
    """What the rows are read against."""

    rows: tuple[DecoderRow, ...]  #: the originals, where their objects are judged, and plain gray pictures
    originals: Tensor  #: [S, 3, H, W] uint8, the first pictures
    pictures_hash: str  #: of all pictures' pixels


@torch.inference_mode()
def decoder_references(data: DecoderData, judges: Judges, shown: int = 8) -> References:
    """Score what no decoder drew.

    Args:
        data: the pictures.
        judges: networks that compare pictures.
        shown: pictures kept.
    """
    content, gray, same = ContentHash(), _Column(data, judges, shown), _Column(data, judges, shown)
    for originals in data.batches(content):
        levels = originals.to(judges.device)
        gray.add(levels, torch.full_like(levels, _GRAY), judges.look(levels))
        same.keep(levels)
    true = data.true_objects()
    rows = [DecoderRow("", "originals", "", same.objects(true), same.pictures)] if true else []
    rows.append(DecoderRow("", "gray", "", gray.scores(true), gray.pictures))
    return References(tuple(rows), same.pictures, content.digits)


def decoder_protocol(
    data: DecoderData, judges: Judges, references: References, decoders: Mapping[str, Detokenizer]
) -> Protocol:
    """How a table was measured.

    Args:
        data: what was coded and decoded.
        judges: networks that compared pictures.
        references: of the same pictures.
        decoders: by family.
    """
    described = DecodedScores(judges, ScoreSettings(len(data.pictures))).describe()
    world, extractor = data.world, judges.extractor
    objects = {"objects": {"detector": "analytic scene detector", "threshold": THRESHOLD}}
    return Protocol(
        task="decoder comparison",
        dataset=f"{type(data.pictures).__name__}, {len(data.pictures)} pictures",
        dataset_hash=references.pictures_hash,
        count=len(data.pictures),
        dtype="float32",
        seed=data.seed,
        crop=Crop(data.size).describe(),
        quantiser=QUANTISER,
        reference="the same pictures before encoding",
        extractor=None if extractor is None else extractor.name,
        weights_hash=None if extractor is None else extractor.weights_hash,
        sampler={name: {"class": type(each).__name__, **each.numbers()} for name, each in decoders.items()},
        extra={
            **described,
            **({} if world is None else objects | {"world": world.to_dict()}),
            "images_per_second": f"decoding alone, batches of {data.batch_size}, {torch.get_num_threads()} threads",
        },
    )


class _Column:
    """The pictures of one decoder, batch by batch."""

    def __init__(self, data: DecoderData, judges: Judges, shown: int) -> None:
        self._world, self._shown = data.world, shown
        self._scores = DecodedScores(judges, ScoreSettings(len(data.pictures), data.seed))
        self._found, self._kept = list[Objects](), list[Tensor]()

    def add(self, originals: Tensor, pictures: Tensor, before: Features) -> None:
        """Score a batch; ``before`` is what the judges see in the originals."""
        self._scores.update(originals, pictures, before)
        self.keep(pictures)

    def keep(self, pictures: Tensor) -> None:
        """Find the objects of a batch, and keep some of it."""
        if self._world is not None:
            self._found += detect_objects(pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy(), self._world)
        if (room := self._shown - sum(map(len, self._kept))) > 0:
            self._kept.append(pictures[:room].cpu())

    @property
    def pictures(self) -> Tensor:
        """``[S, 3, H, W]`` uint8, the first ones."""
        return torch.cat(self._kept)

    def objects(self, true: list[Objects]) -> dict[str, Any]:
        """How many objects are right, where the truth is known."""
        return {"objects": judge_objects(self._found, true).to_dict()} if true else {}

    def scores(self, true: list[Objects]) -> dict[str, Any]:
        """Everything about the pictures."""
        return {**self._scores.compute(), **self.objects(true)}


class _Line(_Column):
    """The pictures that one decoder makes of codes."""

    def __init__(self, decoder: VisualTokenizer | Detokenizer, data: DecoderData, judges: Judges, shown: int) -> None:
        super().__init__(data, judges, shown)
        self._decoder, self._rebuild = decoder, Rebuilder(decoder, data.size, data.seed)

    def decode(self, codes: Codes, originals: Tensor, before: Features) -> None:
        """Decode a batch and score it."""
        self.add(originals, self._rebuild(codes), before)

    def row(self, family: str, kind: Kind, true: list[Objects]) -> DecoderRow:
        """What was measured; parameters of a tokenizer are those of all of it."""
        decoder, rebuild = self._decoder, self._rebuild
        scores = self.scores(true) | {
            "images_per_second": rebuild.pictures / max(rebuild.seconds, 1e-9),
            "parameters": sum(weight.numel() for weight in decoder.parameters()),
        }
        return DecoderRow(family, kind, f"{type(decoder).__name__} {decoder.fingerprint()}", scores, self.pictures)


def _decoders(
    tokenizer: VisualTokenizer, decoder: Detokenizer, seed: int
) -> Iterator[tuple[Kind, VisualTokenizer | Detokenizer]]:
    if paints(tokenizer):
        yield "pixel", tokenizer
    yield "trained", decoder
    if isinstance(decoder, Renewable):
        yield "untrained", decoder.untrained(seed)
