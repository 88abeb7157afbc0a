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
from ...data.processes import ALONE, Processes
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
    processes: Processes = ALONE,
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
        processes: share the batches; each gets all answers, which are those of one process. The hash of the pictures
            is known to the first alone.

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
    asking = _Asking(pipeline, items, prompts, sampling, way, batch)
    reader = _Reader(Crop(pipeline.tokenizer.image_size), pictures, processes)
    answers, codes, starts = list[str](), dict[str, Tensor](), range(0, len(items), batch)
    for turn in range(0, len(starts), processes.world):
        now = starts[turn : turn + processes.world]
        fresh = asking.fresh(now, codes)
        for names in fresh or [asking.names(start) for start in now if asking.captions(start)]:
            reader.hash(names)
        encoded = processes.shared(fresh, lambda names: pipeline.encode(reader.images(names)).ids.cpu())
        for names, found in zip(fresh, encoded, strict=True):
            codes.update(zip(names, found, strict=True))
        for found in processes.shared(now, lambda start: asking.answer(start, reader, codes)):
            answers += found
            if progress is not None:
                progress(len(answers), len(items))
    return Answered(answers, reader.digest.hexdigest())


@dataclass(frozen=True)
class _Asking:
    """What is asked of whom, by the number of a batch's first question."""

    pipeline: TextToImagePipeline
    items: Sequence[Item]
    prompts: Sequence[str]
    sampling: TextSampling
    way: Way
    batch: int

    def captions(self, start: int) -> bool:
        """Whether captions are wanted, which are of pictures rather than of codes."""
        return self.way == "words" and not self.prompts[start]

    def names(self, start: int) -> list[str]:
        """Pictures of a batch, one for each question."""
        return [item.image for item in self.items[start : start + self.batch]]

    def fresh(self, starts: Sequence[int], codes: Mapping[str, Tensor]) -> list[list[str]]:
        """By batch the pictures whose codes are needed and neither known nor wanted by a batch before."""
        found, known = list[list[str]](), set(codes)
        for start in starts:
            names = [] if self.captions(start) else dict.fromkeys(self.names(start))
            if group := [name for name in names if name not in known]:
                known.update(group)
                found.append(group)
        return found

    def answer(self, start: int, reader: _Reader, codes: Mapping[str, Tensor]) -> list[str]:
        """What the model says to a batch."""
        if self.captions(start):
            return self.pipeline.caption(reader.images(self.names(start)), self.sampling)
        part, asked = self.items[start : start + self.batch], self.prompts[start : start + self.batch]
        ids = torch.stack([codes[item.image] for item in part])
        if self.way == "words":
            return self.pipeline.answer_ids(ids, asked, self.sampling)
        chosen = self.pipeline.choose_ids(ids, asked, [item.choices for item in part])
        pairs = zip(part, chosen, strict=True)
        return [LETTERS[item.choices.index(text)] if item.lettered else text for item, text in pairs]


class _Reader:
    """Pictures by name as tensors, and a hash of their files in the order of all processes together."""

    def __init__(self, crop: Crop, pictures: Mapping[str, Path | bytes], processes: Processes) -> None:
        self.digest = hashlib.sha256()
        self._crop, self._pictures, self._processes = crop, pictures, processes

    def images(self, names: Sequence[str]) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1]."""
        return torch.stack([to_tensor(self._crop(self._decoded(name))) for name in names])

    def hash(self, names: Sequence[str]) -> None:
        """Take the files of some pictures into the hash, in the first process."""
        for name in names if self._processes.first else ():
            data = self._bytes(name)
            self.digest.update(f"{name}\n{len(data)}\n".encode() + data)

    def _decoded(self, name: str) -> Image:
        source = self._pictures[name]
        return decode(self._bytes(name), name if isinstance(source, bytes) else str(source))

    def _bytes(self, name: str) -> bytes:
        source = self._pictures[name]
        return source if isinstance(source, bytes) else source.read_bytes()
