"""Numbers of all processes that train together. Knows no Lightning, and does nothing where there is one process."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather

from ..tokenizers.quantizers import distributed

Item = TypeVar("Item")


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


def token_shares(counts: Tensor) -> Tensor:
    """Factors that turn means of this process into terms whose average over processes is the mean over all.

    Processes hold different numbers of tokens, so that a mean of their means is another number. Gradients are averaged
    over processes: a loss that is multiplied by its factor has the gradient of the mean over all tokens. One reduction.

    Args:
        counts: ``[n]`` int64, of how many tokens each of n terms is the mean here.

    Returns:
        ``[n]`` float32; ones where there is one process.
    """
    if not distributed():
        return torch.ones_like(counts, dtype=torch.float32)
    total = counts.clone()
    dist.all_reduce(total)
    return counts * dist.get_world_size() / total.clamp_min(1)


def everywhere(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; gradients reach those of this process, from all losses.

    Args:
        rows: ``[B, ...]``, as many in every process.
    """
    return torch.cat(all_gather(rows.contiguous())) if distributed() else rows


def collected(items: list[Item]) -> list[Item]:
    """The items of all processes, one of each in turn: what was dealt out, in order. Tensors must be on the CPU."""
    if not distributed():
        return items
    found: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, items)
    longest = max(map(len, found))
    return [part[row] for row in range(longest) for part in found if row < len(part)]


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
