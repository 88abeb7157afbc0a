"""How much of each codebook is used, over a fixed number of tokens and all processes. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..tokenizers.codes import Codes, CodeSpec
from ..tokenizers.quantizers import distributed
from .processes import interleaved, share

#: Tokens of every column that are looked at; at 16,384 codes four times the vocabulary.
WINDOW = 65_536


class CodeUsage:
    """Usage and perplexity over the last ``window`` positions, whatever the batch size and the number of processes.

    Args:
        window: positions over all processes together; a longer batch is counted whole.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"window must be >= 1 token, got {window}; {WINDOW} is usual")
        self.window = window
        self._recent: Tensor | None = None  # [T, D] int32
        self._spec: CodeSpec | None = None

    def update(self, codes: Codes) -> None:
        """Add the codes of a batch; padding is left out."""
        ids = codes.ids.detach()[codes.mask].to(torch.int32)
        world = dist.get_world_size() if distributed() else 1
        kept = max(-(-self.window // world), len(ids))
        self._recent = (ids if self._recent is None else torch.cat([self._recent.to(ids.device), ids]))[-kept:]
        self._spec = codes.spec

    def compute(self) -> dict[str, Tensor]:
        """``usage/<codebook>`` in [0, 1] and ``perplexity/<codebook>`` in [1, K]; summed over processes.

        Where a codebook has several depths, ``usage/<codebook>.<depth>`` and its perplexity follow for each.

        Raises:
            ValueError: no codes yet.
        """
        if self._recent is None or self._spec is None:
            raise ValueError("usage is measured over codes, got none yet; call update first")
        counts = _counts(self._recent, self._spec)
        if distributed():
            dist.all_reduce(counts)
        found: dict[str, Tensor] = {}
        for name, part in _named(counts, self._spec):
            found[f"usage/{name}"] = (part > 0).float().mean()
            found[f"perplexity/{name}"] = _perplexity(part)
        return found

    def reset(self) -> None:
        """Forget all codes."""
        self._recent = None

    def state_dict(self) -> dict[str, Any]:
        """The codes looked at, of all processes together; to be called on all of them."""
        return {} if self._recent is None else {"recent": interleaved(self._recent).cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse, on any number of processes."""
        self._recent = share(state["recent"]) if "recent" in state else None


def _counts(ids: Tensor, spec: CodeSpec) -> Tensor:
    """Occurrences of every code of every column, one column behind the other."""
    sizes = torch.tensor([book.size for book in spec.columns], device=ids.device)
    starts = sizes.cumsum(0) - sizes
    return torch.bincount((ids + starts).flatten(), minlength=sum(book.size for book in spec.columns))


def _named(counts: Tensor, spec: CodeSpec) -> Iterator[tuple[str, Tensor]]:
    start = 0
    for book in spec.codebooks:
        columns = counts[start : start + book.size * book.depth].view(book.depth, book.size)
        start += book.size * book.depth
        yield book.name, columns.sum(0)
        if book.depth > 1:
            yield from ((f"{book.name}.{depth}", column) for depth, column in enumerate(columns))


def _perplexity(counts: Tensor) -> Tensor:
    shares = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(torch.special.entr(shares).sum()).float()
