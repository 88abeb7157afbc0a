"""IBQ: a large codebook of which every row learns at every step."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizers import Quantizer
from .search import Comparison, entropies, nearest, soft_index


class IndexBackpropagationQuantizer(Quantizer):
    """Codes chosen by dot product, with a gradient to every row (IBQ, https://arxiv.org/abs/2412.02692; used by ETT,
    https://arxiv.org/abs/2505.10562).

    The loss is ``mse(q, z) + mse(sg(h), z) + commitment * mse(h, sg(z))``, where q passes its gradient through the soft
    index and h is the plain row, plus ``entropy * (sample - batch entropy)``.

    Args:
        dim: C (256 in the release).
        codebook_size: K (16384 to 262144).
        commitment: beta, at the term that pulls codes to latents, as released.
        entropy: weight of the entropy term.
        temperature: of the entropy term's soft assignment by dot product.
    """

    idempotent = False  # a longer row may have the larger dot product
    _compared: ClassVar[Comparison] = "dot"

    @register_to_config
    def __init__(
        self, dim: int, codebook_size: int, commitment: float = 0.25, entropy: float = 0.05, temperature: float = 0.01
    ) -> None:
        super().__init__()
        self.dim, self.size, self.depth = dim, codebook_size, 1
        self.commitment, self.entropy, self.temperature = commitment, entropy, temperature
        self.table = nn.Parameter(torch.randn(codebook_size, dim))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`; the straight-through value's gradient also reaches every row."""
        inputs = latents.flatten(0, 1)
        ids = nearest(inputs, self.table, self._compared)
        values, rows = soft_index(inputs, self.table, ids), self.table[ids]
        loss = F.mse_loss(values, inputs) + F.mse_loss(inputs, rows.detach())
        loss = loss + self.commitment * F.mse_loss(rows, inputs.detach())
        if self.entropy and self.training:
            measured = entropies(inputs, self.table, self.temperature, self._compared)
            loss = loss + self.entropy * (measured.sample - measured.batch)
        return values.view(latents.shape), ids.view(*latents.shape[:2], 1), loss

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        return F.embedding(ids[..., 0], self.table)

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`."""
        return {name: self.table}
