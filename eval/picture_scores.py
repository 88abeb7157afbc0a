"""SceneEval of a model that draws pictures and does nothing else, beside its baselines and its speed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.processes import ALONE, Processes
from ..data.scene_prompts import prompts, prompts_sha256
from ..data.scene_world import World
from ..generation.pictures import PicturePipeline
from .detector import THRESHOLDS
from .protocol import Protocol, state_hash, write_result
from .scene_eval import SceneScores, render_prompt, score_images
from .scene_memory import nearest_training
from .sheets import sample_sheet, save_png
from .suite import Images, SuiteSettings, draw_prompts, scene_scores, spread


@dataclass(frozen=True)
class PictureScores:
    """What a model that draws pictures reached, and the pictures."""

    scores: dict[str, Any]  #: ``scene_eval`` with the ends of its scale, ``images_per_second``, ``baselines``
    images: Images  #: [P * per_prompt, H, W, 3]
    judged: SceneScores  #: of the pictures

    def sheet(self, shown: int = 48) -> Image.Image:
        """Some of the pictures, evenly spread over the prompts, with their verdicts."""
        chosen = spread(len(self.images), shown)
        verdicts = [self.judged.verdicts[index] for index in chosen]
        texts, marks = [verdict.prompt for verdict in verdicts], [verdict.correct for verdict in verdicts]
        return sample_sheet(self.images[chosen], texts, marks)


def score_pictures(
    pipeline: PicturePipeline, folder: str | Path, settings: SuiteSettings, processes: Processes = ALONE
) -> dict[str, Any]:
    """Measure as `measure_pictures`, write ``scores.json`` and ``samples.png`` to a folder, and return the scores.

    Of several processes the first writes.
    """
    found = measure_pictures(pipeline, settings, processes)
    if processes.first:
        protocol = picture_protocol(pipeline, settings)
        write_result(Path(folder) / "scores.json", found.scores, protocol, described(pipeline, settings))
        save_png(found.sheet(), Path(folder) / "samples.png")
    return found.scores


def memory_scores(images: Images, world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How near drawn pictures are to training's, beside renders of the same prompts that nobody can have remembered.

    Args:
        images: ``(P * n, size, size, 3)``, n of each prompt of the world.
        world: that the model was trained on.
        count: training pictures looked through, from the first one.
        seed: of the prompts and the renders.

    Returns:
        ``nearest`` and ``nearest_render``, medians of the root mean square difference in levels to the nearest training
        picture, ``copies``, drawn pictures within one level of one, and ``training_pictures``.
    """
    entries = prompts(world, seed)
    streams = ((entry, np.random.default_rng([seed, at])) for at, entry in enumerate(entries))
    renders = np.stack([render_prompt(entry, world, stream) for entry, stream in streams])
    drawn, fresh = (nearest_training(pictures, world, count).distances for pictures in (images, renders))
    return {
        "nearest": float(np.median(drawn)),
        "nearest_render": float(np.median(fresh)),
        "copies": int((drawn < 1).sum()),
        "training_pictures": count,
    }


def measure_pictures(pipeline: PicturePipeline, settings: SuiteSettings, processes: Processes = ALONE) -> PictureScores:
    """Draw the prompts of a world and judge the pictures.

    Beside the model stand an untrained one of the same shape, its own pictures under shuffled prompts (``chance``), the
    world's renders (``oracle``, ``near_miss``) and what encoding and decoding leaves of them (``ceiling``).

    Args:
        pipeline: the model.
        settings: the world, pictures per prompt, seed, batch size and, where not the model's own, how it draws.
        processes: share the drawing and rebuilding; each gets all pictures and scores, which are those of one process
            but for ``images_per_second``.

    Raises:
        ValueError: pictures of another size than the world's.
    """
    world, entries = World.named(settings.world), prompts(World.named(settings.world), settings.seed)
    texts = [entry["prompt"] for entry in entries]
    started = time.perf_counter()
    images = draw_prompts(pipeline, texts, settings, processes)
    seconds = time.perf_counter() - started
    summary, scores = scene_scores(images, entries, world, settings, pipeline, processes)
    guessed = draw_prompts(pipeline.untrained(settings.seed), texts, settings, processes)
    other = score_images(guessed, entries, world, seed=settings.seed)
    results: dict[str, Any] = {
        "scene_eval": summary,
        "images_per_second": len(images) / seconds,
        "baselines": {"untrained": {"scene_eval": {"overall": other.overall, "strict": other.strict}}},
    }
    return PictureScores(results, images, scores)


def picture_protocol(pipeline: PicturePipeline, settings: SuiteSettings) -> Protocol:
    """How `measure_pictures` measures."""
    world = World.named(settings.world)
    entries = prompts(world, settings.seed)
    own: Any = settings.sampling or pipeline.sampling
    return Protocol(
        task="SceneEval (GenEval rules)",
        dataset=f"scenes-{settings.world}",
        dataset_hash=prompts_sha256(entries),
        count=len(entries) * settings.per_prompt,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        seed=settings.seed,
        crop={"size": [world.size, world.size], "mode": "none"},
        reference="the world's own renders",
        extractor="analytic scene detector",
        prompts_hash=prompts_sha256(entries),
        rewritten=False,
        sampler={"kind": type(own).__name__, **asdict(own), "per_prompt": settings.per_prompt},
        extra={"world": world.to_dict(), "thresholds": dict(THRESHOLDS)},
    )


def described(pipeline: PicturePipeline, settings: SuiteSettings) -> dict[str, str]:
    """The model by the hashes of its parts, and what it was timed on."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    found = {"pipeline": type(pipeline).__name__}
    for name, part in parts.items():
        found |= {name: type(part).__name__, f"{name}_hash": state_hash(part.state_dict())[:16]}
    device = next(weights.device for part in parts.values() for weights in part.parameters())
    timed = f"{device}, batches of {settings.batch_size}, {torch.get_num_threads()} threads"
    return {**found, "timed_on": timed}
