"""Numbers of all processes that train together. Knows no Lightning, and does nothing where there is one process."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from ..tokenizers.quantizers import distributed


def averaged(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, element by element; itself where there is one process.

    Args:
        values: any float dtype, of one shape in all processes.
    """
    if not distributed():
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / dist.get_world_size()


def interleaved(rows: Tensor) -> Tensor:
    """The rows of all processes, one of each in turn; shorter ones begin with rows of -1.

    Args:
        rows: ``[T, ...]`` integers; T may differ between processes.

    Returns:
        ``[max T * processes, ...]``, the same in all processes. Row ``i`` is of process ``i % processes``.
    """
    if not distributed():
        return rows
    longest = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    padding = rows.new_full((int(longest) - len(rows), *rows.shape[1:]), -1)
    padded = torch.cat([padding, rows])
    found = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(found, padded)
    return torch.stack(found, dim=1).flatten(0, 1)


def share(rows: Tensor) -> Tensor:
    """The rows of :func:`interleaved` that fall to this process, whatever the number of processes was."""
    own = rows[dist.get_rank() :: dist.get_world_size()] if distributed() else rows
    return own[(own != -1).flatten(1).any(1)] if len(own) else own
