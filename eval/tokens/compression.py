"""How small tokens become: Huffman's code, and general compressors beside packed ids."""

from __future__ import annotations

import lzma
import math
import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np

from .counting import Ids, labels, tally
from .stream import TokenStream

_ZLIB, _LZMA = 9, 6  #: levels


@dataclass(frozen=True)
class Compression:
    """Bits per token under several codes, and the share saved over ``log2 K`` bits each (negative: it grew)."""

    count: int  #: tokens
    plain_bits: float  #: log2 K
    huffman_bits: float  #: mean length of an optimal prefix code of single tokens, its table left out
    zlib_bits: float  #: of the scanned ids in 2, 4 or 8 bytes each, at level 9
    lzma_bits: float  #: likewise, at level 6

    def to_dict(self) -> dict[str, float]:
        """The fields by name, and ``huffman_saved``, ``zlib_saved`` and ``lzma_saved`` where K is above 1."""
        saved = {
            f"{name}_saved": 1 - getattr(self, f"{name}_bits") / self.plain_bits
            for name in ("huffman", "zlib", "lzma")
            if self.plain_bits
        }
        return {**vars(self), **saved}


def compression(stream: TokenStream) -> Compression:
    """Compress a stream in its scan order."""
    ids = stream.flat
    content = _packed(ids, stream.size).tobytes()
    return Compression(
        len(ids),
        math.log2(stream.size),
        huffman_bits(tally(ids)),
        8 * len(zlib.compress(content, _ZLIB)) / len(ids),
        8 * len(lzma.compress(content, preset=_LZMA)) / len(ids),
    )


def huffman_bits(counts: Ids) -> float:
    """Mean length of Huffman's code words, in bits per token; 0 for a single type.

    Args:
        counts: ``[V]``, of the types that occur.
    """
    leaves, inner = deque(np.sort(counts).tolist()), deque[int]()
    total = 0
    for _ in range(len(counts) - 1):  # both queues are sorted, so the two lightest trees are at their fronts
        weight = _lightest(leaves, inner) + _lightest(leaves, inner)
        inner.append(weight)
        total += weight
    return total / int(counts.sum())


def _lightest(leaves: deque[int], inner: deque[int]) -> int:
    return leaves.popleft() if leaves and (not inner or leaves[0] <= inner[0]) else inner.popleft()


def _packed(ids: Ids, size: int) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
    """Ids in the least whole number of bytes above one; joint ids of more bytes are numbered anew."""
    if size > 1 << 32:
        ids = labels(ids)
        size = int(ids.max()) + 1
    return ids.astype(np.uint16 if size <= 1 << 16 else np.uint32)
