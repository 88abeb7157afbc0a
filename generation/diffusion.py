"""Pictures from codes by diffusion: a denoiser of diffusers that attends to the codes of a frozen tokenizer.

Knows no tokenizer family: what is read is ``tokenizer.embed(codes)`` and the mask of the codes. Training is elsewhere.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, Self, TypeAlias

import diffusers
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import PADDING, Codes
from ..tokenizers.held import Shared
from .conditioning import CodeCondition
from .detokenizers import Detokenizer, Generators, each, normal
from .latents import LatentSpace
from .loading import load_model
from .objectives import Scheduler, check_scheduler, prediction_of

#: A network of diffusers that attends to something: convolutions, or a transformer (DiT with cross-attention).
Denoiser: TypeAlias = UNet2DConditionModel | PixArtTransformer2DModel

_DENOISERS = {kind.__name__: kind for kind in (UNet2DConditionModel, PixArtTransformer2DModel)}


@dataclass(frozen=True)
class DecoderSampling:
    """How pictures are drawn from codes.

    Args:
        steps: >= 1, evaluations of the denoiser.
        guidance: >= 0, classifier-free guidance scale (https://arxiv.org/abs/2207.12598); 1 is off and costs half.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 10
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a decoder draws in steps >= 1, got {self.steps}; 4 to 50 are usual")
        if not 0 <= self.guidance < inf:
            raise ValueError(f"guidance must be finite and >= 0, got {self.guidance}; 1 is off")


SAMPLING = DecoderSampling()  #: the defaults


class DiffusionDecoder(Detokenizer):
    """Draws what codes stand for by removing noise, step by step.

    Pixels themselves are denoised, in [-1, 1], or the latents of an autoencoder. ``scheduler`` and ``sampling`` are
    attributes and may be replaced, by a scheduler of the same prediction type.

    Args:
        tokenizer: whose codes are decoded; frozen, and not part of this.
        denoiser: ``in_channels`` and ``out_channels`` are those of what is denoised, ``sample_size`` is its side.
        condition: codes to what it attends to.
        scheduler: of diffusers; how noise was mixed in, and how it is removed.
        space: what is denoised; None for pixels.
        sampling: steps and guidance.
        prediction: what the weights were trained to predict; that of the scheduler by default.
        expected: see :class:`~smalti.generation.detokenizers.Detokenizer`.

    Raises:
        ValueError: parts that do not fit each other; the sentence names both.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        denoiser: Denoiser,
        condition: CodeCondition,
        scheduler: Scheduler,
        space: LatentSpace | None = None,
        sampling: DecoderSampling = SAMPLING,
        prediction: str | None = None,
        expected: str | None = None,
    ) -> None:
        super().__init__(tokenizer, expected)
        _check_width(tokenizer, condition)
        self.grid, self.image_size = _sizes(denoiser, condition, space)
        self.denoiser, self.condition, self.sampling = denoiser, condition, sampling
        self.prediction = prediction or prediction_of(scheduler)
        self._space, self._scheduler = Shared(space), scheduler  # the space rests: outside the module tree
        check_scheduler(scheduler, self.prediction)

    @classmethod
    def build(
        cls,
        tokenizer: VisualTokenizer,
        denoiser: Denoiser,
        scheduler: Scheduler,
        space: LatentSpace | None = None,
        sampling: DecoderSampling = SAMPLING,
        layers: int = 1,
        heads: int = 4,
    ) -> Self:
        """One with a new condition.

        Args:
            tokenizer: see the class, as for the others.
            denoiser: likewise.
            scheduler: likewise.
            space: likewise.
            sampling: likewise.
            layers: of :class:`~smalti.generation.conditioning.CodeCondition`.
            heads: likewise.
        """
        wide, spec = _attended(denoiser), tokenizer.spec
        sizes = {"dim": embedding_width(tokenizer), "positions": spec.positions, "out_dim": wide}
        condition = CodeCondition(**sizes, layers=layers, heads=heads)  # by name: else from_config forgets them
        return cls(tokenizer, denoiser, condition, scheduler, space, sampling)

    @property
    def scheduler(self) -> Scheduler:
        """How noise is removed; a scheduler of the trained prediction type may take its place."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        check_scheduler(scheduler, self.prediction)
        self._scheduler = scheduler

    @property
    def space(self) -> LatentSpace | None:
        """What is denoised; None for pixels."""
        return self._space.network

    def read_codes(self, codes: Codes) -> tuple[Tensor, Tensor | None]:
        """What the denoiser attends to, ``[B, N, W]``, and ``[B, N]`` bool, true for codes; None where all are."""
        self.tokenizer.check_codes(codes)
        with torch.no_grad():
            vectors = self.tokenizer.embed(codes)
        mask = codes.mask.to(self.device)
        return self.condition(vectors.to(self.device), mask), None if bool(mask.all()) else mask

    def predict(self, noisy: Tensor, timesteps: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """What the denoiser says about noisy things.

        Args:
            noisy: ``[B, C, h, w]`` float.
            timesteps: ``[B]``.
            memory: ``[B, N, W]``.
            mask: ``[B, N]`` bool, or None.

        Returns:
            ``[B, C, h, w]`` float32.
        """
        extra = {} if isinstance(self.denoiser, UNet2DConditionModel) else {"added_cond_kwargs": _PLAIN}
        found: Any = self.denoiser(
            noisy.to(self.dtype),
            encoder_hidden_states=memory,
            timestep=timesteps,
            encoder_attention_mask=mask,
            return_dict=False,
            **extra,
        )
        return found[0].float()

    @torch.no_grad()
    def decode(self, codes: Codes, generator: Generators = None) -> Tensor:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.decode`."""
        draws, count = each(generator, len(codes)), len(codes)
        memory, mask = self.read_codes(codes)
        guided = self.sampling.guidance != 1
        if guided:
            memory = torch.cat([memory, self.condition.none_for(memory)])
            mask = None if mask is None else mask.repeat(2, 1)
        scheduler = copy.deepcopy(self.scheduler)  # its state dies with this call
        scheduler.set_timesteps(self.sampling.steps, device=self.device)
        options = _options(scheduler, draws)
        state = normal(draws, count, self.grid).to(self.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for time in scheduler.timesteps:
            seen = scheduler.scale_model_input(state, time) if hasattr(scheduler, "scale_model_input") else state
            noisy = seen.repeat(2, 1, 1, 1) if guided else seen
            found = self.predict(noisy, time.expand(len(noisy)), memory, mask)
            if guided:
                asked, free = found.chunk(2)
                found = free + self.sampling.guidance * (asked - free)
            state = scheduler.step(found, time, state, return_dict=False, **options)[0]
        return self._pixels(state)

    def clean(self, images: Tensor, generator: Generators = None) -> Tensor:
        """What is denoised of pictures: they themselves, or their latents ``[B, C, h, w]``.

        Raises:
            ValueError: pictures of another size.
        """
        if self.space is not None:
            torch.nn.Module.to(self.space, images.device)
            return self.space.encode(images, generator)
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"this decoder draws pictures of {self.image_size[0]}x{self.image_size[1]} pixels (height x width), "
                f"got {images.shape[2]}x{images.shape[3]}; resize them or change the denoiser's sample_size"
            )
        return images

    def untrained(self, seed: int = 0) -> DiffusionDecoder:
        """The same decoder with weights that have learned nothing.

        Args:
            seed: of its weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser: Any = type(self.denoiser).from_config(self.denoiser.config)
            condition: Any = CodeCondition.from_config(self.condition.config)
        options = (self.scheduler, self.space, self.sampling, self.prediction)
        fresh = DiffusionDecoder(self.tokenizer, denoiser, condition, *options)
        torch.nn.Module.to(fresh, self.device, self.dtype)
        return fresh.eval()

    def parts(self) -> Mapping[str, Any]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.parts`."""
        found = {"denoiser": self.denoiser, "condition": self.condition, "scheduler": self.scheduler}
        return found if self.space is None else {**found, "latents": self.space}

    def numbers(self) -> dict[str, Any]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.numbers`."""
        return {
            "prediction": self.prediction,
            "sampling": asdict(self.sampling),
            "denoiser": type(self.denoiser).__name__,
            "latents": self.space is not None,
            "embedding": self.condition.dim,
        }

    def schedulers(self) -> list[Scheduler]:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.schedulers`."""
        return [self.scheduler]

    @classmethod
    def read(cls, folder: Path, numbers: dict[str, Any], tokenizer: VisualTokenizer, expected: str) -> Self:
        """See :meth:`~smalti.generation.detokenizers.Detokenizer.read`."""
        kind, sampling = _DENOISERS.get(numbers["denoiser"]), DecoderSampling(**numbers["sampling"])
        if kind is None:
            raise TypeError(f"unknown denoiser {numbers['denoiser']!r}")
        space = LatentSpace.from_pretrained(folder / "latents") if numbers["latents"] else None
        denoiser, condition = load_model(kind, folder / "denoiser"), CodeCondition.from_pretrained(folder / "condition")
        scheduler = load_scheduler(folder / "scheduler")
        return cls(tokenizer, denoiser, condition, scheduler, space, sampling, numbers["prediction"], expected)

    def _pixels(self, state: Tensor) -> Tensor:
        if self.space is None:
            return state.clamp(-1, 1)
        torch.nn.Module.to(self.space, state.device)
        return self.space.decode(state).float().clamp(-1, 1)


#: PixArt's picture size and shape, which are told only by models of many sizes.
_PLAIN: dict[str, Any] = {"resolution": None, "aspect_ratio": None}


def embedding_width(tokenizer: VisualTokenizer) -> int:
    """C of ``tokenizer.embed(codes)``."""
    spec = tokenizer.spec
    ids = torch.zeros(1, spec.positions, spec.depth, dtype=torch.int64, device=tokenizer.device)
    with torch.no_grad():
        return tokenizer.embed(Codes(ids, (ids != PADDING).all(-1), spec)).shape[-1]


def load_scheduler(folder: Path) -> Scheduler:
    """A saved scheduler of diffusers, of whatever class.

    Raises:
        FileNotFoundError: no such folder, or no scheduler in it.
        ValueError: damaged, or of a class that diffusers has not.
    """
    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"a scheduler was expected in {folder}, which lacks {file.name}; save it again")
    try:
        name = json.loads(file.read_text())["_class_name"]
        kind: Any = getattr(diffusers, name)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} does not describe a scheduler of diffusers ({error}); save it again") from error
    return kind.from_pretrained(folder)


def _options(scheduler: Scheduler, generators: list[torch.Generator] | None) -> dict[str, Any]:
    """Schedulers that draw take the generators of the pictures."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generators} if generators is not None and "generator" in takes else {}


def _attended(denoiser: Denoiser) -> int:
    """Width that a denoiser attends to."""
    config: Any = denoiser.config
    width = config.get("caption_channels") or config.cross_attention_dim
    if not isinstance(width, int):
        raise ValueError(f"a denoiser must attend to vectors of one width, got cross_attention_dim {width}; set it")
    return width


def _sizes(
    denoiser: Denoiser, condition: CodeCondition, space: LatentSpace | None
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Shape of what is denoised, and (H, W) of the pictures."""
    config: Any = denoiser.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side or (0, 0)
    expected = (3, height, width) if space is None else (space.channels, *space.grid)
    given = {"in_channels": config.in_channels, "out_channels": config.out_channels or config.in_channels}
    for name, count in given.items():
        if count != expected[0]:
            told = "pictures have" if space is None else "these latents have"
            raise ValueError(
                f"{told} {expected[0]} channels, got a denoiser of {name} {count}; set it to {expected[0]}"
            )
    if (height, width) != expected[1:] or not height:
        raise ValueError(f"the denoiser's sample_size must be {expected[1]}x{expected[2]}, got {side}; change it")
    if _attended(denoiser) != condition.out_dim:
        raise ValueError(
            f"the condition must have the width that the denoiser attends to, {_attended(denoiser)}, got "
            f"{condition.out_dim}; change either"
        )
    if isinstance(denoiser, PixArtTransformer2DModel):
        _check_transformer(config, height)
    return expected, (height, width) if space is None else space.image_size


def _check_transformer(config: Any, side: int) -> None:
    if side % config.patch_size:
        raise ValueError(
            f"a transformer must cut its side into whole patches, got patches of {config.patch_size} for a side of "
            f"{side}; choose a patch_size that divides it"
        )
    if config.get("use_additional_conditions"):
        raise ValueError(
            "a denoiser must be told of codes and times alone, got use_additional_conditions True; set it to False"
        )


def _check_width(tokenizer: VisualTokenizer, condition: CodeCondition) -> None:
    found = embedding_width(tokenizer)
    if found != condition.dim:
        raise ValueError(
            f"this decoder was trained on embeddings of width {condition.dim}, got {type(tokenizer).__name__} with "
            f"embeddings of width {found}; take the tokenizer it was trained for"
        )
