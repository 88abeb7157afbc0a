"""A tokenizer and a language model in one folder: text to image, image to text, questions."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..data.files import atomic_folder
from ..lm.model import SharedLM
from ..lm.sequences import Rows
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .pictures import PicturePipeline
from .sampler import Condition, sample_codes
from .sampling import Sampling
from .text import ANSWER, GREEDY, Normalize, TextSampling, choose, write_text

#: What a pipeline folder holds, besides ``model_index.json``.
PARTS = ("tokenizer", "lm")


class TextToImagePipeline(PicturePipeline):
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

    def draw(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], sampling: Sampling | None = None
    ) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        conditions = [self.condition(text) for text in prompts]
        return self.tokenizer.decode(sample_codes(self.lm, conditions, generators, sampling))

    def check_prompt(self, prompt: str) -> None:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        self.condition(prompt)

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
