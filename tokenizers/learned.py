"""A codebook that learns by gradient, with the options that papers differ in and vector-quantize-pytorch lacks.

Letters: B batch, N positions, D codes per position, C width, K codebook size.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizers import Quantizer
from .search import entropies, nearest


class GradientQuantizer(Quantizer):
    """A table that learns by gradient (VQ-VAE, https://arxiv.org/abs/1711.00937).

    Defaults are those of LlamaGen (https://arxiv.org/abs/2406.06525) for the loss; its ``cosine`` table is 8 wide. The
    loss is ``codebook * mse(q, sg(z)) + commitment * mse(sg(q), z) + entropy * (sample - batch entropy)``. SEED's
    release (https://arxiv.org/abs/2310.01218) puts beta at the other term: ``codebook=0.25, commitment=1.0``.

    Args:
        dim: C.
        codebook_size: K.
        cosine: bring latents and rows to unit length before all else; the values are then unit vectors.
        commitment: weight of the term that pulls latents to codes.
        codebook: weight of the term that pulls codes to latents.
        entropy: weight of the entropy term: sure assignments, evenly used codes.
        temperature: of the entropy term's soft assignment by squared distance.
        epsilon: inside the logarithm of the mean assignment.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        codebook_size: int,
        cosine: bool = False,
        commitment: float = 0.25,
        codebook: float = 1.0,
        entropy: float = 0.0,
        temperature: float = 0.01,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dim, self.size, self.depth, self.cosine = dim, codebook_size, 1, cosine
        self.commitment, self.codebook = commitment, codebook
        self.entropy, self.temperature, self.epsilon = entropy, temperature, epsilon
        self.table = _table(codebook_size, dim, unit=cosine)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`."""
        rows = self._rows()
        inputs = self._prepared(latents).flatten(0, 1)
        ids = nearest(self._weighed(inputs), self._weighed(rows))
        values = rows[ids]
        loss = self.codebook * F.mse_loss(values, inputs.detach())
        loss = loss + self.commitment * F.mse_loss(inputs, values.detach())
        if self.entropy and self.training:
            measured = entropies(self._weighed(inputs), self._weighed(rows), self.temperature, epsilon=self.epsilon)
            loss = loss + self.entropy * (measured.sample - measured.batch)
        straight = straight_through(inputs, values)
        return straight.view(latents.shape), ids.view(*latents.shape[:2], 1), loss

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        with torch.autocast(ids.device.type, enabled=False):
            return self._rows()[ids[..., 0]]

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`."""
        return {name: self._rows()}

    def _rows(self) -> Tensor:
        """The table ``[K, C]`` as codes are read from it."""
        return self._prepared(self.table)

    def _prepared(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def _weighed(self, vectors: Tensor) -> Tensor:
        """Vectors whose plain distance is the one that codes are chosen by."""
        return vectors


def straight_through(inputs: Tensor, values: Tensor) -> Tensor:
    """Exactly ``values``, with the gradient of ``inputs``."""
    return values.detach() + (inputs - inputs.detach())


def _table(rows: int, dim: int, *, unit: bool) -> nn.Parameter:
    drawn = torch.empty(rows, dim).uniform_(-1 / rows, 1 / rows)
    return nn.Parameter(F.normalize(drawn, dim=-1) if unit else drawn)
