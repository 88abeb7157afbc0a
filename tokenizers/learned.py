"""Codebooks that learn by gradient, in the forms the papers use and vector-quantize-pytorch lacks.

Letters: B batch, N positions, D codes per position, C width, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .codes import Codebook
from .quantizers import Quantizer
from .search import Comparison, entropies, nearest, soft_index


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


class SharedMappingQuantizer(GradientQuantizer):
    """Two tables under one id (TokenFlow, https://arxiv.org/abs/2412.03069).

    The first ``semantic_dim`` channels are compared with one table, the others with the second, each at unit length,
    and ``d_semantic + distance_weight * d_pixel`` decides. Losses are means over all channels, as released; its weight
    is 1.

    Args:
        semantic_dim: width of the first part (32 in the release).
        pixel_dim: width of the second (8).
        codebook_size: K of both tables (32768).
        distance_weight: >= 0, of the pixel part; 0 leaves the choice to the semantic table, infinity to the pixel one.
        commitment, codebook, entropy, temperature, epsilon: as in :class:`GradientQuantizer`.

    Raises:
        ValueError: a negative weight.
    """

    @register_to_config
    def __init__(
        self,
        semantic_dim: int,
        pixel_dim: int,
        codebook_size: int,
        distance_weight: float = 1.0,
        commitment: float = 0.25,
        codebook: float = 1.0,
        entropy: float = 0.0,
        temperature: float = 0.01,
        epsilon: float = 1e-5,
    ) -> None:
        if not distance_weight >= 0:
            raise ValueError(f"distance_weight must be >= 0, got {distance_weight}; 1 is TokenFlow's")
        dim = semantic_dim + pixel_dim
        super().__init__(dim, codebook_size, True, commitment, codebook, entropy, temperature, epsilon)
        self.widths = (semantic_dim, pixel_dim)
        self.weights = (0.0, 1.0) if math.isinf(distance_weight) else (1.0, math.sqrt(distance_weight))
        with torch.no_grad():
            self.table.copy_(self._prepared(self.table))

    def _prepared(self, vectors: Tensor) -> Tensor:
        return torch.cat(unit_parts(vectors, self.widths), dim=-1)

    def _weighed(self, vectors: Tensor) -> Tensor:
        semantic, pixel = self.weights
        if semantic == pixel:
            return vectors
        parts = vectors.split(self.widths, dim=-1)
        return torch.cat([semantic * parts[0], pixel * parts[1]], dim=-1)


class MultiCodebookQuantizer(Quantizer):
    """One table per chunk of channels (UniTok, https://arxiv.org/abs/2502.20321); losses are means over the chunks.

    Args:
        dim: C, a multiple of ``chunks``.
        codebook_size: K of every table.
        chunks: D, number of chunks and tables.
        cosine, commitment, codebook, entropy, temperature, epsilon: of every table, as in :class:`GradientQuantizer`.

    Raises:
        ValueError: a width that the chunks do not divide.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 4096,
        chunks: int = 8,
        cosine: bool = True,
        commitment: float = 0.25,
        codebook: float = 1.0,
        entropy: float = 0.0,
        temperature: float = 0.01,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__()
        if chunks < 1 or dim % chunks:
            raise ValueError(f"dim must be a multiple of chunks, got dim {dim} and {chunks} chunks; change either")
        self.dim, self.size, self.depth = dim, codebook_size, chunks
        options = (cosine, commitment, codebook, entropy, temperature, epsilon)
        self.tables = nn.ModuleList(GradientQuantizer(dim // chunks, codebook_size, *options) for _ in range(chunks))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`."""
        parts = [
            table.quantize(part) for table, part in zip(self._tables(), latents.chunk(self.depth, -1), strict=True)
        ]
        values, ids, losses = zip(*parts, strict=True)
        return torch.cat(values, dim=-1), torch.cat(ids, dim=-1), torch.stack(losses).mean()

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        columns = zip(self._tables(), ids.split(1, dim=-1), strict=True)
        return torch.cat([table.lookup(column) for table, column in columns], dim=-1)

    def codebooks(self, name: str) -> tuple[Codebook, ...]:
        """Every chunk has a vocabulary of its own, ``name.chunk``."""
        return tuple(Codebook(f"{name}.{chunk}", self.size) for chunk in range(self.depth))

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`; C is the width of a chunk."""
        pairs = zip(self.codebooks(name), self._tables(), strict=True)
        return {found: rows for book, table in pairs for found, rows in table.vectors(book.name).items()}

    def _tables(self) -> list[GradientQuantizer]:
        return [table for table in self.tables if isinstance(table, GradientQuantizer)]


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

    _compared: Comparison = "dot"

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


def straight_through(inputs: Tensor, values: Tensor) -> Tensor:
    """Exactly ``values``, with the gradient of ``inputs``."""
    return values.detach() + (inputs - inputs.detach())


def unit_parts(vectors: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """``[..., C]`` cut into parts of these widths, each brought to unit length."""
    return [F.normalize(part, dim=-1) for part in vectors.split(list(widths), dim=-1)]


def _table(rows: int, dim: int, *, unit: bool) -> nn.Parameter:
    drawn = torch.empty(rows, dim).uniform_(-1 / rows, 1 / rows)
    return nn.Parameter(F.normalize(drawn, dim=-1) if unit else drawn)
