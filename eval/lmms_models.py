"""Models in the forms that lmms-eval calls them in. Knows its requests, imports nothing of it.

A request is an ``Instance`` whose ``args`` are

==================================  ===========================================================================
``generate_until``, simple          ``(context, gen_kwargs, doc_to_visual, doc_id, task, split)``
``generate_until_multi_round``      the same with ``doc_to_text`` behind ``doc_to_visual``
both, chat                          ``(context, doc_to_messages, gen_kwargs, doc_id, task, split)``
``loglikelihood``                   ``(context, continuation or doc_to_target, doc_to_visual, doc_id, task, split)``
==================================  ===========================================================================

and the document is ``task_dict[task][split][doc_id]``. Of ``gen_kwargs``, lengths, stops and what decides the draw are
honoured; what is made for other models (``image_aspect_ratio``) is not, and a warning names it.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ..data.files import atomic_file
from ..data.transforms import Crop, to_tensor
from ..generation.folders import load_pictures
from ..generation.pipeline import TextToImagePipeline
from ..generation.text import ANSWER, TextSampling, choice_likelihoods, write_text
from ..lm.sequences import Rows

_log = logging.getLogger(__name__)

#: Generation arguments that are honoured.
_KNOWN = {"max_new_tokens", "until", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty"}


@dataclass(frozen=True)
class Asked:
    """The last question of a conversation about one picture."""

    image: Image.Image  #: of any size and mode
    question: str
    earlier: tuple[tuple[str, str], ...] = ()  #: questions before it, with their answers


@dataclass(frozen=True)
class Options:
    """What the generation arguments of a task come to."""

    sampling: TextSampling  #: greedy unless the task says otherwise
    until: tuple[str, ...]  #: the text ends before the first of these

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Read ``gen_kwargs``; ``temperature`` counts unless ``do_sample`` is false, and is 1 where only that is true.

        Raises:
            ValueError: a value outside its range.
        """
        temperature = given.get("temperature")
        if temperature is None:
            temperature = 1.0 if given.get("do_sample") else 0.0
        sampling = TextSampling(
            limit=int(given.get("max_new_tokens") or ANSWER.limit),
            beams=int(given.get("num_beams") or 1),
            temperature=0.0 if given.get("do_sample") is False else float(temperature),
            top_k=int(given.get("top_k") or 0),
            top_p=float(given.get("top_p") or 1),
            repetition_penalty=float(given.get("repetition_penalty") or 1),
        )
        until = given.get("until") or ()
        return cls(sampling, (until,) if isinstance(until, str) else tuple(until))

    def cut(self, text: str) -> str:
        """The text before the first stop in it, without surrounding spaces."""
        ends = [text.find(stop) for stop in self.until if stop]
        return text[: min((end for end in ends if end >= 0), default=len(text))].strip()


@dataclass(frozen=True)
class Round:
    """One of several rounds about a document."""

    asked: Asked
    info: Any = None  #: what the task hands from round to round


class _Model:
    """What every model of the plug-in starts from.

    Args:
        pretrained: the folder of a saved pipeline.
        batch_size: >= 1, requests read together.
        device: ``cuda`` where there is one, else ``cpu``.

    Raises:
        ValueError: another batch size, several processes, or a damaged folder.
        FileNotFoundError: no such folder, or a part of it is missing.
    """

    #: Document sets by task and split, set by lmms-eval.
    task_dict: Mapping[str, Mapping[str, Any]]
    is_simple: ClassVar[bool]

    def __init__(
        self,
        load: Callable[[str], Any],
        pretrained: str | os.PathLike[str],
        batch_size: int | str,
        device: str | None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}; pass --batch_size 16")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"a smalti model is evaluated by one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}; start "
                "python -m lmms_eval without a launcher, with a larger --batch_size"
            )
        self.batch_size = int(batch_size)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline = load(str(pretrained))
        self.pipeline.to(self.device)

    def _document(self, request: Any) -> Any:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _batches(self, keys: Iterable[Hashable]) -> Iterator[list[int]]:
        """Numbers of what may be read together: of one key, in their order."""
        for numbers in _grouped(keys):
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]


class _Answers(_Model, ABC):
    """Text for pictures, whatever the form of the requests."""

    pipeline: TextToImagePipeline

    def __init__(
        self, pretrained: str | os.PathLike[str], batch_size: int | str = 1, device: str | None = None
    ) -> None:
        super().__init__(TextToImagePipeline.from_pretrained, pretrained, batch_size, device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to one question per request.

        A text ends with ``<eos>``, after ``max_new_tokens`` (8 where the task names none), at the end of the model's
        context or before a stop. What is drawn starts from the number of the first request of its batch.

        Raises:
            ValueError: a request with no or several pictures, or with words the vocabulary lacks.
        """
        found = [""] * len(requests)
        options = _options(self._arguments(request) for request in requests)
        for numbers in self._batches(options):
            asked = [self._first(requests[number]).asked for number in numbers]
            answers = self._written(asked, options[numbers[0]], numbers[0])
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answers of every round to one conversation per request; the task says when a conversation ends.

        A round without a picture is about that of the round before.

        Raises:
            ValueError: as :meth:`generate_until`.
        """
        found: list[list[str]] = [[] for _ in requests]
        options = _options(self._arguments(request) for request in requests)
        for numbers in self._batches(options):
            going = {number: self._first(requests[number]) for number in numbers}
            while going:
                asked = [turn.asked for turn in going.values()]
                answers = self._written(asked, options[numbers[0]], numbers[0])
                for number, answer in zip(list(going), answers, strict=True):
                    found[number].append(answer)
                    turn = self._next(requests[number], going[number], found[number])
                    if turn is None:
                        del going[number]
                    else:
                        going[number] = turn
        return found

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Minus the log-likelihood of a continuation, and whether it is what is written greedily.

        In spite of the name lmms-eval wants a loss: of several choices it takes the one with the least
        (EvolvingLMMs-Lab/lmms-eval#370). It is in nats, of the whole continuation with its ``<eos>``, as for
        :meth:`TextToImagePipeline.choose`. Requests about the same context read it once.

        Raises:
            ValueError: as :meth:`generate_until`.
        """
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        groups = _grouped((request.args[0], *request.args[3:]) for request in requests)
        vocabulary = self.pipeline.lm.vocabulary
        for start in range(0, len(groups), self.batch_size):
            batch = groups[start : start + self.batch_size]
            firsts = [requests[numbers[0]] for numbers in batch]
            rows = self._rows([self._asked(request, request.args[2], request.args[0]) for request in firsts])
            texts = [[self._continuation(requests[number]) for number in numbers] for numbers in batch]
            said = [[vocabulary.encode(text) for text in several] for several in texts]
            nats = choice_likelihoods(self.pipeline.lm, rows, texts).tolist()
            limit = 1 + max(len(tokens) for several in said for tokens in several)
            greedy = write_text(self.pipeline.lm, rows, TextSampling(limit=limit))
            for numbers, several, values, best in zip(batch, said, nats, greedy, strict=True):
                for number, tokens, value in zip(numbers, several, values, strict=False):  # values are padded
                    found[number] = (-value, vocabulary.decode(tokens) == best)
        return found

    @abstractmethod
    def _arguments(self, request: Any) -> Mapping[str, Any]:
        """The generation arguments of a request."""

    @abstractmethod
    def _first(self, request: Any) -> Round:
        """The first round of a request, or its only one."""

    @abstractmethod
    def _next(self, request: Any, turn: Round, said: list[str]) -> Round | None:
        """The round that follows; None where the conversation has ended, with ``said`` as the task wants it."""

    @torch.inference_mode()
    def _written(self, asked: Sequence[Asked], options: Options, seed: int) -> list[str]:
        rows, lm = self._rows(asked), self.pipeline.lm
        room = lm.context - max(len(prompt.rows) for prompt in rows)
        sampling = replace(options.sampling, limit=max(1, min(options.sampling.limit, room)))
        return [options.cut(text) for text in write_text(lm, rows, sampling, seed)]

    def _rows(self, asked: Sequence[Asked]) -> list[Rows]:
        """What the model reads: pictures, earlier questions with their answers, and the question."""
        crop, layout = Crop(self.pipeline.tokenizer.image_size), self.pipeline.lm.layout
        images = torch.stack([to_tensor(crop(one.image.convert("RGB"))) for one in asked])
        found = list[Rows]()
        for ids, one in zip(self.pipeline.encode(images).ids.cpu(), asked, strict=True):
            read = layout.image_to_text(ids, None, one.earlier)
            told = torch.cat([read.tokens, read.slots[:, None]], dim=1)
            found.append(Rows(torch.cat([told, layout.question(one.question)])))
        return found

    def _asked(self, request: Any, doc_to_visual: Any, question: str) -> Asked:
        return Asked(_one(_pictures(doc_to_visual(self._document(request))), request), question)

    def _continuation(self, request: Any) -> str:
        given = request.args[1]
        return str(given(self._document(request)) if callable(given) else given).strip()


class SimpleAnswers(_Answers):
    """``smalti`` in the simple form: a text and the pictures of a document."""

    is_simple: ClassVar[bool] = True

    def _arguments(self, request: Any) -> Mapping[str, Any]:
        return request.args[1]

    def _first(self, request: Any) -> Round:
        context, _, doc_to_visual = request.args[:3]
        return Round(self._asked(request, doc_to_visual, context))

    def _next(self, request: Any, turn: Round, said: list[str]) -> Round | None:
        visuals, context, ended, outputs, info = request.args[3](
            self._document(request),
            previous_output=list(said),
            round_idx=len(said),
            previous_round_info=turn.info,
        )
        said[:] = outputs or said
        if ended:
            return None
        return Round(Asked(_one(_pictures(visuals) or [turn.asked.image], request), context), info)


class ChatAnswers(_Answers):
    """``smalti`` in the chat form: messages of users and of the model, with one picture among them.

    What the system says stands before the first question.
    """

    is_simple: ClassVar[bool] = False

    def _arguments(self, request: Any) -> Mapping[str, Any]:
        return request.args[2]

    def _first(self, request: Any) -> Round:
        return Round(_conversation(request.args[1](self._document(request)), [], request))

    def _next(self, request: Any, turn: Round, said: list[str]) -> Round | None:
        messages, ended, outputs, info = request.args[1](
            self._document(request),
            previous_output=list(said),
            round_idx=len(said),
            previous_round_info=turn.info,
        )
        said[:] = outputs or said
        return None if ended else Round(_conversation(messages, [turn.asked.image], request), info)


class Pictures(_Model):
    """``smalti_t2i``: pictures for prompts, by lmms-eval's convention of tasks that have pictures drawn.

    Picture s of a document is ``output_dir/TASK/{doc_id:04d}_s{s}.png`` and starts from ``seed + s``; what stands there
    is replaced. The settings of sampling are the model's own.

    Args:
        pretrained: the folder of a model of any kind that draws pictures.
        output_dir: where the pictures go.
        num_images_per_prompt: >= 1.
        seed: of the first picture of every prompt.
        batch_size: >= 1, pictures drawn together.
        device: ``cuda`` where there is one, else ``cpu``.

    Raises:
        ValueError: a number outside its range, several processes, or a damaged folder.
        FileNotFoundError: no such folder, or a part of it is missing.
    """

    is_simple: ClassVar[bool] = True

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        num_images_per_prompt: int = 4,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
    ) -> None:
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be >= 1, got {num_images_per_prompt}; 4 is usual")
        super().__init__(load_pictures, pretrained, batch_size, device)
        self.folder, self.count, self.seed = Path(output_dir), num_images_per_prompt, seed

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The folder that holds the pictures of its task, for every request.

        Raises:
            ValueError: words the vocabulary lacks.
        """
        folders = [self.folder / str(request.args[4]).replace("/", "_") for request in requests]
        for request in requests:
            self.pipeline.check_prompt(request.args[0])
        for folder in set(folders):
            folder.mkdir(parents=True, exist_ok=True)
        wanted = list(product(range(len(requests)), range(self.count)))
        for start in range(0, len(wanted), self.batch_size):
            part = wanted[start : start + self.batch_size]
            prompts = [requests[number].args[0] for number, _ in part]
            seeds = [torch.Generator().manual_seed(self.seed + sample) for _, sample in part]
            drawn = self.pipeline(prompts, seeds, batch_size=self.batch_size, progress=False)
            for (number, sample), picture in zip(part, drawn, strict=True):
                target = folders[number] / f"{int(requests[number].args[3]):04d}_s{sample}.png"
                with atomic_file(target) as path:
                    picture.save(path, format="PNG")
        return [str(folder) for folder in folders]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not what it is for.

        Raises:
            ValueError: always.
        """
        raise ValueError("smalti_t2i draws pictures, got a task of likelihoods; use --model smalti")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Not what it is for.

        Raises:
            ValueError: always.
        """
        raise ValueError("smalti_t2i draws pictures, got a task of several rounds; use --model smalti")


def _grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """Numbers of equal keys, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _options(given: Iterable[Mapping[str, Any] | None]) -> list[Options]:
    read = [arguments or {} for arguments in given]
    ignored = sorted({name for arguments in read for name in arguments} - _KNOWN)
    if ignored:
        _log.warning("generation arguments %s mean nothing to a smalti model and are ignored", ", ".join(ignored))
    return [Options.of(arguments) for arguments in read]


def _pictures(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    return list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]


def _one(pictures: Sequence[Any], request: Any) -> Image.Image:
    if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
        kinds = ", ".join(type(picture).__name__ for picture in pictures) or "none"
        doc_id, task, _ = request.args[-3:]
        raise ValueError(
            f"a smalti model is asked about exactly one picture, got {len(pictures)} ({kinds}) for document {doc_id} "
            f"of task {task}; choose tasks about single pictures, or --model smalti_t2i for tasks that want some drawn"
        )
    return pictures[0]


def _conversation(messages: Sequence[Mapping[str, Any]], before: Sequence[Any], request: Any) -> Asked:
    """Messages as one picture and turns of questions and answers; the picture may be one from before."""
    pictures, turns = list[Any](), list[tuple[bool, str]]()
    for message in messages:
        content = message["content"]
        parts: list[Mapping[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures += [part.get("url") for part in parts if part["type"] != "text"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        answered = message["role"] == "assistant"
        if turns and turns[-1][0] == answered:
            turns[-1] = (answered, "\n".join(filter(None, [turns[-1][1], text])))
        else:
            turns.append((answered, text))
    if len(turns) % 2 == 0 or turns[0][0]:
        doc_id, task, _ = request.args[-3:]
        raise ValueError(
            f"messages must begin and end with a question, got roles {[message['role'] for message in messages]} for "
            f"document {doc_id} of task {task}; let the user speak first and last"
        )
    texts = [text for _, text in turns]
    earlier = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Asked(_one(pictures or before, request), texts[-1], earlier)
