"""TokenFlow: one id per place and scale that stands for what is there and for how it looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import PreNormBlock, bottleneck
from .base import TrainingTerms, VisualTokenizer
from .codes import CodeLayout, Codes, CodeSpec
from .convolutional import Decoder, Encoder
from .learned import GradientQuantizer
from .scales import MultiScaleQuantizer
from .towers import Tower


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


class TokenFlowTokenizer(VisualTokenizer):
    """Two encoders, two tables under one id, scale by scale (TokenFlow, https://arxiv.org/abs/2412.03069).

    The semantic features are the tower's before its last layer, through ``Linear, Tanh, Linear``; the pixel features a
    convolutional encoder's of the same grid, for which the image is resized where strides differ (bicubically, as in
    the release), and the decoded pixels are resized back. Their quantized sum over all scales is split again: a
    transformer gives the teacher's features back (``distill.tokens``, ``1 - cosine`` as released; the paper writes an
    L2 distance), the pixel part is decoded.

    The released tokenizers differ in what they read of their towers: TokenFlow-B all of CLIP's layers, ``normed``, with
    a teacher of width 512; TokenFlow-L all of ViTamin's; TokenFlow-XL all of SigLIP's but the last. The semantic
    decoder of all three has a class token.

    Args:
        semantic_encoder: vision tower, usually started from the teacher's weights; the pooling head is not used.
        encoder: of the pixel features.
        quantizer: over scales; its last side is the tower's grid.
        decoder: pixel features, widened to its ``dim``, to pixels.
        semantic_layers: depth of the semantic decoder.
        heads: its attention heads.
        class_token: whether it also has a token that stands for no cell.
        semantic_layer: number of the tower's layers before the semantic features; all but the last by default.
        normed: take the features through the norm of the tower's class token.
        teacher_dim: width of the teacher's features; the tower's by default.

    Raises:
        ValueError: a last side that is not the tower's grid, a decoder of another grid, a layer that the tower lacks,
            or a tower without a class token whose norm is asked for.
    """

    @register_to_config
    def __init__(
        self,
        semantic_encoder: Tower,
        encoder: Encoder,
        quantizer: MultiScaleQuantizer,
        decoder: Decoder,
        semantic_layers: int = 3,
        heads: int = 12,
        class_token: bool = False,
        semantic_layer: int | None = None,
        normed: bool = False,
        teacher_dim: int | None = None,
    ) -> None:
        super().__init__()
        tower, inner = semantic_encoder, quantizer.quantizer
        if not isinstance(inner, SharedMappingQuantizer):
            raise ValueError(
                f"TokenFlow's scales must share a SharedMappingQuantizer, got {type(inner).__name__}; use one inside"
            )
        if quantizer.sides[-1] != tower.grid or decoder.grid not in (None, tower.grid):
            raise ValueError(
                f"the finest scale and the decoder must have the tower's grid of {tower.grid}, got a scale of "
                f"{quantizer.sides[-1]} and a decoder of grid {decoder.grid or 'any'}; change those"
            )
        self.semantic_layer = tower.depth - 1 if semantic_layer is None else semantic_layer
        if not 0 < self.semantic_layer <= tower.depth or (normed and not tower.prefix):
            raise ValueError(
                f"semantic_layer must lie in [1, {tower.depth}] and normed needs a tower with a class token, got layer "
                f"{self.semantic_layer}, normed {normed} and {tower.prefix} tokens before the patches; change those"
            )
        _freeze(tower, self.semantic_layer, normed)
        self.normed, self.teacher_dim = normed, teacher_dim or tower.width
        self.semantic_encoder, self.encoder, self.quantizer, self.decoder = tower, encoder, quantizer, decoder
        self.widths = inner.widths
        self.to_semantic = bottleneck(tower.width, tower.width, self.widths[0])
        self.to_pixel = nn.Linear(encoder.dim, self.widths[1])
        self.semantic_stem = nn.Linear(self.widths[0], tower.width)
        self.semantic_places = nn.Parameter(0.02 * torch.randn(tower.grid**2 + class_token, tower.width))
        self.semantic_decoder = nn.Sequential(*(PreNormBlock(tower.width, heads) for _ in range(semantic_layers)))
        out = bottleneck(tower.width, tower.width, self.teacher_dim)
        self.semantic_out = nn.Sequential(nn.LayerNorm(tower.width), out)
        self.semantic_class = nn.Parameter(0.02 * torch.randn(1, 1, tower.width)) if class_token else None
        self.from_pixel = nn.Linear(self.widths[1], decoder.dim)
        layout = CodeLayout("scales", tuple(quantizer.sides))
        size = (tower.image_size, tower.image_size)
        self.set_spec(CodeSpec(layout, quantizer.codebooks("shared")), size, tower.image_size)

    def encode(self, images: Tensor) -> Codes:
        """See :meth:`VisualTokenizer.encode`; scale after scale, coarse to fine."""
        self.check_images(images)
        return Codes.full(self.quantizer(self._features(images)).ids, self.spec)

    def embed(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.embed`; semantic and pixel vectors side by side."""
        self.check_codes(codes)
        return self.quantizer.quantizer.lookup(codes.ids)

    def finest(self, codes: Codes) -> Tensor:
        """``[B, L * L, C]``, the sum over all scales: what TokenFlow's language model reads for understanding."""
        self.check_codes(codes)
        return self.quantizer.lookup(codes.ids)

    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`VisualTokenizer.decode`; only the pixel part is read and nothing is drawn."""
        return self._pixels(self.finest(codes)).clamp(-1, 1)

    def pooled(self, codes: Codes) -> Tensor | None:
        """See :meth:`VisualTokenizer.pooled`; what follows the semantic features in the tower is as it came with it.

        None where the features that are given back are not what the tower goes on with.
        """
        tower = self.semantic_encoder
        if tower.prefix or self.normed or self.teacher_dim != tower.width:
            return None
        return tower.pool(tower.run(self._restored(self.finest(codes)), self.semantic_layer, tower.depth))

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("shared")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction, ``quantizer`` and, beside a teacher, ``distill.tokens``.

        Args:
            images: ``[B, 3, H, W]``.
            targets: ``tokens`` ``[B, N, C]`` of the frozen teacher, or nothing; other targets are not used.
        """
        self.check_images(images)
        quantized = self.quantizer(self._features(images))
        losses = {"quantizer": quantized.loss}
        if "tokens" in targets:
            restored = self._restored(quantized.latents).float()
            losses["distill.tokens"] = 1 - F.cosine_similarity(restored, targets["tokens"].float(), dim=-1).mean()
        return TrainingTerms(self._pixels(quantized.latents), Codes.full(quantized.ids, self.spec), losses)

    def _restored(self, latents: Tensor) -> Tensor:
        """Teacher's tokens as the semantic part of ``[B, L * L, C]`` gives them back."""
        hidden = self.semantic_stem(latents[..., : self.widths[0]].to(self.dtype))
        if self.semantic_class is None:
            return self.semantic_out(self.semantic_decoder(hidden + self.semantic_places))
        first = self.semantic_class.expand(len(hidden), -1, -1)
        hidden = self.semantic_decoder(torch.cat([first, hidden], dim=1) + self.semantic_places)
        return self.semantic_out(hidden[:, 1:])

    def _features(self, images: Tensor) -> Tensor:
        tower, images = self.semantic_encoder, images.to(self.dtype)
        hidden = tower.on_grid(tower.run(tower.stem(images), 0, self.semantic_layer))
        semantic = self.to_semantic(_normed(tower, hidden) if self.normed else hidden)
        side = tower.grid * self.encoder.stride
        if side != images.shape[2]:
            images = _bicubic(images, side)
        pixel = self.to_pixel(self.encoder(images).flatten(2).transpose(1, 2))
        return torch.cat([semantic, pixel], dim=-1)

    def _pixels(self, latents: Tensor) -> Tensor:
        features = self.from_pixel(latents[..., self.widths[0] :].to(self.dtype)).transpose(1, 2)
        pixels = self.decoder(features.unflatten(2, (self.quantizer.sides[-1],) * 2))
        return pixels if pixels.shape[2:] == self.image_size else _bicubic(pixels, self.image_size[0])


def _freeze(tower: Tower, start: int, normed: bool) -> None:
    """Take what is never run out of training: the layers from ``start`` on, and the pooling but for a norm in use."""
    if not normed:
        tower.freeze_pooling()
    for index in range(start, tower.depth):
        tower.layer(index).requires_grad_(requires_grad=False)


def _normed(tower: Tower, patches: Tensor) -> Tensor:
    """``[B, N, C]`` through the norm of the tower's class token: each patch stands in for one that is pooled alone."""
    return tower.pool(patches.flatten(0, 1)[:, None]).unflatten(0, patches.shape[:2])


def _bicubic(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)


def unit_parts(vectors: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """``[..., C]`` cut into parts of these widths, each brought to unit length."""
    return [F.normalize(part, dim=-1) for part in vectors.split(list(widths), dim=-1)]
