"""A tokenizer and a language model in one folder: text to image, image to text, questions."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor

from ..data.files import atomic_folder
from ..data.transforms import to_pil
from ..lm.model import SharedLM
from ..lm.sequences import Rows
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .sampler import Condition, Sampling, sample_codes
from .text import ANSWER, GREEDY, Normalize, TextSampling, choose, write_text

#: What a pipeline folder holds, besides ``model_index.json``.
PARTS = ("tokenizer", "lm")


class TextToImagePipeline(DiffusionPipeline):
    """Writes pictures for prompts, and captions and answers for pictures.

    Args:
        tokenizer: images to codes and back.
        lm: the language model trained on its codes.

    Raises:
        ValueError: a language model trained with another tokenizer.
    """

    def __init__(self, tokenizer: VisualTokenizer, lm: SharedLM) -> None:
        super().__init__()
        lm.check_tokenizer(tokenizer)
        self.tokenizer: VisualTokenizer
        self.lm: SharedLM
        self.register_modules(tokenizer=tokenizer.eval(), lm=lm.eval())

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int = 0,
        sampling: Sampling | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> list[Image]:
        """One picture per prompt.

        Args:
            prompt: one or several prompts: sentences, or the numbers of classes for a model of classes.
            generator: a seed that every prompt starts from, or one CPU generator per prompt; the codes of a picture
                depend on its prompt and its generator, not on the rest of the batch, but for rounding: larger batches
                round differently, so equal bytes need ``batch_size=1``.
            sampling: temperature, filters and guidance; the model's own by default.
            batch_size: prompts decoded together.
            progress: show a progress bar.

        Raises:
            ValueError: words the vocabulary lacks, or another number of generators than prompts.
        """
        return to_pil(self.generate(prompt, generator, sampling, batch_size, progress))

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int = 0,
        sampling: Sampling | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> Tensor:
        """As calling the pipeline, but pixels ``[B, 3, H, W]`` in [-1, 1]."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("at least one prompt is needed, got none; pass a sentence or a list of them")
        generators = _generators(generator, len(prompts))
        conditions = [self.condition(text) for text in prompts]
        self.set_progress_bar_config(disable=not progress, leave=False)
        images: list[Tensor] = []
        bar: Any = self.progress_bar(total=len(prompts))  # pyright: ignore[reportCallIssue]: typed as a decorator
        with bar:
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                codes = sample_codes(self.lm, conditions[part], generators[part], sampling)
                images.append(self.tokenizer.decode(codes).float().cpu())
                bar.update(len(prompts[part]))
        return torch.cat(images)

    @torch.inference_mode()
    def caption(self, images: Tensor, sampling: TextSampling = GREEDY, seed: int = 0) -> list[str]:
        """Captions of images.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            sampling: length, beams and what else decides the words; greedily by default.
            seed: of words that are drawn.

        Raises:
            ValueError: a caption of that length has no room behind a picture.
        """
        opener = self.lm.layout.caption_opener()
        read = self._read(self.encode(images).ids)
        return write_text(self.lm, [Rows(torch.cat([rows, opener])) for rows in read], sampling, seed)

    @torch.inference_mode()
    def ask(
        self, images: Tensor, questions: Sequence[str], sampling: TextSampling = ANSWER, seed: int = 0
    ) -> list[str]:
        """Answers to one question per image.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            questions: B questions.
            sampling: see :meth:`caption`.
            seed: see :meth:`caption`.

        Raises:
            ValueError: another number of questions than images, words the vocabulary lacks, or a question that leaves
                no room for an answer.
        """
        return self.answer_ids(self.encode(images).ids, questions, sampling, seed)

    @torch.inference_mode()
    def answer_ids(
        self, ids: Tensor, questions: Sequence[str], sampling: TextSampling = ANSWER, seed: int = 0
    ) -> list[str]:
        """As :meth:`ask`, about images that are coded already: ``[B, N, D]`` int64."""
        return write_text(self.lm, self._asked(ids, questions), sampling, seed)

    @torch.inference_mode()
    def choose(
        self,
        images: Tensor,
        questions: Sequence[str],
        choices: Sequence[Sequence[str]],
        normalize: Normalize = "none",
    ) -> list[str]:
        """The likeliest of given answers to one question per image.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            questions: B questions.
            choices: answers to choose from, for every question.
            normalize: see :func:`~smalti.generation.text.choice_likelihoods`.

        Raises:
            ValueError: another number of questions or lists than images, no choices, words the vocabulary lacks, or a
                question that leaves no room for an answer.
        """
        return self.choose_ids(self.encode(images).ids, questions, choices, normalize)

    @torch.inference_mode()
    def choose_ids(
        self, ids: Tensor, questions: Sequence[str], choices: Sequence[Sequence[str]], normalize: Normalize = "none"
    ) -> list[str]:
        """As :meth:`choose`, about images that are coded already: ``[B, N, D]`` int64."""
        chosen = choose(self.lm, self._asked(ids, questions), choices, normalize)
        return [texts[index] for texts, index in zip(choices, chosen, strict=True)]

    def encode(self, images: Tensor) -> Codes:
        """Codes of images, on the tokenizer's device and in its precision."""
        return self.tokenizer.encode(images.to(self.tokenizer.device, self.tokenizer.dtype))

    def _asked(self, ids: Tensor, questions: Sequence[str]) -> list[Rows]:
        if len(ids) != len(questions):
            raise ValueError(
                f"one question per image is needed, got {len(questions)} for {len(ids)} images; "
                "repeat an image for each of its questions"
            )
        asked = [self.lm.layout.question(question) for question in questions]
        return [Rows(torch.cat(pair)) for pair in zip(self._read(ids), asked, strict=True)]

    def condition(self, prompt: str) -> Condition:
        """What a prompt is to the language model: the sentence, or for a model of classes the number that it spells.

        Raises:
            ValueError: words the vocabulary lacks, or no class of the model.
        """
        classes = self.lm.config.classes
        if not classes:
            self.lm.vocabulary.encode(prompt)
            return prompt
        if not prompt.isdecimal() or int(prompt) >= classes:
            raise ValueError(f"this model draws classes in [0, {classes}), got {prompt!r}; prompt it with a number")
        return int(prompt)

    def _read(self, ids: Tensor) -> list[Tensor]:
        return [self.lm.layout.image(row) for row in ids.cpu()]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``model_index.json``, ``tokenizer/`` and ``lm/``, whole or not at all; the rest is diffusers'."""
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: parts of known classes, and no hub
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a pipeline folder, strictly.

        Raises:
            FileNotFoundError: no folder, or a part of it is missing.
            ValueError: a damaged part, or a language model beside another tokenizer than it was trained with.
        """
        folder = Path(pretrained_model_name_or_path)
        missing = [name for name in ("model_index.json", *PARTS) if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} should hold a text-to-image model but lacks {', '.join(missing)}; check the path or train it"
            )
        tokenizer = VisualTokenizer.from_pretrained(folder / "tokenizer")
        return cls(tokenizer, SharedLM.from_pretrained(folder / "lm"), **kwargs)


def seeded(seed: int, count: int) -> list[torch.Generator]:
    """``count`` CPU generators that all start from ``seed``."""
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


def _generators(generator: torch.Generator | Sequence[torch.Generator] | int, count: int) -> list[torch.Generator]:
    if isinstance(generator, int):
        return seeded(generator, count)
    given = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(given) != count:
        raise ValueError(
            f"one generator per prompt is needed, got {len(given)} for {count} prompts; pass a seed to start all alike"
        )
    return given
