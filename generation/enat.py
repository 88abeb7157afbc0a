"""Masked generation: hidden positions of a grid are predicted together and the surest kept, step by step, as in MaskGIT
(https://arxiv.org/abs/2202.04200), with the schedule and the network of ENAT (https://arxiv.org/abs/2411.06959).

Every picture of a batch draws from its own generator, so that it does not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lm.conditions import Wanted
from ..lm.enat import ENAT, Pass, rows_at
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import PADDING, Codes
from .coded import CodePipeline
from .detokenizers import Detokenizer
from .filters import draw

#: The lowest temperature that codes are drawn with, that of the last step.
_COLDEST = 1e-3


@dataclass(frozen=True)
class MaskedSampling:
    """How codes of hidden positions are drawn and which of them are kept; the defaults are ENAT's for 256 px.

    Args:
        steps: >= 1, passes of the network; at most one for each position.
        guidance: w >= 0 in ``c + w (c - u)``, reached by a straight line from 0 at the first step; 0 is off. Where
            guidance is written ``u + s (c - u)``, s is ``1 + w``.
        sampling_temperature: >= 0, of the codes before the first step; it falls to 0 in a straight line.
        mask_temperature: >= 0, of the noise on how sure a code is, before the first step; it falls likewise.
        reuse: keep what was found about visible positions from step to step, and encode the new ones alone.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 8
    guidance: float = 2.5
    sampling_temperature: float = 6.0
    mask_temperature: float = 1.5
    reuse: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"masked generation needs steps >= 1, got {self.steps}; 8 is usual")
        scales = (self.guidance, self.sampling_temperature, self.mask_temperature)
        if min(scales) < 0:
            raise ValueError(
                "masked generation needs guidance, sampling_temperature and mask_temperature >= 0, got "
                f"{', '.join(map(str, scales))}; 2.5, 6 and 1.5 are usual"
            )

    @property
    def forwards(self) -> int:
        """Passes of the network for a batch of pictures."""
        return self.steps


def model_sampling(model: ENAT) -> MaskedSampling:
    """What a model draws with where nobody says otherwise: its configuration's ``sampling``, else the defaults."""
    return MaskedSampling(**model.config.sampling)


def hidden_counts(positions: int, steps: int) -> list[int]:
    """How many of N positions are still hidden after each step: ``floor(N cos(pi r / 2))`` at the share r of steps.

    Raises:
        ValueError: more steps than positions, or none.
    """
    if not 1 <= steps <= positions:
        raise ValueError(
            f"masked generation of {positions} positions takes 1 to {positions} steps, got {steps}; each should reveal "
            "at least one"
        )
    return [math.floor(positions * math.cos(math.pi * (step + 1) / steps / 2)) for step in range(steps)]


@torch.inference_mode()
def write_masked(
    model: ENAT,
    conditions: Sequence[Wanted],
    generators: Sequence[torch.Generator],
    sampling: MaskedSampling | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Write the codes of one picture per condition.

    With guidance, pictures for nothing stand behind those for the conditions in the same batch, with the same codes and
    features of their own.

    Args:
        model: in eval mode.
        conditions: B sentences or classes.
        generators: B CPU generators, one per condition; each alone decides its picture.
        sampling: steps, guidance and temperatures; the model's own by default.
        progress: called with (steps done, steps in all) after every step.

    Raises:
        ValueError: another number of generators than conditions, more steps than positions, or a condition that the
            model cannot read.
        TypeError: settings of another kind of model.
    """
    chosen = model_sampling(model) if sampling is None else sampling
    _check(chosen, conditions, generators)
    counts = hidden_counts(model.spec.positions, chosen.steps)
    canvas = _Canvas(model, conditions, chosen.reuse, twice=chosen.guidance > 0)
    uniforms = _uniforms(generators, (chosen.steps, model.spec.positions, model.spec.depth + 1), model.device)
    for step, count in enumerate(counts):
        before, after = step / chosen.steps, (step + 1) / chosen.steps
        hidden, logits = canvas.predictions(before * chosen.guidance)
        noise = rows_at(uniforms[:, step], hidden)
        heat = max(chosen.sampling_temperature * (1 - after), _COLDEST)
        drawn = [_drawn(of_column, noise[..., at], heat) for at, of_column in enumerate(logits)]
        sure = torch.stack([likelihood for _, likelihood in drawn]).mean(0)
        sure = sure + chosen.mask_temperature * (1 - after) * _gumbel(noise[..., -1])
        kept = sure.topk(hidden.shape[1] - count, dim=1).indices
        ids = torch.stack([found for found, _ in drawn], dim=-1)
        canvas.write(hidden.gather(1, kept), rows_at(ids, kept))
        if progress is not None:
            progress(step + 1, chosen.steps)
    return Codes.full(canvas.ids, model.spec)


class ENATPipeline(CodePipeline):
    """Draws pictures for sentences or classes.

    Args:
        tokenizer: codes to images.
        model: the network trained on its codes.
        decoder: draws pictures of the codes in place of the tokenizer's pixel decoder; none by default.

    Raises:
        ValueError: a network or a decoder trained with another tokenizer.
    """

    parts: ClassVar[Mapping[str, type[Any]]] = {"tokenizer": VisualTokenizer, "model": ENAT}
    holds = "a model of masked generation"

    def __init__(self, tokenizer: VisualTokenizer, model: ENAT, decoder: Detokenizer | None = None) -> None:
        super().__init__()
        model.check_tokenizer(tokenizer)
        self.model: ENAT
        self.hold(tokenizer, model, decoder)

    @property
    def sampling(self) -> MaskedSampling:
        """How it draws where nobody says otherwise."""
        return model_sampling(self.model)

    def draw(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], sampling: MaskedSampling | None = None
    ) -> Tensor:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        wanted = [self.model.conditions.wanted(prompt) for prompt in prompts]
        return self.pixels(write_masked(self.model, wanted, generators, sampling), generators)

    def check_prompt(self, prompt: str) -> None:
        """See :class:`~smalti.generation.pictures.PicturePipeline`."""
        self.model.conditions.wanted(prompt)


class _Canvas:
    """One run of decoding: codes so far and what the last pass found. It dies with the call that made it."""

    def __init__(self, model: ENAT, conditions: Sequence[Wanted], reuse: bool, twice: bool) -> None:
        self.model, self.reuse, self.count = model, reuse, len(conditions)
        self.given = model.conditions([*conditions, *([None] * len(conditions) if twice else ())])
        self.ids = torch.full((self.count, model.spec.positions, model.spec.depth), PADDING, device=model.device)
        self.visible = self.ids.new_empty(self.count, 0)
        self.earlier: Pass | None = None

    def predictions(self, guidance: float) -> tuple[Tensor, list[Tensor]]:
        """Hidden positions ``[B, H]`` and log-probabilities ``[B, H, K]`` there of every column."""
        repeats = 2 if guidance else 1
        new = self.visible[:, 0 if self.earlier is None else self.earlier.visible.shape[1] :]
        given = self.given[: repeats * self.count]
        found = self.model(self.ids.repeat(repeats, 1, 1), new.repeat(repeats, 1), given, self.earlier)
        if self.reuse and self.visible.shape[1]:  # the first pass sees nothing that could be kept
            self.earlier = found
        logits = self.model.logits(found.of_hidden())
        led = [_led(of_column, guidance) if guidance else of_column for of_column in logits]
        return found.hidden[: self.count], [of_column.log_softmax(-1) for of_column in led]

    def write(self, places: Tensor, ids: Tensor) -> None:
        """Codes ``[B, M, D]`` at hidden positions ``[B, M]``."""
        self.ids.scatter_(1, places[..., None].expand_as(ids), ids)
        self.visible = torch.cat([self.visible, places], dim=1)


def _check(sampling: Any, conditions: Sequence[Wanted], generators: Sequence[torch.Generator]) -> None:
    if not isinstance(sampling, MaskedSampling):
        raise TypeError(
            f"masked generation draws with MaskedSampling, got {type(sampling).__name__}; pass one, or None for the "
            "model's own"
        )
    if len(generators) != len(conditions) or not conditions:
        raise ValueError(
            f"one generator per condition is needed and at least one condition, got {len(generators)} generators for "
            f"{len(conditions)} conditions; make one generator for each"
        )


def _uniforms(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """``[B, *shape]`` float64 in [0, 1)."""
    return torch.stack([torch.rand(shape, generator=each, dtype=torch.float64) for each in generators]).to(device)


def _led(logits: Tensor, guidance: float) -> Tensor:
    """Logits of the first half of the rows, led further away from those of the second."""
    conditional, free = logits.chunk(2)
    return conditional + guidance * (conditional - free)


def _drawn(likelihoods: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Ids ``[B, H]`` drawn at a temperature, and how likely they are without it, from ``[B, H, K]``."""
    ids = draw(likelihoods.flatten(0, 1), uniform.flatten(), temperature).view(uniform.shape)
    return ids, likelihoods.gather(-1, ids[..., None])[..., 0]


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.log()).log()
