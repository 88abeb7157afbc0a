"""Product quantization: independent codes for independent properties of one feature."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .codes import Codebook
from .quantizers import Quantizer


class ProductQuantizer(Quantizer):
    """Channels cut into parts, each coded by a quantizer of its own (https://doi.org/10.1109/TPAMI.2010.57).

    Where residual codes refine one another, these stand side by side: a table for what something is coloured like and
    a table for how it is bounded need not hold every edge in every colour. UniTok's quantizer is the case of equal
    parts that learn by gradient.

    Args:
        parts: quantizers of the parts, in the order of the channels; ``dim`` is the sum of theirs.

    Raises:
        ValueError: no parts.
    """

    @register_to_config
    def __init__(self, parts: list[Quantizer]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a product needs at least one part, got none; name the quantizers of the parts")
        self.parts = nn.ModuleList(parts)
        self.dim, self.depth = sum(part.dim for part in parts), sum(part.depth for part in parts)
        self.size = max(part.size for part in parts)
        self.idempotent, self.revives = all(p.idempotent for p in parts), any(p.revives for p in parts)
        self.chunked = all(part.chunked for part in parts)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Quantizer.quantize`; the loss is the mean of the parts'."""
        parts = self._parts()
        pieces = zip(parts, latents.split([part.dim for part in parts], dim=-1), strict=True)
        values, ids, losses = zip(*(part.quantize(piece) for part, piece in pieces), strict=True)
        return torch.cat(values, dim=-1), torch.cat(ids, dim=-1), torch.stack(losses).mean()

    def lookup(self, ids: Tensor) -> Tensor:
        """See :meth:`Quantizer.lookup`."""
        parts = self._parts()
        columns = ids.split([part.depth for part in parts], dim=-1)
        return torch.cat([part.lookup(column) for part, column in zip(parts, columns, strict=True)], dim=-1)

    def codebooks(self, name: str) -> tuple[Codebook, ...]:
        """Those of part ``i`` under ``name.i``."""
        return tuple(book for at, part in enumerate(self._parts()) for book in part.codebooks(f"{name}.{at}"))

    def vectors(self, name: str) -> dict[str, Tensor]:
        """See :meth:`Quantizer.vectors`; C is the width of a part."""
        pairs = [part.vectors(f"{name}.{at}") for at, part in enumerate(self._parts())]
        return {book: rows for found in pairs for book, rows in found.items()}

    def _parts(self) -> list[Quantizer]:
        return [part for part in self.parts if isinstance(part, Quantizer)]
