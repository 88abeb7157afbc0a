"""Vectors to ids and back: the plain quantizers of vector-quantize-pytorch behind one result type.

Every quantizer keeps its weights and computes in float32, whatever the autocast and the precision of the tokenizer
around it: a rounded codebook would change what the ids mean. Letters: B batch, N positions, D residual depth, C width.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
import vector_quantize_pytorch as library
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import batched_sample_vectors, noop, sample_vectors_distributed

from .codes import Codebook
from .component import Component
from .search import blocks


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns."""

    latents: Tensor  #: [B, N, C] float32, the value of the codes; in training, the input's gradient (straight-through)
    ids: Tensor  #: [B, N, D] int64 in [0, K)
    loss: Tensor  #: scalar, the quantizer's own loss, already weighted
    usage: Tensor  #: scalar in (0, 1], fraction of the vocabulary seen in this batch


class Quantizer(Component):
    """Base of all quantizers.

    Args of every subclass include ``dim`` (C). A subclass sets ``dim``, ``size`` (K) and ``depth`` (D) and implements
    :meth:`quantize` and :meth:`lookup`; precision and damaged input are handled here.
    """

    dim: int
    size: int
    depth: int
    idempotent: bool = True  #: whether a code's own value is always coded by that code
    revives: bool = False  #: whether codes that are hardly drawn restart from current latents
    chunked: bool = (
        True  #: whether training, as evaluation always, never holds a number for every pair of vector and code
    )

    @abstractmethod
    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Straight-through values ``[B, N, C]``, ids ``[B, N, D]`` and the weighted loss of float32 ``[B, N, C]``."""

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """Values ``[B, N, C]`` float32 of ids ``[B, N, D]``; differentiable in codebooks that are parameters."""

    @abstractmethod
    def vectors(self, name: str) -> dict[str, Tensor]:
        """What each code stands for: ``[K, C]`` float32 for each of :meth:`codebooks`, by name."""

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize ``[B, N, C]`` latents of any float dtype.

        Raises:
            ValueError: another width than ``dim``.
            FloatingPointError: NaN or infinite latents while training, in any process of the group, before they can
                enter a moving average.
        """
        if latents.ndim != 3 or latents.shape[-1] != self.dim:
            raise ValueError(f"latents must be [B, N, {self.dim}], got {list(latents.shape)}")
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            if self.training and not _finite_everywhere(latents):
                raise FloatingPointError("latents must be finite to be quantized, got NaN or infinity; skip this step")
            values, ids, loss = self.quantize(latents)
        usage = torch.bincount(ids.flatten(), minlength=self.size).count_nonzero() / self.size
        return Quantized(values, ids, loss, usage)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow moves between devices, not casts such as ``.bfloat16()``."""
        return super()._apply(lambda tensor: _uncast(tensor, fn(tensor)), recurse)

    def codebooks(self, name: str) -> tuple[Codebook, ...]:
        """The entries of this quantizer in a :class:`~smalti.tokenizers.codes.CodeSpec`: one for all depths."""
        return (Codebook(name, self.size, self.depth),)


class VectorQuantizer(Quantizer):
    """Vector quantization (https://arxiv.org/abs/1711.00937); residual with a depth above one
    (https://arxiv.org/abs/2203.01941).

    The loss is ``commitment * mse(z, sg(q))`` averaged over the partial sums of the residual codes, plus
    ``mse(sg(z), q)`` where the codebook learns by gradient. In training the library holds N x K numbers several times
    over; for large tables train :class:`~smalti.tokenizers.learned.GradientQuantizer` or
    :class:`~smalti.tokenizers.averaged.AveragedQuantizer`, which do not.

    Args:
        dim: C, width of the latents.
        codebook_size: K.
        depth: D, residual codes per position.
        codebook_dim: width in which codes are compared; latents are projected to it and back when it differs.
        shared: one table for all depths; its averages take in one depth after the other, its codes move once per step.
        update: ``ema`` (moving averages, dead codes revived) or ``gradient``.
        decay: of the moving averages, in [0, 1).
        commitment: weight of the commitment term.
        cosine: compare on the unit sphere; for a depth of one.
        revive_below: codes whose moving-average count per batch falls below this restart from current latents.
        kmeans_init: start the table from k-means over the first training batch; until then it is random.

    Raises:
        ValueError: ``cosine`` with a depth above one or with a codebook that learns by gradient.
    """

    chunked = False

    @register_to_config
    def __init__(
        self,
        dim: int,
        codebook_size: int,
        depth: int = 1,
        codebook_dim: int | None = None,
        shared: bool = False,
        update: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        commitment: float = 0.25,
        cosine: bool = False,
        revive_below: float = 1.0,
        kmeans_init: bool = True,
    ) -> None:
        super().__init__()
        if cosine and depth > 1:
            raise ValueError(f"cosine comparison needs depth 1, got depth {depth}: residuals have no unit length")
        if cosine and update == "gradient":
            raise ValueError("cosine comparison needs update='ema' in vector-quantize-pytorch, got update='gradient'")
        self.dim, self.size, self.depth, self.commitment = dim, codebook_size, depth, commitment
        self.idempotent = codebook_dim in (None, dim)
        self.revives = update == "ema" and revive_below > 0
        self.by_gradient, self.one_table = update == "gradient", shared or depth == 1
        self.table = library.ResidualVQ(
            dim=dim,
            codebook_size=codebook_size,
            num_quantizers=depth,
            codebook_dim=codebook_dim,
            shared_codebook=shared and depth > 1,
            decay=decay,
            commitment_weight=1.0,
            use_cosine_sim=cosine,
            threshold_ema_dead_code=0 if self.by_gradient else revive_below,
            kmeans_init=False,  # here, in training only: the library would also start from a batch it evaluates
            learnable_codebook=self.by_gradient,
            ema_update=not self.by_gradient,
            rotation_trick=False,
        )
        self.started: Tensor
        self.register_buffer("started", torch.tensor(not kmeans_init))
        if shared and depth > 1:
            self.register_state_dict_post_hook(_drop_aliases)
            self.register_load_state_dict_pre_hook(_restore_aliases)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`."""
        if self.training:
            self._prepare_update()
        values, ids, per_depth = self.table(latents) if self.training else self._in_blocks(latents)
        if self.training and not self.by_gradient:  # the table has already moved away from the codes just drawn
            return values, ids, self.commitment * per_depth.mean()
        partial = self._codes(ids).cumsum(0)
        target = self._compared(latents).expand_as(partial)
        loss = self.commitment * F.mse_loss(target, partial.detach())
        return values, ids, loss + F.mse_loss(partial, target.detach()) if self.by_gradient else loss

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        with torch.autocast(ids.device.type, enabled=False):
            return self.table.project_out(self._codes(ids).sum(0))

    def _in_blocks(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the library says in evaluation, where no vector depends on another, of a few vectors at a time."""
        flat = latents.flatten(0, 1)
        parts = [self.table(flat[None, rows]) for rows in blocks(len(flat), self.size, flat.device)]
        values, ids, losses = zip(*parts, strict=True)
        shape = latents.shape[:2]
        return torch.cat(values, 1).unflatten(1, shape)[0], torch.cat(ids, 1).unflatten(1, shape)[0], losses[0]

    def _codes(self, ids: Tensor) -> Tensor:
        """Codes ``[D, B, N, codebook_dim]`` of each depth."""
        pairs = zip(ids.unbind(-1), self._books(), strict=True)
        return torch.stack([F.embedding(column, book.embed[0]) for column, book in pairs])

    def codebooks(self, name: str) -> tuple[Codebook, ...]:
        """One entry for a shared table; a depth with a table of its own has a vocabulary of its own, ``name.depth``."""
        if self.one_table:
            return super().codebooks(name)
        return tuple(Codebook(f"{name}.{depth}", self.size) for depth in range(self.depth))

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`."""
        with torch.autocast(self.started.device.type, enabled=False):
            tables = [self.table.project_out(book.embed[0]) for book in self._books()]
        return {book.name: table for book, table in zip(self.codebooks(name), tables, strict=False)}

    def _compared(self, latents: Tensor) -> Tensor:
        """The latents as the table sees them."""
        return self._books()[0].transform_input(self.table.project_in(latents))

    def _prepare_update(self) -> None:
        """Start the table from the coming batch if it is the first, and from the batches of all processes.

        The library decides at construction whether to share statistics; a process group usually appears later.
        """
        together = distributed()
        for book in self._books():
            if not self.started:
                book.initted.fill_(value=False)
            book.use_ddp = together
            book.all_reduce_fn = book.kmeans_all_reduce_fn = dist.all_reduce if together else noop
            book.sample_fn = sample_vectors_distributed if together else batched_sample_vectors
            book.replace_sample_fn = book.sample_fn
        self.started.fill_(value=True)

    def _books(self) -> list[Any]:
        return [layer._codebook for layer in self.table.layers]


class FiniteScalarQuantizer(Quantizer):
    """Finite scalar quantization (https://arxiv.org/abs/2309.15505): each channel is rounded to a fixed grid.

    Args:
        dim: C, width of the latents, projected to ``len(levels)`` channels and back.
        levels: steps of each channel; their product is the vocabulary size K.
    """

    idempotent = False  # latents are bounded before they are rounded, and codes projected back

    @register_to_config
    def __init__(self, dim: int, levels: list[int]) -> None:
        super().__init__()
        self.table = library.FSQ(levels=list(levels), dim=dim)
        self.dim, self.size, self.depth = dim, int(self.table.codebook_size), 1

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`; there is no loss."""
        values, ids = self.table(latents)
        return values, ids.long()[..., None], latents.new_zeros(())

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        with torch.autocast(ids.device.type, enabled=False):
            return self.table.indices_to_codes(ids[..., 0])

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`."""
        device = next(self.parameters()).device
        return {name: self.lookup(torch.arange(self.size, device=device)[None, :, None])[0]}


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def of_first(number: int, device: torch.device) -> int:
    """The number that the first process has; to be called on all of them.

    Args:
        number: of this process.
        device: of tensors that processes exchange.
    """
    if not distributed():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, src=0)
    return int(shared)


def _finite_everywhere(latents: Tensor) -> bool:
    """One answer for the whole process group: a single process that stops would leave the others waiting."""
    finite = latents.isfinite().all().int()
    if distributed():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite)


def _uncast(before: Tensor, after: Tensor) -> Tensor:
    return after if after.dtype == before.dtype else before.to(after.device)


def _drop_aliases(module: torch.nn.Module, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """A shared table is one tensor: save it under its first depth only."""
    for key in [key for key in state if _ALIAS.match(key.removeprefix(prefix))]:
        del state[key]


def _restore_aliases(module: torch.nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Name a shared table once per depth again, as ``load_state_dict(strict=True)`` expects."""
    assert isinstance(module, VectorQuantizer)
    first = f"{prefix}table.layers.0._codebook."
    for key in [key for key in state if key.startswith(first)]:
        for depth in range(1, module.depth):
            state[f"{prefix}table.layers.{depth}._codebook.{key.removeprefix(first)}"] = state[key]


_ALIAS = re.compile(r"table\.layers\.[1-9]\d*\._codebook\.")
