"""Gradients of an optimizer step that is saved before it is complete. Knows no Lightning, which drops them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .processes import averaged
from .sharding import whole


def unfinished_gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients summed so far by the names of their parameters, on the CPU and averaged over processes.

    Averaged ones continue as well as each process's own: gradients are averaged when the step is complete. Sharded ones
    are averages already and are gathered, one after the other.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        return {}
    device = named[0][1].device
    present = averaged(torch.tensor([float(p.grad is not None) for _, p in named], device=device))
    return {
        name: _of_all(torch.zeros_like(p) if p.grad is None else p.grad).cpu().clone()
        for (name, p), found in zip(named, present.tolist(), strict=True)
        if found
    }


def restore_gradients(module: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Put them back where they were; sharded parameters take their parts."""
    for name, gradient in gradients.items():
        parameter = module.get_parameter(name)
        if isinstance(parameter, DTensor):
            mesh, moved = parameter.device_mesh, gradient.to(parameter.device, parameter.dtype)
            parameter.grad = distribute_tensor(moved, mesh, parameter.placements, src_data_rank=None)
        else:
            parameter.grad = gradient.to(parameter)


def _of_all(gradient: Tensor) -> Tensor:
    return whole(gradient) if isinstance(gradient, DTensor) else averaged(gradient)
