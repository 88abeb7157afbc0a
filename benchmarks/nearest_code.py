"""Nearest-code search: seconds beside vector-quantize-pytorch and ``cdist().argmin()``, in turn; and its peak memory.

    python benchmarks/nearest_code.py [--runs 5]

The three search 16,384 vectors among 16,384 codes of width 32 (the library's codebook in evaluation mode, which also
looks the codes up; so does ours here). Peak memory is what searching 65,536 vectors among 131,072 codes of width 8 adds
to a fresh process; the whole matrix of distances would take 32 GiB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from smalti.eval.speed import peak_memory
from smalti.tokenizers.search import nearest

VECTORS, CODES, WIDTH = 16_384, 16_384, 32
MANY, VOCABULARY, NARROW = 65_536, 131_072, 8


def searches() -> dict[str, Callable[[], Tensor]]:
    """Each way to the same ids."""
    vectors, table = torch.randn(VECTORS, WIDTH), torch.randn(CODES, WIDTH)
    library = VectorQuantize(dim=WIDTH, codebook_size=CODES).eval()
    library._codebook.embed.data.copy_(table[None])

    def ours() -> Tensor:
        ids = nearest(vectors, table)
        _ = table[ids]
        return ids

    return {
        "smalti": ours,
        "vector-quantize-pytorch": lambda: library(vectors[None])[1][0],
        "cdist().argmin()": lambda: torch.cdist(vectors, table).argmin(1),
    }


@torch.inference_mode()
def compare(runs: int) -> None:
    """One line per way; ids that differ are ties within rounding."""
    ways = searches()
    found = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        same = float((found[name] == found["smalti"]).float().mean())
        print(f"{name:24} {median:.3f} s, {median / medians['smalti']:.2f} x smalti's; {same:.4%} of the ids the same")


def peak() -> None:
    """In a fresh process: how much the search adds to the largest resident size so far."""
    vectors, table = torch.randn(MANY, NARROW), torch.randn(VOCABULARY, NARROW)
    before, start = peak_memory(), time.perf_counter()
    nearest(vectors, table)
    seconds, after = time.perf_counter() - start, peak_memory()
    added, whole = (after - before) / 2**30, after / 2**30
    what = f"{MANY} vectors, {VOCABULARY} codes of width {NARROW}"
    print(f"{what}: {seconds:.1f} s, {added:.3f} GiB more, {whole:.2f} in all")


def main() -> None:
    """Compare, then measure memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak()
        return
    compare(args.runs)
    subprocess.run([sys.executable, __file__, "--peak"], check=True)


if __name__ == "__main__":
    main()
