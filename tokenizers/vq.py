"""Plain vector-quantized tokenizers: VQGAN and its descendants (LlamaGen) with any encoder, quantizer and decoder."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .base import TrainingTerms, VisualTokenizer
from .codes import CodeLayout, Codes, CodeSpec
from .convolutional import Decoder, Encoder
from .quantizers import Quantizer


class VQTokenizer(VisualTokenizer):
    """One grid of codes from one codebook (VQGAN, https://arxiv.org/abs/2012.09841; LlamaGen,
    https://arxiv.org/abs/2406.06525).

    Args:
        encoder: images to features; a convolutional one takes any multiple of its stride.
        quantizer: features to codes; its width is that of the codes.
        decoder: quantized features to pixels.
        image_size: side of the square images that ``spec`` describes, pixels.
        always_project: have linear layers between encoder, codes and decoder also where their widths are the same.

    Raises:
        ValueError: encoder and decoder of different strides, an image size off the stride, or one that asks for another
            grid than the encoder or decoder is built for.
    """

    @register_to_config
    def __init__(
        self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder, image_size: int, always_project: bool = False
    ) -> None:
        super().__init__()
        if encoder.stride != decoder.stride or image_size % encoder.stride:
            raise ValueError(
                f"encoder and decoder must have one stride that divides image_size {image_size}, "
                f"got strides {encoder.stride} and {decoder.stride}"
            )
        side = image_size // encoder.stride
        grids = {part.grid for part in (encoder, decoder)} - {None}
        if grids - {side}:
            raise ValueError(
                f"image_size {image_size} asks for {side} cells per side, got an encoder and decoder built for "
                f"{' and '.join(map(str, sorted(filter(None, grids))))}; give all of them one size"
            )
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.narrow = _linear(encoder.dim, quantizer.dim, always_project)
        self.widen = _linear(quantizer.dim, decoder.dim, always_project)
        self.any_size = not grids
        layout = CodeLayout("grid", (side, side))
        self.set_spec(CodeSpec(layout, quantizer.codebooks("pixel")), (image_size, image_size), encoder.stride)

    def encode(self, images: Tensor) -> Codes:
        """See :meth:`VisualTokenizer.encode`."""
        self.check_images(images)
        return self._codes(self.quantizer(self._latents(images)).ids, images)

    def embed(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.embed`; C is the quantizer's width."""
        self.check_codes(codes)
        return self.quantizer.lookup(codes.ids)

    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`VisualTokenizer.decode`; nothing is drawn."""
        return self._painted(self.widen(self.embed(codes).to(self.dtype)), codes).clamp(-1, 1)

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("pixel")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction and the term ``quantizer``."""
        self.check_images(images)
        quantized = self.quantizer(self._latents(images))
        codes = self._codes(quantized.ids, images)
        widened = self.widen(quantized.latents.to(self.dtype))
        losses = {"quantizer": quantized.loss}
        return TrainingTerms(
            self._painted(widened, codes), codes, losses, self._summary(widened), latents=quantized.latents
        )

    def _latents(self, images: Tensor) -> Tensor:
        return self.narrow(self.encoder(images.to(self.dtype)).flatten(2).transpose(1, 2))  # [B, N, C]

    def _codes(self, ids: Tensor, images: Tensor) -> Codes:
        shape = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        return Codes.full(ids, self.spec.with_shape(*shape))

    def _painted(self, widened: Tensor, codes: Codes) -> Tensor:
        return self.decoder(widened.transpose(1, 2).unflatten(2, codes.spec.layout.shape))

    def _summary(self, widened: Tensor) -> Tensor | None:
        """See :attr:`TrainingTerms.summary`; families that have one say which."""
        return None


def _linear(before: int, after: int, always: bool) -> nn.Module:
    return nn.Linear(before, after) if always or before != after else nn.Identity()
