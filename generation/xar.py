"""Sampling of xAR: a stochastic differential equation for each entity, one after another; and its pipeline.

Knows nothing about pixels but what a latent space decodes. Every picture draws from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..lm.conditions import Wanted
from ..lm.xar import XAR
from .latents import LatentSpace
from .pictures import PicturePipeline

#: The last time before 0.
LAST = 0.04


@dataclass(frozen=True)
class XARSampling:
    """How latents are drawn; by default as published for xAR-B (L: 50 steps, 2.3; H: 50, 2.2).

    Args:
        steps: >= 2, evaluations of the network for each entity.
        guidance: >= 0, classifier-free guidance scale s of the last entity (https://arxiv.org/abs/2207.12598): it grows
            evenly from 1 at the first; 1 is off. One entity alone is guided with s.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 40
    guidance: float = 2.7

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"sampling of xAR needs steps >= 2, got {self.steps}; 40 is usual")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"sampling of xAR needs a finite guidance >= 0, got {self.guidance}; 1 is off")

    def scale(self, entity: int, count: int) -> float:
        """Guidance of one of ``count`` entities."""
        return 1 + (self.guidance - 1) * (entity / (count - 1) if count > 1 else 1)

    def times(self) -> list[float]:
        """From 1 to 0, ``steps + 1`` of them."""
        return [*torch.linspace(1, LAST, self.steps, dtype=torch.float64, device="cpu").tolist(), 0.0]


def model_sampling(model: XAR) -> XARSampling:
    """What a model draws with where nobody says otherwise: its configuration's ``sampling``, else the defaults."""
    return XARSampling(**model.config.sampling)


class Noise(Protocol):
    """Where the normal numbers of a run come from."""

    def __call__(self, entity: int, step: int) -> Tensor:
        """``[B, T, C]`` of one entity: at step 0 what it starts from, at step i what is added after the i-th step.

        Asked for entity by entity and step by step.
        """
        ...


class DrawnNoise:
    """Drawn anew, for every picture from its own generator.

    Args:
        generators: B CPU generators.
        sizes: T of each entity.
        channels: C.
    """

    def __init__(self, generators: Sequence[torch.Generator], sizes: Sequence[int], channels: int) -> None:
        self.generators, self.sizes, self.channels = generators, sizes, channels

    def __call__(self, entity: int, step: int) -> Tensor:
        """See :class:`Noise`."""
        shape = self.sizes[entity], self.channels
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


class RecordedNoise:
    """Noise of an earlier run.

    Args:
        start: ``[B, T, C]`` of each entity.
        steps: for each entity what is added after each step but the last, ``[steps - 1, B, T, C]``.
    """

    def __init__(self, start: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        self.start, self.steps = start, steps

    def __call__(self, entity: int, step: int) -> Tensor:
        """See :class:`Noise`.

        Raises:
            ValueError: more entities or steps than were recorded.
        """
        if entity >= min(len(self.start), len(self.steps)) or step > len(self.steps[entity]):
            raise ValueError(
                f"noise must be recorded for all entities and steps, got none for step {step} of entity {entity}; "
                "record a run of the same sampling"
            )
        return self.steps[entity][step - 1] if step else self.start[entity]


class Session:
    """One run of sampling: conditions, and keys and values of what is finished. It dies with the call that made it.

    Args:
        model: in eval mode.
        wanted: B conditions.
        guided: whether any entity is led away from nothing, by a second half of the batch.
    """

    def __init__(self, model: XAR, wanted: Sequence[Wanted], *, guided: bool) -> None:
        self.model, self.count = model, len(wanted)
        self.condition = model.condition([*wanted, *([None] * len(wanted) if guided else [])])
        self.memory = model.memory(len(self.condition))

    def velocity(self, entity: int, state: Tensor, time: float, scale: float, clean: Tensor | None = None) -> Tensor:
        """Guided velocity of one entity.

        Where the scale is 1 the half without condition is left out. It lacks nothing later if no entity before this one
        was guided: an entity gets its lasting keys and values with the first evaluation of the next, in both halves.

        Args:
            entity: its number.
            state: ``[B, T, C]`` float64.
            time: in (0, 1].
            scale: of guidance.
            clean: ``[B, T', C]``, the finished entity before it, at the first evaluation of an entity but the first.

        Returns:
            ``[B, T, C]`` float64.
        """
        halves = 1 if scale == 1 else 2
        tokens = state if clean is None else torch.cat([clean, state], dim=1)
        times = torch.tensor([time] if clean is None else [0.0, time], device=state.device)
        rows = self.condition[: halves * self.count]
        found = self.model.velocity(
            tokens.to(self.model.dtype).repeat(halves, 1, 1),
            times.expand(len(rows), -1),
            rows,
            entity - (clean is not None),
            self.memory,
        )[:, -state.shape[1] :].double()
        if halves == 1:
            return found
        asked, free = found.chunk(2)
        return free + scale * (asked - free)


@torch.inference_mode()
def sample_latents(model: XAR, wanted: Sequence[Wanted], noise: Noise, sampling: XARSampling | None = None) -> Tensor:
    """Draw latents by Euler-Maruyama steps.

    With diffusion ``w(t) = 2 t`` and score ``-((1 - t) v + x) / t`` the drift ``v - w score / 2`` is
    ``(2 - t) v + x``. The last step adds no noise.

    Args:
        model: in eval mode.
        wanted: B conditions.
        noise: of B pictures.
        sampling: the model's own by default.

    Returns:
        ``[B, C, h, w]`` float32.

    Raises:
        ValueError: a condition that the model has not, or noise of another shape.
    """
    chosen = model_sampling(model) if sampling is None else sampling
    times, sizes = chosen.times(), model.entities.sizes
    session = Session(model, wanted, guided=chosen.guidance != 1)
    finished: list[Tensor] = []
    for entity, size in enumerate(sizes):
        scale, shape = chosen.scale(entity, len(sizes)), (len(wanted), size, model.config.channels)
        state = _checked(noise(entity, 0), shape).to(model.device, torch.float64)
        for step, (time, after) in enumerate(pairwise(times), 1):
            clean = finished[-1] if finished and step == 1 else None
            velocity = session.velocity(entity, state, time, scale, clean)
            state = state + ((2 - time) * velocity + state) * (after - time)
            if after:
                drawn = _checked(noise(entity, step), shape).to(state)
                state = state + math.sqrt(2 * time * (time - after)) * drawn
        finished.append(state)
    return model.entities.join(torch.cat(finished, dim=1)).float()


class XARPipeline(PicturePipeline):
    """Draws pictures through latents.

    Args:
        latents: the space that the model was trained on.
        xar: the model.

    Raises:
        ValueError: a model of other latents.
    """

    parts: ClassVar[Mapping[str, type[Any]]] = {"latents": LatentSpace, "xar": XAR}
    holds = "an xAR model"

    def __init__(self, latents: LatentSpace, xar: XAR) -> None:
        super().__init__()
        xar.check_latents(latents.fingerprint(), latents.channels, latents.grid)
        self.latents: LatentSpace
        self.xar: XAR
        self.register_modules(latents=latents.eval(), xar=xar.eval())

    def draw(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], sampling: XARSampling | None = None
    ) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        noise = DrawnNoise(generators, self.xar.entities.sizes, self.xar.config.channels)
        wanted = [self.xar.condition.wanted(prompt) for prompt in prompts]
        return self.latents.decode(sample_latents(self.xar, wanted, noise, sampling))

    def check_prompt(self, prompt: str) -> None:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        self.xar.condition.wanted(prompt)

    @property
    def sampling(self) -> XARSampling:
        """How it draws where nobody says otherwise."""
        return model_sampling(self.xar)

    def rebuild(self, images: Tensor) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        return self.latents.decode(self.latents.encode(images.to(self.latents.device)))


def _checked(noise: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if tuple(noise.shape) != shape:
        raise ValueError(
            f"noise of an entity must be {list(shape)} here, got {list(noise.shape)}; draw it for this model and batch"
        )
    return noise
