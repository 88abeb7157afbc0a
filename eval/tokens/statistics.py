"""Everything that is measured about one stream of tokens, in one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tables import Table
from .compression import Compression, compression
from .entropy import (
    ESTIMATOR,
    Conditional,
    Entropy,
    Information,
    Usage,
    conditional_entropies,
    mutual_information,
    token_entropy,
    usage,
)
from .grammar import BUDGET, Grammars, grammars
from .growth import Growth, growth
from .ngrams import HELD_OUT, NgramModel, ngram_model
from .stream import TokenStream
from .zipf import ZipfFit, ngram_zipf, zipf

#: How the numbers were estimated, for a protocol.
ESTIMATORS: Mapping[str, str] = {
    "zipf.exponent": "truncated maximum likelihood, ranks from the other half of the images",
    "zipf.same_sample": "truncated maximum likelihood, ranks from the same counts",
    "zipf.ols": "least squares of log count over log rank",
    "entropy.estimate": f"{ESTIMATOR}, clamped to [0, log2 K]",
    "conditional.estimate": f"difference of two {ESTIMATOR} estimates, clamped to [0, log2 K]",
    "information": "plug-in, beside shuffled pairs",
    "growth": "mean over all orders of the images",
    "ngrams": f"interpolated Witten-Bell, {HELD_OUT:.0%} of the images held out",
    "grammar": "Re-Pair",
}


@dataclass(frozen=True)
class TokenStatistics:
    """The statistics of one stream."""

    name: str  #: of the stream
    order: str  #: scan order of compression, n-gram models and grammars
    size: int  #: K
    images: int  #: M
    tokens: int  #: N, of all images
    usage: Usage
    entropy: Entropy
    conditional: Mapping[str, Conditional]  #: by the neighbours known: ``left``, ``up``, ``left_up`` or ``previous``
    information: Mapping[str, Information]  #: by direction and distance
    zipf: ZipfFit
    ngram_zipf: Mapping[str, ZipfFit]  #: by kind of n-gram
    growth: Growth
    compression: Compression
    ngrams: NgramModel
    grammar: Grammars

    @classmethod
    def of(cls, stream: TokenStream, seed: int = 0, budget: int = BUDGET) -> TokenStatistics:
        """Measure a stream.

        Args:
            stream: the tokens.
            seed: decides halves, held-out images and controls.
            budget: tokens that the grammar reads at most.
        """
        draws = np.random.default_rng(seed).spawn(6)
        return cls(
            name=stream.name,
            order=stream.order,
            size=stream.size,
            images=stream.images,
            tokens=stream.tokens,
            usage=usage(stream),
            entropy=token_entropy(stream),
            conditional=conditional_entropies(stream, draws[0]),
            information=mutual_information(stream, draws[1]),
            zipf=zipf(stream, draws[2]),
            ngram_zipf=ngram_zipf(stream, draws[3]),
            growth=growth(stream),
            compression=compression(stream),
            ngrams=ngram_model(stream, draws[4]),
            grammar=grammars(stream, draws[5], budget),
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers by name, nested; finite throughout, those that do not apply left out."""
        tree: dict[str, Any] = {"size": self.size, "images": self.images, "tokens": self.tokens}
        for name in ("usage", "entropy", "zipf", "growth", "compression", "ngrams", "grammar"):
            tree[name] = getattr(self, name).to_dict()
        for name in ("conditional", "information", "ngram_zipf"):
            found = getattr(self, name)
            tree |= {name: {kind: value.to_dict() for kind, value in found.items()}} if found else {}
        return tree


def statistics_table(found: Sequence[TokenStatistics]) -> Table:
    """One row per stream; ``>=`` stands before entropies and gains that too few tokens make too small.

    What neighbours tell is clamped at 0 here, which chance alone may undercut; the record keeps the difference.
    """
    head = [
        "stream",
        "K",
        "tokens",
        "used (uniform)",
        "H1 bits",
        "perplexity",
        "told by neighbours",
        "Zipf s",
        "OLS s (R2)",
        "types after 100",
        "Huffman saves",
        "lzma saves",
        "n-gram perplexity 1, 2, 3",
        "2-grams shuffled in place, in image, all",
        "grammar (shuffled)",
    ]
    return Table(head, [_row(one) for one in found], frozenset(range(1, len(head))))


def _row(one: TokenStatistics) -> list[str]:
    saved, after = one.compression.to_dict(), one.growth.share_after_100
    known = max(one.conditional.values(), key=lambda known: known.gain, default=None)  # more neighbours, fewer of each
    return [
        one.name,
        f"{one.size:,}",
        f"{one.tokens:,}",
        f"{one.usage.usage:.1%} ({one.usage.uniform:.1%})",
        f"{_bound(one.entropy.estimate_biased)}{one.entropy.estimate:.2f}",
        f"{_bound(one.entropy.estimate_biased)}{one.entropy.perplexity:,.0f}",
        "" if known is None else f"{_bound(known.estimate_biased)}{max(0.0, known.gain):.2f}",
        f"{one.zipf.exponent:.2f}",
        f"{one.zipf.ols:.2f} ({one.zipf.ols_r2:.2f})",
        "" if after is None else f"{after:.1%}",
        f"{saved['huffman_saved']:.1%}" if "huffman_saved" in saved else "",
        f"{saved['lzma_saved']:.1%}" if "lzma_saved" in saved else "",
        ", ".join(f"{value:,.0f}" for value in one.ngrams.perplexity),
        ", ".join(f"{shuffled[1]:,.0f}" for shuffled in (one.ngrams.in_place, one.ngrams.within, one.ngrams.across)),
        f"{one.grammar.stream.ratio:.3f} ({one.grammar.shuffled.ratio:.3f})",
    ]


def _bound(biased: bool) -> str:
    return ">= " if biased else ""
