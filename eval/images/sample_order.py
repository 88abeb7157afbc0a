"""Which place in the whole set each image of a batch has, whichever process scored it and in which batch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def sample_indices(index: Tensor | None, batch: int, seen: int) -> Tensor:
    """Places ``[B]`` int64 of a batch.

    Args:
        index: ``[B]`` whole numbers >= 0, or None where one process scores all images in order.
        batch: B.
        seen: images scored before, for None.

    Raises:
        ValueError: none given on one of several processes, another shape, or a negative place.
        TypeError: not whole numbers.
    """
    if index is None:
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise ValueError(
                f"expected the place of each image, got none on one of {distributed.get_world_size()} processes; "
                "pass index=, the places in the data set"
            )
        return torch.arange(seen, seen + batch)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"places must be whole numbers, got {index.dtype}; pass positions in the data set")
    if index.shape != (batch,):
        raise ValueError(f"expected one place per image, got {list(index.shape)} for {batch} images; pass [B]")
    if batch and int(index.min()) < 0:
        raise ValueError(f"places must be at least 0, got {int(index.min())}; pass positions in the data set")
    return index.detach().long().cpu()


def first_of_each(index: Tensor) -> Tensor:
    """Where each place comes first, in the order of places: rows that drop what a padding sampler repeated.

    Args:
        index: ``[N]`` int64.

    Returns:
        ``[M]`` int64 into ``index``, M distinct places.
    """
    order = index.argsort(stable=True)
    ordered = index[order]
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return order[fresh]
