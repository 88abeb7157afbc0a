"""Answers of a model of ours to the questions of a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor

from ...data.decoding import decode
from ...data.transforms import Crop, to_tensor
from ...generation.pipeline import TextToImagePipeline
from ...generation.text import TextSampling
from .items import LETTERS, Item

#: Whether answers are written, or the likeliest choice is taken.
Way: TypeAlias = Literal["words", "likelihood"]

_SUFFIXES = ("", ".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class Answered:
    """What a model answered."""

    answers: list[str]  #: one for each question
    pictures_hash: str  #: SHA-256 over names and bytes of the pictures, in the order of their first questions


def find_pictures(items: Sequence[Item], folder: Path | None) -> dict[str, Path | bytes]:
    """The picture of every question by its name: a file below ``folder``, or the bytes that the benchmark holds.

    Raises:
        FileNotFoundError: no folder where one is needed, or no picture of that name in it; says how many are missing.
    """
    found: dict[str, Path | bytes] = {}
    missing = list[str]()
    for item in items:
        if item.image in found:
            continue
        if item.data is not None:
            found[item.image] = item.data
            continue
        if folder is None:
            raise FileNotFoundError(
                "the pictures of this benchmark are files of their own, got no folder; pass --images"
            )
        paths = (folder / f"{item.image}{suffix}" for suffix in _SUFFIXES)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            missing.append(item.image)
        else:
            found[item.image] = path
    if missing:
        total = len(found) + len(set(missing))
        raise FileNotFoundError(
            f"expected {total} pictures in {folder}, {len(set(missing))} are not there, the first is {missing[0]}; "
            "give the folder of the benchmark's pictures"
        )
    return found


def check_words(pipeline: TextToImagePipeline, items: Sequence[Item], prompts: Sequence[str]) -> None:
    """Raise unless the model can read every prompt.

    Raises:
        ValueError: a word that its vocabulary lacks; says how many questions have one.
    """
    wrong = list[tuple[Item, ValueError]]()
    for item, prompt in zip(items, prompts, strict=True):
        try:
            pipeline.lm.vocabulary.encode(prompt)
        except ValueError as error:
            wrong.append((item, error))
    if wrong:
        item, error = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(items)} questions have words that the model cannot read, first question {item.id}: "
            f"{error}"
        ) from error


@torch.inference_mode()
def ask(
    pipeline: TextToImagePipeline,
    items: Sequence[Item],
    prompts: Sequence[str],
    pictures: Mapping[str, Path | bytes],
    *,
    sampling: TextSampling,
    way: Way = "words",
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Answered:
    """Answer every question, greedily unless ``sampling`` says otherwise; captions where the prompt is empty.

    Args:
        pipeline: the model.
        items: the questions.
        prompts: what is asked, one for each.
        pictures: from `find_pictures`.
        sampling: how answers are written.
        way: ``likelihood`` takes the likeliest of the item's choices, as its letter where letters are the answers.
        batch: questions answered together.
        progress: told how many of how many questions are answered.

    Raises:
        BrokenImageError: an unreadable picture.
        ValueError: a question without choices where one is to be chosen, words the vocabulary lacks, or no room.
    """
    if way == "likelihood":
        bare = next((item for item in items if not item.choices), None)
        if bare is not None:
            raise ValueError(
                f"the likeliest of given answers needs choices, got none with question {bare.id}; let the model write"
            )
    reader, codes = _Reader(Crop(pipeline.tokenizer.image_size), pictures), dict[str, Tensor]()
    answers = list[str]()
    for start in range(0, len(items), batch):
        part, asked = items[start : start + batch], prompts[start : start + batch]
        if way == "words" and not asked[0]:
            answers += pipeline.caption(reader.images([item.image for item in part]), sampling)
        else:
            fresh = [name for name in dict.fromkeys(item.image for item in part) if name not in codes]
            if fresh:
                codes |= dict(zip(fresh, pipeline.encode(reader.images(fresh)).ids.cpu(), strict=True))
            answers += _answers(pipeline, part, asked, torch.stack([codes[item.image] for item in part]), sampling, way)
        if progress is not None:
            progress(len(answers), len(items))
    return Answered(answers, reader.digest.hexdigest())


class _Reader:
    """Pictures by name as tensors, hashed as they are read."""

    def __init__(self, crop: Crop, pictures: Mapping[str, Path | bytes]) -> None:
        self.digest = hashlib.sha256()
        self._crop, self._pictures = crop, pictures

    def images(self, names: Sequence[str]) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1]."""
        return torch.stack([to_tensor(self._crop(self._read(name))) for name in names])

    def _read(self, name: str) -> Image:
        source = self._pictures[name]
        if isinstance(source, bytes):
            data, label = source, name
        else:
            data, label = source.read_bytes(), str(source)
        self.digest.update(f"{name}\n{len(data)}\n".encode() + data)
        return decode(data, label)


def _answers(
    pipeline: TextToImagePipeline,
    items: Sequence[Item],
    prompts: Sequence[str],
    ids: Tensor,
    sampling: TextSampling,
    way: Way,
) -> list[str]:
    if way == "words":
        return pipeline.answer_ids(ids, prompts, sampling)
    chosen = pipeline.choose_ids(ids, prompts, [item.choices for item in items])
    return [
        LETTERS[item.choices.index(text)] if item.lettered else text for item, text in zip(items, chosen, strict=True)
    ]
