"""Tokenizers whose codes belong to learned queries and not to places: what SEED and Slot-MLLM share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import PreNormBlock, bottleneck
from .base import TrainingTerms, VisualTokenizer
from .codes import CodeLayout, Codes, CodeSpec, Kind
from .convolutional import Decoder
from .embeddings import ImageEmbedding, Places
from .features import GridReader
from .qformer import QFormer
from .quantizers import Quantizer
from .towers import Tower


class QueryTokenizer(VisualTokenizer):
    """An encoder's features read by a Q-Former whose outputs are quantized; the base of SEED and Slot-MLLM.

    The codes' vectors, widened again, give the Q-Former's outputs back (``states``, ``1 - cosine``), an image embedding
    where one is asked for (``distill.pooled``, mean squared error), and pixels. The releases have no pixel decoder:
    they draw with a diffusion model from that embedding, and so must what is built without ``reader`` and ``decoder``.

    Args:
        encoder: vision tower; its last hidden states are read, those of a class token too.
        qformer: reads features of the tower's width.
        quantizer: of the Q-Former's outputs, narrowed to its width by two layers with a tanh between.
        reader: vectors of the Q-Former's width to the decoder's features; none without a decoder.
        decoder: features to pixels; none by default.
        image_dim: width of the image embedding, 0 for none (1024 for CLIP ViT-H).
        restoring: blocks that restore the Q-Former's outputs, and as many again before the image embedding.
        freeze_encoder: keep the tower as it is.
        heads: attention heads of those blocks; one per 64 channels by default.
        placed: learned positions are added before the restoring blocks, as released.
        patches_only: the Q-Former reads the tower's patches after its final norm, normed again and widened to its
            ``memory_dim`` by two layers with a ReLU between, as in Slot-MLLM.
        narrowed: the layers around the quantizer; without them its width must be the Q-Former's (Slot-MLLM).
        from_restored: the image embedding is made from the restored vectors (Slot-MLLM), not beside them (SEED).
        token_dim: width of an embedding per code beside the image embedding, 0 for none (1024 in Slot-MLLM).

    Raises:
        ValueError: parts of widths or grids that do not fit one another, or a reader without a decoder.
    """

    kind: ClassVar[Kind]

    @register_to_config
    def __init__(
        self,
        encoder: Tower,
        qformer: QFormer,
        quantizer: Quantizer,
        reader: GridReader | None = None,
        decoder: Decoder | None = None,
        image_dim: int = 0,
        restoring: int = 1,
        freeze_encoder: bool = False,
        heads: int | None = None,
        placed: bool = False,
        patches_only: bool = False,
        narrowed: bool = True,
        from_restored: bool = False,
        token_dim: int = 0,
    ) -> None:
        super().__init__()
        width, inner = qformer.dim, quantizer.dim
        if not patches_only:
            agree({"the Q-Former's memory_dim and the tower's width": (qformer.memory_dim, encoder.width)})
            encoder.freeze_pooling()
        if not narrowed:
            agree({"the quantizer's dim and the Q-Former's": (inner, width)})
        _agree_on_pixels(encoder, width, reader, decoder)
        heads = heads or max(1, width // 64)
        self.encoder, self.qformer, self.quantizer = encoder, qformer, quantizer
        self.reader, self.decoder, self.from_restored = reader, decoder, from_restored
        self.vision_norm = nn.LayerNorm(encoder.width)
        self.memory = _widening(encoder.width, qformer.memory_dim) if patches_only else None
        self.down = bottleneck(width, width, inner) if narrowed else nn.Identity()
        self.up = bottleneck(inner, inner, width) if narrowed else nn.Identity()
        blocks = (PreNormBlock(width, heads) for _ in range(restoring))
        self.restore = nn.Sequential(*([Places(qformer.queries, width)] if placed else []), *blocks)
        sizes = (qformer.queries, width, restoring, heads, image_dim)
        self.image = ImageEmbedding(*sizes, token_dim=token_dim) if image_dim else None
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
        """See :meth:`VisualTokenizer.decode`; nothing is drawn.

        Raises:
            ValueError: a tokenizer without a pixel decoder.
        """
        return self._pixels(self._vectors(codes)).clamp(-1, 1)

    def image_embedding(self, codes: Codes) -> Tensor:
        """``[B, image_dim]``, what a diffusion model conditioned on image embeddings reads.

        Raises:
            ValueError: a tokenizer built without one.
        """
        return self._embedding()(self._described(self._vectors(codes)))

    def token_embeddings(self, codes: Codes) -> Tensor:
        """``[B, Q, token_dim]``, what Slot-MLLM's diffusion model attends to.

        Raises:
            ValueError: a tokenizer built without them.
        """
        return self._embedding().tokens(self._described(self._vectors(codes)))

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("code")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction beside a decoder, ``quantizer``, ``states`` and, beside a teacher, ``distill.pooled``.

        Args:
            images: ``[B, 3, H, W]``.
            targets: ``pooled`` ``[B, image_dim]`` of a frozen teacher, or nothing; other targets are not used.
        """
        self.check_images(images)
        states = self._states(images)
        quantized = self.quantizer(self.down(states))
        vectors = self.up(quantized.latents.to(self.dtype))
        restored = self.restore(vectors)
        alike = F.cosine_similarity(restored.float(), states.detach().float(), dim=-1)
        losses = {"quantizer": quantized.loss, "states": 1 - alike.mean()}
        if self.image is not None and "pooled" in targets:
            embedding = self.image(restored if self.from_restored else vectors)
            losses["distill.pooled"] = F.mse_loss(embedding.float(), targets["pooled"].float())
        pixels = None if self.decoder is None else self._pixels(vectors)
        codes = Codes.full(quantized.ids, self.spec)
        return TrainingTerms(pixels, codes, losses, states[:, -1], latents=quantized.latents)

    def _states(self, images: Tensor) -> Tensor:
        tower = self.encoder
        features = tower.run(tower.stem(images.to(self.dtype)), 0, tower.depth)
        if self.memory is None:
            return self.qformer(self.vision_norm(features))
        return self.qformer(self.memory(self.vision_norm(tower.on_grid(tower.norm(features)))))

    def _vectors(self, codes: Codes) -> Tensor:
        return self.up(self.embed(codes).to(self.dtype))

    def _described(self, vectors: Tensor) -> Tensor:
        """What the image embedding is made from."""
        return self.restore(vectors) if self.from_restored else vectors

    def _embedding(self) -> ImageEmbedding:
        if self.image is None:
            raise ValueError(f"{type(self).__name__} was built with image_dim 0; give the embedding's width")
        return self.image

    def _pixels(self, vectors: Tensor) -> Tensor:
        if self.reader is None or self.decoder is None:
            raise ValueError(NO_PIXELS.format(type(self).__name__))
        return self.decoder(self.reader(vectors))


#: What a tokenizer says that was built without pixels.
NO_PIXELS = "this {} has no pixel decoder; train one or draw with a diffusion decoder"


def _agree_on_pixels(tower: Tower, dim: int, reader: GridReader | None, decoder: Decoder | None) -> None:
    """Raise unless reader and decoder, where they are given, fit vectors of width ``dim`` and the tower."""
    if pixels := both(reader, decoder):
        reads, decodes = pixels
        agree(
            {
                "the reader's dim and the Q-Former's": (reads.dim, dim),
                "the decoder's dim and the reader's out_dim": (decodes.dim, reads.out_dim),
                "the pixels of the decoder and of the tower": (reads.grid * decodes.stride, tower.image_size),
            }
        )


def _widening(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))


def both(reader: GridReader | None, decoder: Decoder | None) -> tuple[GridReader, Decoder] | None:
    """The parts that make pixels, or None where there are none.

    Raises:
        ValueError: one without the other.
    """
    if reader is not None and decoder is not None:
        return reader, decoder
    if reader is None and decoder is None:
        return None
    given, lacking = ("decoder", "reader") if reader is None else ("reader", "decoder")
    raise ValueError(f"pixels need a reader and a decoder, got a {given} alone; add a {lacking} or leave both out")


def agree(pairs: Mapping[str, tuple[int, int]]) -> None:
    """Raise ``ValueError`` for the first of the named pairs whose numbers differ."""
    for what, (first, second) in pairs.items():
        if first != second:
            raise ValueError(f"{what} must agree, got {first} and {second}; change either")
