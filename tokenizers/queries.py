"""Tokenizers whose codes belong to learned queries and not to places: what SEED and Slot-MLLM share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, PreNormBlock, bottleneck
from .base import TrainingTerms, VisualTokenizer
from .codes import CodeLayout, Codes, CodeSpec, Kind
from .component import Component
from .convolutional import Decoder
from .qformer import QFormer
from .quantizers import Quantizer
from .vision import VisionTower


class GridReader(Component):
    """Vectors without places to a grid of features: learned cells read them by cross-attention, layer by layer.

    It stands where the papers hand their codes to a diffusion model, so that a tokenizer has pixels of its own.

    Args:
        dim: width of the vectors.
        out_dim: width of the features, what the pixel decoder reads.
        grid: cells along one side.
        layers: number of layers.
        heads: attention heads.
    """

    @register_to_config
    def __init__(self, dim: int, out_dim: int, grid: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.out_dim, self.grid = dim, out_dim, grid
        self.cells = nn.Parameter(0.02 * torch.randn(1, grid * grid, out_dim))
        self.layers = nn.ModuleList(_ReadingBlock(out_dim, heads, dim) for _ in range(layers))

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, M, dim]`` to ``[B, out_dim, grid, grid]``; ``mask`` ``[B, M]`` bool hides padding."""
        hidden = self.cells.expand(len(vectors), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, vectors, None if mask is None else mask[:, None])
        return hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class QueryTokenizer(VisualTokenizer):
    """An encoder's features read by a Q-Former whose outputs are quantized; the base of SEED and Slot-MLLM.

    The codes' vectors, widened again, give the Q-Former's outputs back (``states``, ``1 - cosine``), an image embedding
    where one is asked for (``distill.pooled``, mean squared error), and pixels.

    Args:
        encoder: vision tower; its last hidden states are read.
        qformer: reads features of the tower's width.
        quantizer: of the Q-Former's outputs, narrowed to its width by two layers with a tanh between.
        reader: vectors of the Q-Former's width to the decoder's features.
        decoder: features to pixels.
        image_dim: width of the image embedding, 0 for none (1024 for CLIP ViT-H).
        restoring: blocks that restore the Q-Former's outputs, and as many again before the image embedding.
        freeze_encoder: keep the tower as it is.

    Raises:
        ValueError: parts of widths or grids that do not fit one another.
    """

    kind: ClassVar[Kind]

    @register_to_config
    def __init__(
        self,
        encoder: VisionTower,
        qformer: QFormer,
        quantizer: Quantizer,
        reader: GridReader,
        decoder: Decoder,
        image_dim: int = 0,
        restoring: int = 1,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        agree(
            {
                "the Q-Former's memory_dim and the tower's width": (qformer.memory_dim, encoder.width),
                "the reader's dim and the Q-Former's": (reader.dim, qformer.dim),
                "the decoder's dim and the reader's out_dim": (decoder.dim, reader.out_dim),
                "the pixels of the decoder and of the tower": (reader.grid * decoder.stride, encoder.image_size),
            }
        )
        width = qformer.dim
        heads = max(1, width // 64)
        self.encoder, self.qformer, self.quantizer = encoder, qformer, quantizer
        self.reader, self.decoder = reader, decoder
        encoder.freeze_pooling()
        self.vision_norm = nn.LayerNorm(encoder.width)
        self.down, self.up = bottleneck(width, width, quantizer.dim), bottleneck(quantizer.dim, quantizer.dim, width)
        self.restore = nn.Sequential(*(PreNormBlock(width, heads) for _ in range(restoring)))
        self.image = ImageEmbedding(qformer.queries, width, restoring, heads, image_dim) if image_dim else None
        if freeze_encoder:
            encoder.requires_grad_(requires_grad=False)
        layout, size = CodeLayout(self.kind, (qformer.queries,)), (encoder.image_size, encoder.image_size)
        self.set_spec(CodeSpec(layout, quantizer.codebooks("code")), size, encoder.image_size)

    def encode(self, images: Tensor) -> Codes:
        """See :meth:`VisualTokenizer.encode`."""
        self.check_images(images)
        return Codes.full(self.quantizer(self.down(self._states(images))).ids, self.spec)

    def embed(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.embed`; C is the quantizer's width."""
        self.check_codes(codes)
        return self.quantizer.lookup(codes.ids)

    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`VisualTokenizer.decode`; nothing is drawn."""
        return self._pixels(self.up(self.embed(codes).to(self.dtype))).clamp(-1, 1)

    def image_embedding(self, codes: Codes) -> Tensor:
        """``[B, image_dim]``, what a diffusion model conditioned on image embeddings reads.

        Raises:
            ValueError: a tokenizer built without one.
        """
        if self.image is None:
            raise ValueError(f"{type(self).__name__} was built with image_dim 0; give the embedding's width")
        return self.image(self.up(self.embed(codes).to(self.dtype)))

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("code")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction, ``quantizer``, ``states`` and, beside a teacher, ``distill.pooled``.

        Args:
            images: ``[B, 3, H, W]``.
            targets: ``pooled`` ``[B, image_dim]`` of a frozen teacher, or nothing; other targets are not used.
        """
        self.check_images(images)
        states = self._states(images)
        quantized = self.quantizer(self.down(states))
        vectors = self.up(quantized.latents.to(self.dtype))
        restored = F.cosine_similarity(self.restore(vectors).float(), states.detach().float(), dim=-1)
        losses = {"quantizer": quantized.loss, "states": 1 - restored.mean()}
        if self.image is not None and "pooled" in targets:
            losses["distill.pooled"] = F.mse_loss(self.image(vectors).float(), targets["pooled"].float())
        return TrainingTerms(self._pixels(vectors), Codes.full(quantized.ids, self.spec), losses)

    def _states(self, images: Tensor) -> Tensor:
        tower = self.encoder
        features = tower.run(tower.stem(images.to(self.dtype)), 0, tower.depth)
        return self.qformer(self.vision_norm(features))

    def _pixels(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.reader(vectors))


class ImageEmbedding(nn.Module):
    """Codes to one image embedding, SEED's released way: blocks over the codes, each narrowed, all joined.

    Its training code has a second Q-Former with one query instead; the released weights hold this.

    Args:
        queries: Q, number of codes.
        dim: C, width of the codes as the Q-Former saw them.
        layers: number of blocks.
        heads: their attention heads.
        out_dim: width of the image embedding (1024 for CLIP ViT-H).
        hidden: width of the blocks' feed-forward layers.
        eps: of the norms.
    """

    def __init__(
        self,
        queries: int,
        dim: int,
        layers: int,
        heads: int,
        out_dim: int,
        hidden: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, queries, dim))
        self.blocks = nn.ModuleList(PreNormBlock(dim, heads, hidden, eps) for _ in range(layers))
        first, second, third = (nn.Linear(*widths, bias=False) for widths in ((dim, 256), (256, 128), (128, 32)))
        self.narrow = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.out = nn.Linear(queries * third.out_features, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, Q, C]`` to ``[B, out_dim]``."""
        hidden = tokens + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.narrow(hidden).flatten(1))


def agree(pairs: Mapping[str, tuple[int, int]]) -> None:
    """Raise ``ValueError`` for the first of the named pairs whose numbers differ."""
    for what, (first, second) in pairs.items():
        if first != second:
            raise ValueError(f"{what} must agree, got {first} and {second}; change either")


class _ReadingBlock(nn.Module):
    """Cross-attention to the vectors, self-attention among the cells, feed-forward layer; each after a norm."""

    def __init__(self, dim: int, heads: int, memory_dim: int) -> None:
        super().__init__()
        self.norm_read, self.norm_memory = nn.LayerNorm(dim), nn.LayerNorm(memory_dim)
        self.read, self.out = Attention(dim, heads, memory_dim), nn.Linear(dim, dim)
        self.among = PreNormBlock(dim, heads)

    def forward(self, cells: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        read = self.read(self.norm_read(cells), self.norm_memory(vectors), mask)
        return self.among(cells + self.out(read))
