"""What all that draw pictures for prompts have in common: seeds, batches, a progress bar, a folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor

from ..data.files import atomic_folder
from ..data.leftovers import recovered
from ..data.processes import ALONE, Processes
from ..data.transforms import to_pil

#: Seconds of work before a bar is shown.
MOMENT = 2.0

#: Pixels ``[B, 3, H, W]`` of B prompts and their generators.
Draw = Callable[[Sequence[str], Sequence[torch.Generator]], Tensor]


class PicturePipeline(DiffusionPipeline):
    """Draws pictures; a subclass says how, in :meth:`draw`."""

    #: Its parts in the order of its arguments, by the name of their folders, and what loads each; the model, which is
    #: made from a configuration and a vocabulary, stands last.
    parts: ClassVar[Mapping[str, type[Any]]]
    #: What a folder of it is missed as.
    holds: ClassVar[str]

    @abstractmethod
    def draw(self, prompts: Sequence[str], generators: Sequence[torch.Generator], sampling: Any) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1] of B pictures.

        Args:
            prompts: B of them.
            generators: B CPU generators, one per prompt; each alone decides its picture.
            sampling: settings of the kind that the model draws with; None for the model's own.

        Raises:
            ValueError: a prompt that the model cannot read.
        """

    @abstractmethod
    def check_prompt(self, prompt: str) -> None:
        """Raise unless the model can read a prompt; all of them are looked at before any is drawn.

        Raises:
            ValueError: it cannot.
        """

    @abstractmethod
    def rebuild(self, images: Tensor) -> Tensor:
        """What encoding and decoding leaves of pictures ``[B, 3, H, W]`` in [-1, 1]: the best that it could draw."""

    @property
    @abstractmethod
    def sampling(self) -> Any:
        """The settings that it draws with where nobody says otherwise, a dataclass."""

    def untrained(self, seed: int = 0) -> Self:
        """The same way to pixels with a model of the same shape that has learned nothing.

        Args:
            seed: of its weights.
        """
        parts: list[Any] = [getattr(self, name) for name in self.parts]
        *others, model = parts
        build: Any = type(self)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(model)(model.config, model.vocabulary)
        torch.nn.Module.to(fresh, model.device, model.dtype)  # transformers leaves its own override untyped
        return build(*others, fresh)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``model_index.json`` and a folder for each part, whole or not at all; the rest is diffusers'."""
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: parts of known classes, and no hub
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a pipeline folder, strictly.

        Raises:
            FileNotFoundError: no folder, or a part of it is missing.
            ValueError: a damaged part, or a model beside another part than it was trained with.
        """
        folder = recovered(pretrained_model_name_or_path)
        missing = [name for name in ("model_index.json", *cls.parts) if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} should hold {cls.holds} but lacks {', '.join(missing)}; check the path or train it"
            )
        return cls(*(kind.from_pretrained(folder / name) for name, kind in cls.parts.items()), **kwargs)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int = 0,
        sampling: Any = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> list[Image]:
        """One picture per prompt.

        Args:
            prompt: one or several prompts: sentences, or the numbers of classes for a model of classes.
            generator: a seed that every prompt starts from, or one CPU generator per prompt; the codes of a picture
                depend on its prompt and its generator, not on the rest of the batch, but for rounding: larger batches
                round differently, so equal bytes need ``batch_size=1``.
            sampling: temperature, filters, guidance and what else decides how ids are drawn; the model's own by
                default.
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
        sampling: Any = None,
        batch_size: int = 64,
        progress: bool = True,
        *,
        processes: Processes = ALONE,
    ) -> Tensor:
        """As calling the pipeline, but pixels ``[B, 3, H, W]`` in [-1, 1].

        Args:
            prompt: as in a call, like those that follow.
            generator: likewise.
            sampling: likewise.
            batch_size: likewise.
            progress: likewise.
            processes: share the work batch by batch; each gets all pictures, bit for bit those of one process.
        """
        return self._in_batches(
            prompt, generator, batch_size, progress, lambda p, g: self.draw(p, g, sampling), processes
        )

    def _in_batches(
        self,
        prompt: str | Sequence[str],
        generator: torch.Generator | Sequence[torch.Generator] | int,
        batch_size: int,
        progress: bool,
        draw: Draw,
        processes: Processes,
    ) -> Tensor:
        """What :meth:`generate` returns, drawn by ``draw``; its bar shows where the work takes longer than a moment."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("at least one prompt is needed, got none; pass a sentence or a list of them")
        generators = _generators(generator, len(prompts))
        for text in prompts:
            self.check_prompt(text)
        self.set_progress_bar_config(disable=not progress, leave=False, delay=MOMENT)
        images: list[Tensor] = []
        parts = [slice(start, start + batch_size) for start in range(0, len(prompts), batch_size)]
        bar: Any = self.progress_bar(total=len(prompts))  # pyright: ignore[reportCallIssue]: typed as a decorator
        with bar:
            for drawn in processes.shared(parts, lambda part: draw(prompts[part], generators[part]).float().cpu()):
                images.append(drawn)
                bar.update(len(drawn))
        return torch.cat(images)


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
