"""What a tokenizer leaves of scenes, judged object by object: the upper end of every generator on its codes.

PSNR asks how far pixels are off, the ceiling whether every object is still there with its shape, its colour, its number
and its place. Both are measured on the same renders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.processes import ALONE, Processes
from ..data.scene_prompts import prompts, prompts_sha256
from ..data.scene_world import World
from ..data.transforms import from_uint8, to_uint8
from ..tokenizers.base import VisualTokenizer
from .detector import THRESHOLDS
from .images.float32 import full_float32
from .images.metrics import psnr, ssim
from .protocol import QUANTISER, Protocol
from .scene_eval import SceneScores, ceiling

CEILING_TASK = "tokenizer ceiling of SceneEval (GenEval rules)"

_NORMAL = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class TokenizerCeiling:
    """What is left of the renders of a world's prompts after their codes."""

    scene: SceneScores  #: the rebuilt renders, judged as a generator's pictures are
    psnr: Tensor  #: [N] dB of each render
    ssim: Tensor  #: [N] of each render

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values: means, 95 % intervals, shares by task."""
        scene = self.scene.to_dict()
        return {
            "ceiling": scene["overall"],
            "strict": scene["strict"],
            "psnr": float(self.psnr.mean()),
            "ssim": float(self.ssim.mean()),
            "interval": dict(zip(("low", "high"), scene["interval"], strict=True)),
            "psnr_interval": dict(zip(("low", "high"), _interval(self.psnr), strict=True)),
            "tasks": scene["tasks"],
            "strict_tasks": scene["strict_tasks"],
        }


@torch.inference_mode()
def tokenizer_ceiling(
    tokenizer: VisualTokenizer,
    world: World,
    *,
    per_prompt: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> TokenizerCeiling:
    """Render every prompt of a world, encode and decode, and judge what comes back.

    Args:
        tokenizer: for pictures of the world's size.
        world: decides prompts and renders.
        per_prompt: renders of every prompt.
        batch_size: pictures coded together.
        seed: of the prompts and the renders.
        progress: told how many pictures of how many are done.
        processes: share the batches; each gets the scores of all, bit for bit those of one process.

    Raises:
        ValueError: a tokenizer for pictures of another size.
    """
    if tokenizer.image_size != (world.size, world.size):
        raise ValueError(
            f"the world has pictures of {world.size}x{world.size} pixels, the tokenizer takes "
            f"{tokenizer.image_size[0]}x{tokenizer.image_size[1]}; name the world that it was trained on"
        )
    entries, own = prompts(world, seed), list[Tensor]()
    count = len(entries) * per_prompt

    def roundtrip(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)  # anew, so that a batch does not depend on those before it
        with full_float32():
            codes = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
            levels = from_uint8(to_uint8(tokenizer.decode(codes, generator).float().cpu()))
        own.append(torch.stack([psnr(levels, images), ssim(levels, images)]))
        if progress is not None:
            progress(min(count, processes.world * sum(each.shape[1] for each in own)), count)
        return levels

    options: dict[str, Any] = {"per_prompt": per_prompt, "batch_size": batch_size, "seed": seed}
    scene = ceiling(roundtrip, world, entries, **options, processes=processes)
    shares: list[list[Tensor]] = processes.gathered(own)
    turns = range(-(-count // batch_size))
    ratios, similarities = torch.cat([shares[at % processes.world][at // processes.world] for at in turns], dim=1)
    return TokenizerCeiling(scene, ratios, similarities)


def ceiling_protocol(
    tokenizer: VisualTokenizer, name: Literal["full", "small"], per_prompt: int = 4, seed: int = 0
) -> Protocol:
    """How `tokenizer_ceiling` measured."""
    world = World.named(name)
    entries = prompts(world, seed)
    return Protocol(
        task=CEILING_TASK,
        dataset=f"scenes-{name}, renders of its prompts",
        dataset_hash=prompts_sha256(entries),
        count=len(entries) * per_prompt,
        dtype=str(tokenizer.dtype).removeprefix("torch."),
        seed=seed,
        crop={"size": [world.size, world.size], "mode": "none"},
        quantiser=QUANTISER,
        reference="the same renders before encoding",
        extractor="analytic scene detector",
        prompts_hash=prompts_sha256(entries),
        rewritten=False,
        sampler={"per_prompt": per_prompt},
        extra={"world": world.to_dict(), "thresholds": dict(THRESHOLDS)},
    )


def _interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of a mean."""
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    return mean - _NORMAL * error, mean + _NORMAL * error
