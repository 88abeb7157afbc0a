"""The flat head beside the depth head: seconds of a training step and of drawing pictures, in turn, ratio of medians.

    python benchmarks/code_heads.py [--runs 7] [--batch 32]

Both models have the backbone, the codes and the batch of ``configs/recipes/quickstart.yaml``; only the head differs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(
    CodeLayout("grid", (5, 5)), (Codebook("semantic", 64), Codebook("pixel.0", 256), Codebook("pixel.1", 256))
)
BACKBONE = {"model_type": "llama", "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4}
HEADS = {"flat": {"kind": "flat"}, "depth": {"kind": "depth", "width": 192, "heads": 6}}
CAPTION, QUESTION = "a red circle left of a square", ("is there a green circle", "no")


def built(head: str) -> SharedLM:
    """A model with one of the heads."""
    vocabulary = Vocabulary.train([CAPTION, *QUESTION])
    backbone = {**BACKBONE, "num_attention_heads": 6, "max_position_embeddings": 512}
    return SharedLM.build(backbone, vocabulary, SPEC, "benchmark", HEADS[head])


def training_step(model: SharedLM, batch: int) -> Callable[[], None]:
    """Forward and backward pass of a batch, three in ten of it read and the others written."""
    ids = torch.randint(0, 64, (batch, SPEC.positions, SPEC.depth))
    read = round(0.3 * batch)
    written = [model.layout.text_to_image(CAPTION, row) for row in ids[read:]]
    asked = [model.layout.image_to_text(row, CAPTION, [QUESTION] * 5, learn_codes=True) for row in ids[:read]]
    batches = [model.layout.collate(examples) for examples in (written, asked)]

    def run() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batches).loss
        loss.backward()

    return run


def drawing(model: SharedLM, batch: int) -> Callable[[], None]:
    """A batch of pictures with guidance."""

    def run() -> None:
        generators = [torch.Generator().manual_seed(index) for index in range(batch)]
        sample_codes(model, [CAPTION] * batch, generators, Sampling(guidance=2.5))

    return run


def compared(one: Callable[[], None], other: Callable[[], None], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, after a warm-up of each."""
    found: tuple[list[float], list[float]] = ([], [])
    for index in range(runs + 1):
        for seconds, call in zip(found, (one, other), strict=True):
            start = time.perf_counter()
            call()
            if index:
                seconds.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(0)
    models = {head: built(head).eval() for head in HEADS}
    for title, work in (("training step", training_step), ("drawing", drawing)):
        flat, depth = compared(*(work(model, args.batch) for model in models.values()), args.runs)
        first, second = statistics.median(flat), statistics.median(depth)
        print(f"{title:14} flat {first:.3f} s  depth {second:.3f} s  ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
