"""Codes with errors in them, so that a decoder learns to draw what a language model will get slightly wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..tokenizers.codes import Codes


@dataclass(frozen=True)
class CodeNoise:
    """Errors that a decoder is trained to draw over.

    The sampling errors of a language model are imitated by exchanging codes for others close to them, as in RobustTok
    (https://arxiv.org/abs/2503.08354); every picture draws the share of its codes that are exchanged, so that the
    decoder sees few errors and many.

    Args:
        rate: largest share of exchanged codes, in (0, 1]; each picture's is uniform below it.
        near: a code is exchanged for one of this many nearest others of its codebook.
        weight: of the pixel losses on the picture that is decoded from the erroneous codes.

    Raises:
        ValueError: a rate outside (0, 1], no neighbours, or a weight that is not above 0.
    """

    rate: float = 0.5
    near: int = 100
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or self.near < 1 or self.weight <= 0:
            raise ValueError(
                "code noise needs a rate in (0, 1], near >= 1 and a weight above 0, "
                f"got {self.rate}, {self.near} and {self.weight}; 0.5, 100 and 1 are the defaults"
            )


def perturbed(codes: Codes, vectors: Mapping[str, Tensor], noise: CodeNoise) -> Codes:
    """The codes with some of them exchanged; the draws are those of the CPU's random state, padding is kept.

    Args:
        codes: of a batch.
        vectors: of :meth:`VisualTokenizer.code_vectors`, ``[K, C]`` for every codebook.
        noise: how many, and how far.
    """
    ids, device = codes.ids.clone(), codes.ids.device
    share = noise.rate * torch.rand(len(ids), 1, 1)
    chosen = (torch.rand(ids.shape) < share).to(device) & codes.mask[..., None]
    for name, columns in codes.spec.slices().items():
        wrong = chosen[..., columns]
        ids[..., columns][wrong] = _neighbours(ids[..., columns][wrong], vectors[name], noise.near)
    return replace(codes, ids=ids)


@torch.no_grad()
def _neighbours(ids: Tensor, table: Tensor, near: int) -> Tensor:
    """For each of ``[M]`` ids one of the codes nearest to it, itself excluded unless it is the only one."""
    count = min(near, len(table) - 1)
    if not len(ids) or not count:
        return ids
    present, where = ids.unique(return_inverse=True)
    distances = torch.cdist(table[present].float(), table.float())
    distances[torch.arange(len(present), device=ids.device), present] = torch.inf
    nearest = distances.topk(count, largest=False).indices
    return nearest[where, torch.randint(count, (len(ids),)).to(ids.device)]
