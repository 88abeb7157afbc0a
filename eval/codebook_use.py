"""Which codes of a tokenizer are drawn over a whole set of pictures, and what a picture costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.codes import Codes, CodeSpec


class CodebookUse:
    """How often each code of a tokenizer is drawn over a whole set, and what its codes cost."""

    def __init__(self, spec: CodeSpec) -> None:
        self._spec = spec
        self._counts = {book.name: torch.zeros(book.size, dtype=torch.int64) for book in self._spec.codebooks}
        self._positions = self._images = 0

    def of(self, codes: Codes) -> dict[str, Any]:
        """What `add` counts of a batch, for another process to `count`; padding is left out."""
        ids = codes.ids[codes.mask].cpu()
        counts = {
            name: torch.bincount(ids[:, columns].flatten(), minlength=len(self._counts[name]))
            for name, columns in self._spec.slices().items()
        }
        return {"positions": len(ids), "images": len(codes), "counts": counts}

    def count(self, found: Mapping[str, Any]) -> None:
        """Count what `of` found in a batch."""
        self._positions += found["positions"]
        self._images += found["images"]
        for name, counts in found["counts"].items():
            self._counts[name] += counts

    def add(self, codes: Codes) -> None:
        """Count the codes of a batch; padding is left out."""
        self.count(self.of(codes))

    def scores(self) -> dict[str, Any]:
        """Of the set, and of one picture.

        Returns:
            By codebook ``usage`` (share of its K codes that were drawn), ``uniform_usage`` (what as many equally likely
            codes would draw: ``1 - (1 - 1/K)^N``) and ``perplexity``; of one picture ``tokens`` and ``bits`` (every
            code at log2 K).
        """
        positions = self._positions / max(1, self._images)
        return {
            "usage": {name: float((count > 0).double().mean()) for name, count in self._counts.items()},
            "uniform_usage": {
                name: 1 - (1 - 1 / len(count)) ** int(count.sum()) for name, count in self._counts.items()
            },
            "perplexity": {name: _perplexity(count) for name, count in self._counts.items()},
            "tokens": positions * self._spec.depth,
            "bits": positions * self._spec.bits / self._spec.positions,
        }


def _perplexity(counts: Tensor) -> float:
    return float(torch.special.entr(counts.double() / counts.sum().clamp_min(1)).sum().exp())
