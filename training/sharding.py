"""Fully sharded training (FSDP2): every process keeps a part of each weight. Knows no Lightning.

Each repeated block of a network is gathered for as long as it is computed; what is left, such as embeddings, heads,
codebooks and discriminators, is one more unit, which is gathered for a whole step. Buffers are whole on all processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ..lm.heads import CodeHead
from ..tokenizers.discriminator import Discriminator
from ..tokenizers.quantizers import Quantizer, VectorQuantizer, distributed

#: Networks whose parts are also read from outside of them, or that are differentiated twice: never cut into blocks.
_WHOLE = (Quantizer, CodeHead, Discriminator)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The units that are gathered one by one: members of every ``ModuleList`` of one kind, that have layers inside.

    The outermost lists count. A member that is never called, but looked into, is none; see also :data:`_WHOLE`.
    """
    found = dict.fromkeys(_blocks(module))
    return list(found)


def shard(module: nn.Module, mesh: DeviceMesh, called: Iterable[str], half: torch.dtype | None = None) -> None:
    """Cut the parameters of a network over the processes of a mesh, in place; those of the first process count.

    Args:
        module: with the same parameters, by name and shape, in all processes.
        mesh: of one dimension.
        called: methods of the module that compute with its parameters.
        half: type in which blocks are gathered and their gradients computed; gradients are summed in float32. The rest
            is gathered as it is.

    Raises:
        ValueError: a codebook that would be set within a step, which does not reach the parts.
    """
    for name, part in module.named_modules():
        if isinstance(part, VectorQuantizer) and part.by_gradient and not part.started:
            raise ValueError(
                f"a codebook that is learned by gradient cannot be started by k-means where it is sharded, got {name}; "
                "set its kmeans_init to false, its update to ema, or train with DDP"
            )
    _take_over(module, mesh.device_type)
    reduced = None if half is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=reduced, cast_forward_inputs=False)
    for block in blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)
    for name in called:
        register_fsdp_forward_method(module, name)


def sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` has been applied."""
    return isinstance(module, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of one that is not sharded. Gradients flow through."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; to be called on all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Generator[None]:
    """All weights in place on all processes, which may then call the network as often as each of them likes.

    Does nothing where nothing is sharded. It holds the whole network in memory, its blocks in ``half`` of
    :func:`shard`. Changes of parameters inside are lost.
    """
    gather(module)
    try:
        yield
    finally:
        release(module)


def gather(module: nn.Module) -> None:
    """Begin what :func:`gathered` does."""
    if not isinstance(module, FSDPModule):
        return
    module._get_fsdp_state()._lazy_init()  # the first network that is called would become the root
    with torch.inference_mode(False), torch.no_grad():  # these tensors stay for training
        for unit in _units(module):
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()


def release(module: nn.Module) -> None:
    """End what :func:`gathered` does."""
    for unit in _units(module):
        unit.reshard()
        unit.set_reshard_after_forward(id(unit) != id(module), recurse=False)


@contextmanager
def consolidated(module: nn.Module, *, keep: bool) -> Generator[None]:
    """Whole weights and all buffers on the CPU in place of the parts, to be saved; the parts come back afterwards.

    Does nothing where nothing is sharded. One tensor after the other is gathered; to be called on all processes.

    Args:
        module: of which nothing is computed inside.
        keep: whether this process gets the weights; others have parts throughout.
    """
    if not sharded(module):
        yield
        return
    for unit in _units(module):
        unit.reshard()
    full = _gathered_on_cpu(module.parameters(), keep)
    with _replaced(module, full) if keep else nullcontext():
        yield


@contextmanager
def _replaced(module: nn.Module, full: Mapping[nn.Parameter, nn.Parameter]) -> Generator[None]:
    """Other parameters in place of a network's own, and its buffers on the CPU."""
    parts = [(owner, name, p) for owner in module.modules() for name, p in owner._parameters.items() if p is not None]
    buffers = [(owner, name, b) for owner in module.modules() for name, b in owner._buffers.items() if b is not None]
    units = [(unit, type(unit)) for unit in _units(module)]
    try:
        for unit, kind in units:
            unit.__class__ = kind.__bases__[1]  # as it was: the other moves parts where a plain module moves weights
        for owner, name, parameter in parts:
            owner._parameters[name] = full[parameter]
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer.cpu()
        yield
    finally:
        for unit, kind in units:
            unit.__class__ = kind
        for owner, name, parameter in parts:
            owner._parameters[name] = parameter
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer


def _gathered_on_cpu(parameters: Iterable[nn.Parameter], keep: bool) -> dict[nn.Parameter, nn.Parameter]:
    found = dict[nn.Parameter, nn.Parameter]()
    for parameter in dict.fromkeys(parameters):
        full = whole(parameter.detach())
        if keep:
            found[parameter] = nn.Parameter(full.cpu(), parameter.requires_grad)
    return found


def _blocks(module: nn.Module) -> Generator[nn.Module]:
    if isinstance(module, _WHOLE):
        return
    if isinstance(module, nn.ModuleList) and _repeated(module):
        yield from module
        return
    for child in module.children():
        yield from _blocks(child)


def _repeated(members: nn.ModuleList) -> bool:
    kinds = {type(member) for member in members}
    if len(kinds) != 1 or issubclass(next(iter(kinds)), (*_WHOLE, nn.ModuleList)):
        return False
    called = next(iter(kinds)).forward is not nn.Module.forward
    return called and all(any(member.children()) and any(True for _ in member.parameters()) for member in members)


def _units(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@torch.no_grad()
def _take_over(module: nn.Module, device: str) -> None:
    """Give all processes the parameters and buffers of the first."""
    if not distributed():
        return
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_meta:
            continue
        sent = tensor.detach().to(device)
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)
