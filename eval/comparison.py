"""Tokenizers of any family beside each other: the same pictures, the same questions, one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.base import ImageSource
from ..data.pictures import Pictures, collate
from ..data.scene_world import World
from ..data.transforms import Crop
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .ceilings import CEILING_TASK, tokenizer_ceiling
from .codebook_use import CodebookUse
from .images.frechet import frechet_distance
from .images.metrics import ReconstructionMetrics
from .images.perceptual import BackboneMetric
from .images.teacher import TeacherFeatures, zero_shot
from .probe import linear_probe
from .protocol import Protocol, text_hash
from .speed import measured


@dataclass(frozen=True)
class ComparisonData:
    """What every tokenizer is shown.

    Args:
        pictures: reconstructed.
        probe_train: pictures whose captions are their classes; the probe is fitted to them.
        probe_test: others of the same classes.
        size: side that pictures are cropped and resized to, pixels.
        batch_size: pictures handled together.
        world: embedded world whose renders say what is left of every object (``ceiling``); None where the pictures are
            no scenes.
    """

    pictures: ImageSource
    probe_train: ImageSource
    probe_test: ImageSource
    size: int
    batch_size: int = 64
    world: Literal["full", "small"] | None = None


@dataclass(frozen=True)
class Row:
    """What was measured about one tokenizer."""

    name: str
    family: str
    fingerprint: str
    scores: Mapping[str, Any]  #: numbers by name; ``usage`` and ``perplexity`` by codebook
    pictures: Tensor  #: [S, 3, H, W] in [-1, 1], the first pictures after encoding and decoding


def compare_tokenizer(
    name: str, folder: str | Path, data: ComparisonData, extractor: TeacherFeatures, device: str = "cpu", shown: int = 8
) -> Row:
    """Measure one saved tokenizer.

    Args:
        name: of the row.
        folder: of the tokenizer.
        data: what it is shown.
        extractor: features for rFID, and of class names for zero-shot classification.
        device: where it runs.
        shown: reconstructions kept.
    """
    tokenizer = VisualTokenizer.from_pretrained(folder).eval()
    torch.nn.Module.to(tokenizer, torch.device(device))
    scores, pictures = _reconstruction(tokenizer, data, extractor, shown)
    scores |= _understanding(tokenizer, data, extractor)
    if data.world is not None:
        left = tokenizer_ceiling(tokenizer, World.named(data.world), batch_size=data.batch_size)
        scores |= {
            "ceiling": left.scene.overall,
            "ceiling_strict": left.scene.strict,
            "ceiling_tasks": left.scene.tasks,
        }
    speed = measured(str(folder), device=device)
    scores |= {
        "encode_per_second": speed.encode,
        "decode_per_second": speed.decode,
        "peak_memory_mib": speed.memory,
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
    }
    return Row(name, type(tokenizer).__name__, tokenizer.fingerprint(), scores, pictures)


def originals(data: ComparisonData, count: int = 8) -> Tensor:
    """``[S, 3, H, W]``, the pictures that rows show reconstructions of."""
    return next(_batches(data.pictures, data, count))[0]


def comparison_protocol(data: ComparisonData, extractor: TeacherFeatures, names: Sequence[str]) -> Protocol:
    """How a table was measured."""
    return Protocol(
        task="tokenizer comparison",
        dataset=f"{type(data.pictures).__name__}, {len(data.pictures)} pictures",
        dataset_hash=text_hash(data.pictures.name(index) for index in range(len(data.pictures))),
        count=len(data.pictures),
        dtype="float32",
        seed=0,
        crop=Crop(data.size, "center").describe(),
        reference="the same pictures before encoding",
        extractor=extractor.name,
        weights_hash=extractor.hash,
        extra={
            "tokenizers": list(names),
            "reconstruction": "PSNR and SSIM per image on [0, 1], mean",
            "perceptual": "squared distance of unit-length last hidden states of the extractor, mean over positions",
            **({"ceiling": f"{CEILING_TASK}, {data.world} world"} if data.world else {}),
            "probe": f"logistic regression on the mean of embed() over positions; {len(data.probe_train)} pictures to "
            f"fit, {len(data.probe_test)} to test; captions are classes",
            "zero_shot": "pooled semantic features against the extractor's text features of all classes",
            "speed": "float32, batches of 32, median of 5, a process of its own; memory is what that adds to its peak",
        },
    )


@torch.inference_mode()
def _reconstruction(
    tokenizer: VisualTokenizer, data: ComparisonData, extractor: TeacherFeatures, shown: int
) -> tuple[dict[str, Any], Tensor]:
    metrics, before, after, kept = ReconstructionMetrics(), list[Tensor](), list[Tensor](), []
    used, perceptual = CodebookUse(tokenizer.spec), BackboneMetric(extractor.perceptual())
    for images, _ in _batches(data.pictures, data):
        codes = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
        rebuilt = tokenizer.decode(codes).float().cpu()
        metrics.update(rebuilt, images)
        perceptual.update(rebuilt, images)
        before.append(extractor.images(images))
        after.append(extractor.images(rebuilt))
        used.add(codes)
        if sum(map(len, kept)) < shown:
            kept.append(rebuilt)
    found: dict[str, Any] = {
        name: float(value) for name, value in metrics.compute().items() if name in ("psnr", "ssim")
    }
    found["perceptual"] = float(perceptual.compute())
    found["rfid"] = frechet_distance(torch.cat(after), torch.cat(before))
    found |= used.scores()
    return found, torch.cat(kept)[:shown]


def _understanding(tokenizer: VisualTokenizer, data: ComparisonData, extractor: TeacherFeatures) -> dict[str, float]:
    train, labels, _ = _read(tokenizer, data.probe_train, data)
    test, expected, pooled = _read(tokenizer, data.probe_test, data)
    probe = linear_probe(train, labels, test, expected)
    found = {"probe": probe.accuracy, "probe_chance": probe.chance, "classes": probe.classes}
    if pooled is not None:
        names = sorted(set(labels) | set(expected))
        given = zero_shot(pooled, extractor.texts(names)).tolist()
        right = sum(names[number] == name for number, name in zip(given, expected, strict=True))
        found["zero_shot"] = right / len(expected)
    return found


@torch.inference_mode()
def _read(
    tokenizer: VisualTokenizer, source: ImageSource, data: ComparisonData
) -> tuple[Tensor, list[str], Tensor | None]:
    """Mean of ``embed()`` of every picture, its class, and the pooled semantic feature where the family has one."""
    rows, labels, pooled = list[Tensor](), list[str](), list[Tensor]()
    for images, names in _batches(source, data):
        codes = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
        rows.append(_mean(tokenizer.embed(codes), codes).cpu())
        labels += names
        if (found := tokenizer.pooled(codes)) is not None:
            pooled.append(found.float().cpu())
    return torch.cat(rows), labels, torch.cat(pooled) if pooled else None


def _mean(vectors: Tensor, codes: Codes) -> Tensor:
    weight = codes.mask[..., None].to(vectors)
    return (vectors.nan_to_num() * weight).sum(1) / weight.sum(1).clamp_min(1)


def _batches(
    source: ImageSource, data: ComparisonData, batch_size: int | None = None
) -> Iterator[tuple[Tensor, list[str]]]:
    pictures, size = Pictures(source, Crop(data.size, "center"), "raise"), batch_size or data.batch_size
    for start in range(0, len(pictures), size):
        batch = collate([pictures[index] for index in range(start, min(start + size, len(pictures)))])
        yield batch["images"], batch["text"]
