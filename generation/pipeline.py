"""A tokenizer and a language model in one folder: text to image, image to text, questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.processes import ALONE, Processes
from ..data.transforms import to_pil
from ..lm.conditions import class_number
from ..lm.model import SharedLM
from ..lm.sequences import Rows
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import PADDING, Codes
from . import interleaved
from .coded import CodePipeline
from .detokenizers import Detokenizer
from .orders import Order
from .sampler import Condition, Progress, Watch, plan_of, sample_codes
from .sampling import Sampling, model_sampling
from .text import ANSWER, GREEDY, Normalize, TextSampling, choose, write_text


class TextToImagePipeline(CodePipeline):
    """Writes pictures for prompts, and captions and answers for pictures.

    Args:
        tokenizer: images to codes and back.
        lm: the language model trained on its codes.
        decoder: draws pictures of the codes in place of the tokenizer's pixel decoder; none by default.

    Raises:
        ValueError: a language model or a decoder trained with another tokenizer.
    """

    parts: ClassVar[Mapping[str, type[Any]]] = {"tokenizer": VisualTokenizer, "lm": SharedLM}
    holds = "a text-to-image model"

    def __init__(self, tokenizer: VisualTokenizer, lm: SharedLM, decoder: Detokenizer | None = None) -> None:
        super().__init__()
        lm.check_tokenizer(tokenizer)
        self.lm: SharedLM
        self.hold(tokenizer, lm, decoder)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int = 0,
        sampling: Sampling | None = None,
        batch_size: int = 64,
        progress: bool | Watch = True,
        order: Order | None = None,
    ) -> list[Image]:
        """One picture per prompt.

        Args:
            prompt: see :class:`~smalti.generation.pictures.PicturePipeline`, as for the others.
            generator: likewise.
            sampling: temperature, filters, guidance; the model's own by default.
            batch_size: prompts decoded together.
            progress: show a bar of prompts and one of passes where they take longer than a moment; or what is called
                after every pass of a batch, in place of bars. :meth:`preview` makes pictures of what it is told.
            order: in which positions are written; the model's own by default.

        Raises:
            ValueError: words the vocabulary lacks, another number of generators than prompts, or an order that the
                codes or the model do not allow.
        """
        return to_pil(self.generate(prompt, generator, sampling, batch_size, progress, order))

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int = 0,
        sampling: Sampling | None = None,
        batch_size: int = 64,
        progress: bool | Watch = True,
        order: Order | None = None,
        *,
        processes: Processes = ALONE,
    ) -> Tensor:
        """As calling the pipeline, but pixels ``[B, 3, H, W]`` in [-1, 1].

        Args:
            prompt: as in a call, like those that follow.
            generator: likewise.
            sampling: likewise.
            batch_size: likewise.
            progress: likewise; of several processes each is told of its own batches.
            order: likewise.
            processes: see :meth:`~smalti.generation.pictures.PicturePipeline.generate`.
        """
        watch, shown = (None, progress) if isinstance(progress, bool) else (progress, False)

        def draw(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
            if not shown:
                return self.draw(prompts, generators, sampling, order, watch)
            passes = len(plan_of(self.lm, order, torch.Generator()).sizes)
            bar: Any = self.progress_bar(total=passes)  # pyright: ignore[reportCallIssue]: typed as a decorator
            with bar:
                return self.draw(prompts, generators, sampling, order, lambda told: bar.update(told.done - bar.n))

        return self._in_batches(prompt, generator, batch_size, shown, draw, processes)

    def draw(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        sampling: Sampling | None = None,
        order: Order | None = None,
        progress: Watch | None = None,
    ) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`.

        Args:
            prompts: likewise.
            generators: likewise.
            sampling: likewise.
            order: in which positions are written; the model's own by default.
            progress: called after every pass.
        """
        conditions = [self.condition(text) for text in prompts]
        codes = sample_codes(self.lm, conditions, generators, sampling, order=order, progress=progress)
        return self.pixels(codes, generators)

    @torch.inference_mode()
    def preview(self, progress: Progress) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1] of what is written so far; code 0 stands where nothing is written yet.

        Pictures of dynamic length end where they have come to.
        """
        missing, spec = progress.ids < 0, self.lm.spec
        ids = progress.ids.masked_fill(missing, 0)
        if spec.dynamic:
            behind = missing.all(-1)
            behind[:, 0] = False
            ids = ids.masked_fill(behind[..., None], PADDING)
        return self.pixels(Codes.full(ids, spec)).float().cpu()

    @torch.inference_mode()
    def write(
        self,
        parts: Sequence[str | Tensor],
        *,
        text: TextSampling = GREEDY,
        images: Sampling | None = None,
        order: Order | None = None,
        limit_images: int = 1,
        open_image: bool = False,
        generator: torch.Generator | int = 0,
        progress: Watch | None = None,
    ) -> list[str | Tensor]:
        """Continue a document of sentences and pictures, until the model ends it or a limit.

        Args:
            parts: sentences, and pictures ``[3, H, W]`` in [-1, 1]; none for a document from its first word.
            text: see :func:`~smalti.generation.interleaved.write`, as for the others.
            images: likewise.
            order: likewise.
            limit_images: likewise.
            open_image: likewise.
            generator: likewise.
            progress: likewise.

        Returns:
            What follows, in turns: text, and pictures ``[3, H, W]`` in [-1, 1].

        Raises:
            ValueError: see :func:`~smalti.generation.interleaved.write`.
        """
        found = interleaved.write(
            self.lm,
            [part if isinstance(part, str) else self.encode(part[None]).ids[0] for part in parts],
            text=text,
            images=images,
            order=order,
            limit_images=limit_images,
            open_image=open_image,
            generator=generator,
            progress=progress,
        )
        draws = [torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator]
        return [part if isinstance(part, str) else self.pixels(part, draws)[0].float().cpu() for part in found]

    def check_prompt(self, prompt: str) -> None:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        self.condition(prompt)

    @property
    def sampling(self) -> Sampling:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        return model_sampling(self.lm)

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
        return class_number(prompt, classes)

    def _read(self, ids: Tensor) -> list[Tensor]:
        return [self.lm.layout.image(row) for row in ids.cpu()]
