"""UniTok: one code per chunk of channels, each from a codebook of its own, between attention projections."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .codes import Codebook, Codes
from .convolutional import Decoder, Encoder
from .learned import GradientQuantizer
from .projection import AttentionProjection
from .quantizers import Quantizer
from .vq import VQTokenizer


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


class UniTokTokenizer(VQTokenizer):
    """A grid of several codes per cell (UniTok, https://arxiv.org/abs/2502.20321).

    A plain tokenizer whose features are narrowed to the codes, and widened from them, by attention over the whole
    image. As published: a ViTamin-L encoder and its mirror at 256 pixels, 256 cells,
    ``MultiCodebookQuantizer(64, 4096, 8)``, 16 heads in both projections, and image features of width 768.

    Args:
        encoder: images to features.
        quantizer: features to codes.
        decoder: quantized features to pixels.
        image_size: side of the square images that ``spec`` describes, pixels.
        pooled_dim: width of the image features that :meth:`pooled` gives and that training compares with captions
            (768 as published, in the space of CLIP), 0 for none.
    """

    @register_to_config
    def __init__(
        self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder, image_size: int, pooled_dim: int = 0
    ) -> None:
        super().__init__(encoder, quantizer, decoder, image_size)
        self.narrow = AttentionProjection(encoder.dim, quantizer.dim)
        self.widen = AttentionProjection(quantizer.dim, decoder.dim)
        self.fc_norm = nn.LayerNorm(decoder.dim, eps=1e-6) if pooled_dim else None
        self.projection = nn.Linear(decoder.dim, pooled_dim) if pooled_dim else None

    def pooled(self, codes: Codes) -> Tensor | None:
        """See :meth:`VisualTokenizer.pooled`; of the mean over all cells, not brought to unit length."""
        self.check_codes(codes)
        return self._summary(self.widen(self.embed(codes).to(self.dtype)))

    def _summary(self, widened: Tensor) -> Tensor | None:
        if self.fc_norm is None or self.projection is None:
            return None
        return self.projection(self.fc_norm(widened.mean(1)))
