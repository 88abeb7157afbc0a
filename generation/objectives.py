"""What a denoiser predicts, and how clean things become noisy, for any scheduler of diffusers.

Two kinds of schedulers exist: those of variances (DDPM, https://arxiv.org/abs/2006.11239), told by their table of
betas, and those of straight paths (flow matching, https://arxiv.org/abs/2210.02747). Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

#: What the network gives: the noise; the clean picture; ``a noise - s clean`` (https://arxiv.org/abs/2202.00512); or
#: the velocity of a straight path, ``noise - clean``.
Prediction: TypeAlias = Literal["epsilon", "sample", "v_prediction", "flow"]

#: Any scheduler of diffusers; they share methods and no useful base class.
Scheduler: TypeAlias = Any

#: How times of training are drawn from [0, 1]: evenly, or as sigmoids of normal numbers (Stable Diffusion 3).
Times: TypeAlias = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class Noised:
    """Noisy things and what a network should say about them."""

    noisy: Tensor  #: as the clean ones
    target: Tensor  #: as the clean ones
    timesteps: Tensor  #: [B], as the network reads them


def prediction_of(scheduler: Scheduler) -> Prediction:
    """What the network must predict for a scheduler.

    Raises:
        ValueError: something else than the four known kinds.
    """
    config = scheduler.config
    found = "flow" if _is_flow(scheduler) else config.get("prediction_type")
    if found not in get_args(Prediction):
        raise ValueError(
            f"a scheduler must have one of the predictions {', '.join(get_args(Prediction))}, got {found!r} of "
            f"{type(scheduler).__name__}; take another"
        )
    return found


def check_scheduler(scheduler: Scheduler, prediction: str) -> None:
    """Raise unless a scheduler works with weights that were trained to predict something.

    Args:
        scheduler: that is about to be used.
        prediction: what the weights predict.

    Raises:
        ValueError: a scheduler of another prediction.
    """
    found = prediction_of(scheduler)
    if found != prediction:
        raise ValueError(
            f"these weights were trained to predict {prediction!r}, got a {type(scheduler).__name__} of prediction "
            f"type {found!r}; take a scheduler of {prediction!r}, or make one with from_config of the trained one"
        )


def training_scheduler(scheduler: Scheduler) -> Scheduler:
    """What mixes noise in for a scheduler: itself, or DDPM's of the same betas, whatever samples.

    Made once, before training, it spares every step the table of betas.
    """
    is_ready = isinstance(scheduler, DDPMScheduler) or prediction_of(scheduler) == "flow"
    return scheduler if is_ready else DDPMScheduler.from_config(scheduler.config)


def noised(scheduler: Scheduler, clean: Tensor, noise: Tensor, times: Tensor) -> Noised:
    """Noisy things at some times.

    Args:
        scheduler: says how noise is mixed in.
        clean: ``[B, ...]`` float.
        noise: the same shape, standard normal.
        times: ``[B]`` in [0, 1); 0 is clean.
    """
    steps = scheduler.config.num_train_timesteps
    if prediction_of(scheduler) == "flow":
        shift = float(scheduler.config.get("shift") or 1.0)
        sigmas = shift * times / (1 + (shift - 1) * times)
        mixed = clean.lerp(noise, _spread(sigmas, clean))
        return Noised(mixed, noise - clean, sigmas * steps)
    trained: Any = training_scheduler(scheduler)
    timesteps = (times * steps).long().clamp(0, steps - 1)
    mixed = trained.add_noise(clean, noise, timesteps)
    kind = prediction_of(scheduler)
    if kind == "v_prediction":
        return Noised(mixed, trained.get_velocity(clean, noise, timesteps), timesteps)
    return Noised(mixed, noise if kind == "epsilon" else clean, timesteps)


def draw_times(kind: Times, count: int, generator: torch.Generator | None = None) -> Tensor:
    """``[count]`` float32 times in [0, 1) on the CPU.

    Evenly drawn ones are stratified: one from each of ``count`` equal parts, in random order.
    """
    if kind == "logit-normal":
        return torch.randn(count, generator=generator).sigmoid()
    order = torch.randperm(count, generator=generator)
    return ((order + torch.rand(count, generator=generator)) / count).clamp_max(1 - 2**-20)


def _is_flow(scheduler: Scheduler) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("prediction_type") == "flow_prediction"


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, *([1] * (like.ndim - 1)))
