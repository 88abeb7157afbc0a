"""How fast a language model writes pictures, as codes: in a process of its own, so that nothing else counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from ..generation.sampler import sample_codes
from ..lm.model import SharedLM


def sampling_speed(folder: str | Path, prompts: Sequence[str], batches: Sequence[int], repeats: int = 5) -> list[float]:
    """Images a second of a saved pipeline's language model, one number for each batch size; medians.

    Args:
        folder: of the pipeline.
        prompts: at least as many as the largest batch.
        batches: sizes.
        repeats: batches timed, after one that is not.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, str(Path(folder) / "lm"), list(prompts), list(batches), repeats).result()


def measure(folder: str, prompts: Sequence[str], batches: Sequence[int], repeats: int) -> list[float]:
    """As :func:`sampling_speed`, in this process, of a saved language model."""
    model, found = SharedLM.from_pretrained(folder), list[float]()
    for batch in batches:
        taken = list[float]()
        for _ in range(1 + repeats):
            generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
            begun = time.perf_counter()
            sample_codes(model, prompts[:batch], generators)
            taken.append(time.perf_counter() - begun)
        found.append(batch / median(taken[1:]))
    return found
