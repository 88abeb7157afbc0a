"""Token statistics: CPU seconds of every part on 512,000 tokens of 16,384 codes, and how well planted values come back.

    OMP_NUM_THREADS=1 python benchmarks/token_statistics.py [--exponents 0 0.5 1 1.5] [--images 2000]

2,000 images of 16 x 16 independent tokens for each Zipf exponent, their names shuffled. Process time of one thread; the
grammar reads its budget of tokens only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from smalti.eval.tokens.compression import compression
from smalti.eval.tokens.counting import tally
from smalti.eval.tokens.entropy import conditional_entropies, entropy, mutual_information, token_entropy, usage
from smalti.eval.tokens.grammar import BUDGET, grammars
from smalti.eval.tokens.growth import growth
from smalti.eval.tokens.ngrams import ngram_model
from smalti.eval.tokens.stream import TokenStream
from smalti.eval.tokens.zipf import ngram_zipf, zipf

SIZE, SIDE = 16_384, 16
EARLY = 100  #: images after which the entropies are compared


def planted(exponent: float, images: int) -> tuple[TokenStream, float]:
    """A stream, and the bits of its source."""
    generator = np.random.default_rng(0)
    shares = np.arange(1, SIZE + 1) ** -float(exponent)
    shares /= shares.sum()
    ids = generator.permutation(SIZE)[generator.choice(SIZE, (images, SIDE, SIDE), p=shares)]
    return TokenStream.of(ids, SIZE), float(-(shares * np.log2(shares)).sum())


def parts(stream: TokenStream) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    draws = np.random.default_rng(0)
    return {
        "usage, entropy": lambda: (usage(stream), token_entropy(stream)),
        "conditional entropies": lambda: conditional_entropies(stream, draws),
        "mutual information": lambda: mutual_information(stream, draws),
        "Zipf": lambda: zipf(stream, draws),
        "Zipf of 7 kinds of n-grams": lambda: ngram_zipf(stream, draws),
        "growth": lambda: growth(stream),
        "compression": lambda: compression(stream),
        "n-gram models": lambda: ngram_model(stream, draws),
        f"grammar of {BUDGET:,} tokens": lambda: grammars(stream, draws),
    }


def main() -> None:
    """One block per exponent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exponents", type=float, nargs="+", default=[0, 0.5, 1, 1.5])
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    for exponent in args.exponents:
        stream, bits = planted(exponent, args.images)
        fit = zipf(stream, np.random.default_rng(0))
        early = entropy(tally(stream.part(np.arange(EARLY)).flat), SIZE)
        print(f"s = {exponent:g}: split-half {fit.exponent:.3f}, same sample {fit.same_sample:.3f}, OLS {fit.ols:.3f}")
        errors = (early.plug_in - bits, early.miller_madow - bits, early.estimate - bits)
        print(
            f"  {bits:.3f} bits; after {EARLY} images off by: plug-in {errors[0]:+.3f}, Miller-Madow {errors[1]:+.3f}, "
            f"Chao-Wang-Jost {errors[2]:+.3f}"
        )
        spent: dict[str, float] = {}
        for name, work in parts(stream).items():
            start = time.process_time()
            work()
            spent[name] = time.process_time() - start
            print(f"  {name:<28} {spent[name]:.2f} s")
        print(f"  {'all':<28} {sum(spent.values()):.2f} s for {stream.tokens:,} tokens")


if __name__ == "__main__":
    main()
