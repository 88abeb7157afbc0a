"""Proof that a quantizer, ours or a user's own, keeps what training and storage rely on."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .quantizers import Quantized, Quantizer
from .search import BUDGET

Check = Callable[[Quantizer, "Latents"], str | None]


class Latents:
    """Random latents of the shape that a quantizer takes, the same for a seed.

    Args:
        shape: ``(B, N, C)``.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __call__(self, seed: int, spread: float = 1.0) -> Tensor:
        """``[B, N, C]`` float32, normal."""
        return spread * torch.randn(self.shape, generator=torch.Generator().manual_seed(seed + 1))


def check_quantizer(*quantizers: Quantizer, positions: int = 16, processes: bool = True) -> None:
    """Check quantizers; nothing of them is changed.

    Each has a gradient to its input and, where the codebook is a parameter, to the codebook; its values are those of
    its ids; quantizing a code's own value gives the code again where values are codes; evaluation changes nothing;
    ``float32`` inside either autocast; saved and loaded weights give the same ids bit by bit; a large batch never asks
    for a number for every pair of vector and code at once, in training where :attr:`Quantizer.chunked` says so; codes
    that died come back and stay; and two processes that see different data end with one codebook, also when
    DistributedDataParallel does not broadcast buffers.

    Args:
        quantizers: of any kind, their weights as they are.
        positions: N of the latents that it is tried on, such as the area of the finest grid.
        processes: also train them on two processes (gloo); a class defined in ``__main__`` cannot be.

    Raises:
        ValueError: what the first that fails does not keep, all of it in one sentence.
    """
    latents = [Latents((4, positions, quantizer.dim)) for quantizer in quantizers]
    apart = _processes(quantizers, latents) if processes else [[] for _ in quantizers]
    for quantizer, given, failed in zip(quantizers, latents, apart, strict=True):
        failed = [said for check in CHECKS if (said := check(copy.deepcopy(quantizer), given)) is not None] + failed
        if failed:
            raise ValueError(f"{type(quantizer).__name__} must {'; '.join(failed)}")


def _gradients(quantizer: Quantizer, latents: Latents) -> str | None:
    inputs = latents(0).requires_grad_()
    quantizer.train()(latents(1))  # a codebook may start from its first batch
    quantized = quantizer(inputs)
    (quantized.latents.square().sum() + quantized.loss).backward()
    if inputs.grad is None or not bool(inputs.grad.any()):
        return "let gradients reach its input, got none"
    idle = [name for name, weight in quantizer.named_parameters() if weight.requires_grad and weight.grad is None]
    return f"let gradients reach its parameters, got none at {', '.join(idle)}" if idle else None


def _values(quantizer: Quantizer, latents: Latents) -> str | None:
    quantizer.eval()
    quantized = quantizer(latents(0))
    found = quantizer.lookup(quantized.ids)
    if not torch.equal(found, quantized.latents):
        apart = float((found - quantized.latents).detach().abs().max())
        return f"look up the values that it quantizes to, got values {apart:.1e} apart"
    return None


def _again(quantizer: Quantizer, latents: Latents) -> str | None:
    if not quantizer.idempotent or quantizer.depth > 1:
        return None
    quantized = quantizer.eval()(latents(0))
    again = quantizer(quantized.latents.detach()).ids
    same = float((again == quantized.ids).float().mean())
    return None if same == 1 else f"give a code's value that code again, got the same for {same:.1%}"


def _evaluation(quantizer: Quantizer, latents: Latents) -> str | None:
    before = _state(quantizer.eval())
    quantizer(latents(0))
    return None if _equal(before, _state(quantizer)) else "change nothing in evaluation, got another state"


def _autocast(quantizer: Quantizer, latents: Latents) -> str | None:
    quantizer.train()(latents(0))
    plain = _drawn_alike(quantizer, latents(1))
    for dtype in (torch.bfloat16, torch.float16):
        inputs = latents(1).requires_grad_()
        with torch.autocast("cpu", dtype):
            cast = _drawn_alike(quantizer, inputs)
        if cast.latents.dtype != torch.float32 or cast.loss.dtype != torch.float32:
            return f"compute in float32 inside autocast, got {cast.latents.dtype} under {dtype}"
        if not torch.equal(cast.ids, plain.ids) or not torch.equal(cast.loss, plain.loss):
            return f"find the same ids and loss inside autocast, got others under {dtype}"
        (cast.latents.sum() + cast.loss).backward()
        if inputs.grad is None or not bool(inputs.grad.isfinite().all()):
            return f"pass finite gradients back inside autocast, got none under {dtype}"
    return None


def _drawn_alike(quantizer: Quantizer, inputs: Tensor) -> Quantized:
    """What a copy does; codes that restart may move the table between depths, at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return copy.deepcopy(quantizer)(inputs)


def _saving(quantizer: Quantizer, latents: Latents) -> str | None:
    quantizer.train()(latents(0))
    stored = save_tensors({name: value.contiguous() for name, value in quantizer.state_dict().items()})
    other = copy.deepcopy(quantizer)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    other.load_state_dict(load_tensors(stored))
    first, second = quantizer.eval()(latents(1)), other.eval()(latents(1))
    same = torch.equal(first.ids, second.ids) and torch.equal(first.latents, second.latents)
    return None if same else "give the same ids after saving and loading, got others"


class _Largest(TorchDispatchMode):
    """Sees the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and not leaf._is_view()]
        self.elements = max([self.elements, *made])
        return result


def _memory(quantizer: Quantizer, latents: Latents) -> str | None:
    width = latents.shape[-1] * quantizer.depth
    if quantizer.size <= 4 * width:  # a vector is as large as its row of the comparison
        return None
    positions = latents.shape[1]
    count = -(-4 * BUDGET["cpu"] // quantizer.size // positions) * positions
    large = Latents((count // positions, positions, latents.shape[-1]))(0)
    quantizer.train()(latents(0))
    for training in (False, True) if quantizer.chunked else (False,):
        quantizer.train(training)
        with _Largest() as largest:
            inputs = large.clone().requires_grad_()
            quantized = quantizer(inputs)
            (quantized.latents.sum() + quantized.loss).backward()
        if largest.elements >= count * quantizer.size:
            where = "training" if training else "evaluation"
            return (
                f"compare {count} vectors with {quantizer.size} codes in parts, got a tensor of {largest.elements} "
                f"numbers in {where}"
            )
    return None


def _revival(quantizer: Quantizer, latents: Latents) -> str | None:
    if not quantizer.revives:
        return None
    quantizer.train()
    for step in range(8):  # the codebook settles where it will not be needed
        quantizer(latents(step, 0.1) + 50)
    wanted, drawn = max(2, min(quantizer.size, latents.shape[0] * latents.shape[1]) // 4), 0
    for step in range(_PATIENCE):
        quantizer(latents(step))
        drawn = len(quantizer.eval()(latents(-1)).ids[..., 0].unique())
        if drawn >= wanted:
            return None
        quantizer.train()
    return f"bring dead codes back within {_PATIENCE} steps, got {drawn} of {wanted} in use"


_PATIENCE = 400  # steps: a decay of 0.99 takes 230 to bring a count of 1 below 0.1

#: What is checked in one process: each gives what the quantizer must do and does not.
CHECKS: tuple[Check, ...] = (_gradients, _values, _again, _evaluation, _autocast, _saving, _memory, _revival)


class _Trained(nn.Module):
    """A trainable layer before the quantizer, so that DistributedDataParallel has gradients to average."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.linear, self.quantizer = nn.Linear(quantizer.dim, quantizer.dim), quantizer

    def forward(self, latents: Tensor) -> Tensor:
        quantized = self.quantizer(self.linear(latents))
        return quantized.loss + (quantized.latents - latents).square().mean()


def _processes(quantizers: Sequence[Quantizer], latents: Sequence[Latents]) -> list[list[str]]:
    """What each does wrong on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        start = pickle.dumps((list(quantizers), list(latents)))  # tensors by themselves would be shared, not copied
        mp.start_processes(_train, (folder, start), nprocs=2, start_method="spawn")
        ends = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    failed = list[list[str]]()
    for first, second in zip(*ends, strict=True):
        failed.append([])
        for buffers in first:
            apart = [name for name, value in first[buffers].items() if not torch.equal(value, second[buffers][name])]
            if apart:
                failed[-1].append(f"end with one state on two processes {buffers}, got two of {', '.join(apart)}")
    return failed


def _train(rank: int, folder: str, start: bytes) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ends = [
        {
            "that broadcast buffers": _ended(quantizer, latents, rank, broadcast=True),
            "that do not broadcast buffers": _ended(quantizer, latents, rank, broadcast=False),
        }
        for quantizer, latents in zip(*pickle.loads(start), strict=True)
    ]
    torch.save(ends, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _ended(quantizer: Quantizer, latents: Latents, rank: int, *, broadcast: bool) -> dict[str, Tensor]:
    torch.manual_seed(rank)  # processes draw differently
    trained = _Trained(copy.deepcopy(quantizer)).train()
    model = DistributedDataParallel(trained, broadcast_buffers=broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        model(latents(2 * step + rank, 3.0) + rank).backward()
        optimizer.step()
    return _state(trained.quantizer)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
