"""Codes to vectors by the vectors alone: for who keeps those and not the tokenizer.

Letters: D codes per position, K codebook size, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from .codes import PADDING, CodeSpec


def looked_up(vectors: Mapping[str, Tensor], ids: Tensor, spec: CodeSpec) -> Tensor:
    """Rows of every codebook, added over its depth; those of several codebooks side by side.

    With a tokenizer's ``code_vectors()`` this is its ``embed`` wherever codebooks stand for parts of a vector. It is
    not where they are added, as in a residual quantizer with a table per depth, nor where sums of rows are projected
    with a bias, as in one with a ``codebook_dim`` of its own.

    Args:
        vectors: ``[K, c]`` float of each codebook, by name.
        ids: ``[..., D]`` int64, columns as in ``spec``; a code of -1 (padding) adds nothing.
        spec: which columns belong to which codebook.

    Returns:
        ``[..., C]``, C the sum of the codebooks' widths c; differentiable in the vectors.

    Raises:
        ValueError: vectors of other codebooks or ids of another depth than those of the spec.
    """
    wanted = {book.name: book.size for book in spec.codebooks}
    given = {name: len(rows) for name, rows in vectors.items()}
    if given != wanted:
        raise ValueError(
            f"vectors must have the codebooks and sizes {wanted}, got {given}; take those of the tokenizer"
        )
    if ids.shape[-1] != spec.depth:
        raise ValueError(f"ids must end in {spec.depth} codes per position, got {list(ids.shape)}; keep every column")
    return torch.cat([_added(vectors[name], ids[..., columns]) for name, columns in spec.slices().items()], dim=-1)


def _added(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows ``[..., c]`` of ``[..., depth]`` ids, added one after the other as quantizers do."""
    padded = ids == PADDING
    found = F.embedding(ids.masked_fill(padded, 0), rows).masked_fill(padded[..., None], 0)
    return reduce(torch.add, found.unbind(-2))
