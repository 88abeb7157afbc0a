"""DualToken: semantic codes from deep layers and pixel codes from shallow layers of one vision encoder."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .base import TrainingTerms, VisualTokenizer
from .codes import CodeLayout, Codes, CodeSpec
from .convolutional import Decoder
from .projection import AttentionProjection, ContrastProjection, GeGLU, Residual
from .quantizers import Quantized, Quantizer
from .towers import Tower


class DualTokenizer(VisualTokenizer):
    """Two codebooks over one grid (DualToken, https://arxiv.org/abs/2503.14324).

    The pixel feature is ``project(h[pixel_layer]) + shortcut_weight * project(h[shortcut_layer])``; only pixel codes
    are decoded. The semantic feature is ``project(h[semantic_layer])``; its codes replace that hidden state, run
    through the remaining layers and the pooling head, and are kept close to a frozen teacher.

    Args:
        encoder: the vision tower, usually started from the teacher's weights.
        semantic: residual quantizer of the semantic codes.
        pixel: residual quantizer of the pixel codes.
        decoder: quantized pixel features, widened to its ``dim``, to pixels; the grid is resized (bilinearly, as in the
            release) where its stride is not the encoder's patch.
        semantic_layer: number of layers before the semantic codes; the paper takes all but the last.
        pixel_layer: number of layers before the pixel codes.
        shortcut_layer: a shallower layer added to the pixel feature; none by default.
        shortcut_weight: its weight (0.6 in the release).
        local_pixels: project pixel features position by position. With ``pixel_layer`` 0 a pixel code then depends on
            nothing but its patch and its place, which a language model learns to write in fewer steps. The paper's
            projection looks at the whole image.
        placeless_pixels: take patches before their positions are added, so that equal patches have equal pixel codes
            wherever they are; with ``pixel_layer`` 0, ``local_pixels`` and no shortcut.
        local_depth: residual feed-forward layers over single positions before the projection of local pixel features,
            so that codes may stand for more than a linear view of a patch: its colour, or its edges in any colour.
        contrast: channels of the pixel feature, the last ones, that see nothing of a patch but its normalized luminance
            (:class:`~smalti.tokenizers.projection.ContrastProjection`): codes of edges are then the same in every
            colour, and a :class:`~smalti.tokenizers.product.ProductQuantizer` keeps them apart from codes of colours.
            For local pixels without a shortcut; none by default.

    Raises:
        ValueError: layers out of order or beyond the tower, a decoder that does not fit its grid, pixel codes that are
            to be placeless and read more than their patch, local layers for features that are not local, or a tower
            with tokens that belong to no patch.
    """

    @register_to_config
    def __init__(
        self,
        encoder: Tower,
        semantic: Quantizer,
        pixel: Quantizer,
        decoder: Decoder,
        semantic_layer: int = 26,
        pixel_layer: int = 6,
        shortcut_layer: int | None = None,
        shortcut_weight: float = 0.6,
        local_pixels: bool = False,
        placeless_pixels: bool = False,
        local_depth: int = 0,
        contrast: int = 0,
    ) -> None:
        super().__init__()
        if encoder.prefix:
            raise ValueError(
                f"DualToken's codes replace all hidden states, got a tower with {encoder.prefix} that belong to no "
                "patch and would carry the image past the codes; use one without a class token, such as a SigLIP"
            )
        _check_layers(encoder.depth, semantic_layer, pixel_layer, shortcut_layer)
        if contrast and (not local_pixels or shortcut_layer is not None or not 0 < contrast < pixel.dim):
            raise ValueError(
                f"contrast must leave some of the {pixel.dim} channels of local pixels without a shortcut, got "
                f"{contrast}, local_pixels {local_pixels} and shortcut {shortcut_layer}; change those or leave it at 0"
            )
        if local_depth and not local_pixels:
            raise ValueError(f"local_depth {local_depth} needs local_pixels, got False; switch it on or leave 0")
        if placeless_pixels and (pixel_layer or shortcut_layer is not None or not local_pixels):
            raise ValueError(
                f"placeless pixel codes need pixel_layer 0, local_pixels and no shortcut, got layer {pixel_layer}, "
                f"local_pixels {local_pixels} and shortcut {shortcut_layer}; change those or leave codes their place"
            )
        self.side = encoder.image_size // decoder.stride
        if encoder.image_size % decoder.stride or decoder.grid not in (None, self.side):
            raise ValueError(
                f"the decoder must unfold to the encoder's {encoder.image_size} pixels, "
                f"got one of stride {decoder.stride} and grid {decoder.grid or 'any'}; "
                "choose a stride that divides the side"
            )
        self.encoder, self.semantic, self.pixel, self.decoder = encoder, semantic, pixel, decoder
        self.semantic_layer, self.pixel_layer, self.placeless_pixels = semantic_layer, pixel_layer, placeless_pixels
        self.shortcut_layer, self.shortcut_weight = shortcut_layer, shortcut_weight
        self.to_semantic = AttentionProjection(encoder.width, semantic.dim)
        self.to_pixel = AttentionProjection(encoder.width, pixel.dim - contrast, local=local_pixels)
        self.to_contrast = ContrastProjection(encoder.patch_size, encoder.width, contrast) if contrast else None
        self.local = nn.Sequential(*(Residual(GeGLU(encoder.width, 2 * encoder.width)) for _ in range(local_depth)))
        self.to_shortcut = (
            None if shortcut_layer is None else AttentionProjection(encoder.width, pixel.dim, local=local_pixels)
        )
        self.from_semantic = AttentionProjection(semantic.dim, encoder.width, causal=True)
        self.from_pixel = AttentionProjection(pixel.dim, decoder.dim, causal=True)
        layout = CodeLayout("grid", (encoder.grid, encoder.grid))
        books = (*semantic.codebooks("semantic"), *pixel.codebooks("pixel"))
        self.set_spec(CodeSpec(layout, books), (encoder.image_size, encoder.image_size), encoder.patch_size)

    def encode(self, images: Tensor) -> Codes:
        """See :meth:`VisualTokenizer.encode`; semantic columns first."""
        self.check_images(images)
        return self._codes(*self._quantize(images))

    def embed(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.embed`; semantic and pixel vectors side by side, C is the sum of their widths."""
        self.check_codes(codes)
        return torch.cat([self.semantic.lookup(codes.of("semantic")), self.pixel.lookup(codes.of("pixel"))], dim=-1)

    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`VisualTokenizer.decode`; only pixel codes are read and nothing is drawn."""
        self.check_codes(codes)
        return self._pixels(self.pixel.lookup(codes.of("pixel"))).clamp(-1, 1)

    def pooled(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.pooled`; of the semantic codes, through the remaining layers."""
        self.check_codes(codes)
        return self._restored(self.semantic.lookup(codes.of("semantic")))[1]

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.semantic.vectors("semantic") | self.pixel.vectors("pixel")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction, ``quantizer.semantic``, ``quantizer.pixel`` and, beside a teacher, the distillation terms.

        Args:
            images: ``[B, 3, H, W]``.
            targets: ``tokens`` ``[B, N, C]`` and ``pooled`` ``[B, C]`` of the frozen teacher, or nothing. They give
                ``distill.tokens`` and ``distill.pooled``, each ``mse - cosine`` as in the release.

        Raises:
            ValueError: only one of the two targets, or one of another shape than this encoder's.
        """
        self.check_images(images)
        semantic, pixel = self._quantize(images)
        losses = {"quantizer.semantic": semantic.loss, "quantizer.pixel": pixel.loss}
        if targets:
            losses |= self._distillation(semantic.latents, targets)
        latents = torch.cat([semantic.latents, pixel.latents], dim=-1)
        return TrainingTerms(self._pixels(pixel.latents), self._codes(semantic, pixel), losses, latents=latents)

    def _quantize(self, images: Tensor) -> tuple[Quantized, Quantized]:
        start = 0 if self.shortcut_layer is None else self.shortcut_layer
        shallow = self.encoder.run(self.encoder.stem(images.to(self.dtype)), 0, start)
        middle = self.encoder.run(shallow, start, self.pixel_layer)
        deep = self.encoder.run(middle, self.pixel_layer, self.semantic_layer)
        patches = self.encoder.patches(images.to(self.dtype)) if self.placeless_pixels else middle
        feature = self.to_pixel(self.local(patches))
        if self.to_contrast is not None:
            feature = torch.cat([feature, self.to_contrast(images.to(self.dtype))], dim=-1)
        if self.to_shortcut is not None:
            feature = feature + self.shortcut_weight * self.to_shortcut(shallow)
        return self.semantic(self.to_semantic(deep)), self.pixel(feature)

    def _codes(self, semantic: Quantized, pixel: Quantized) -> Codes:
        return Codes.full(torch.cat([semantic.ids, pixel.ids], dim=-1), self.spec)

    def _pixels(self, latents: Tensor) -> Tensor:
        features = self.from_pixel(latents.to(self.dtype)).transpose(1, 2).unflatten(2, self.spec.layout.shape)
        if features.shape[2] != self.side:
            features = F.interpolate(features, (self.side, self.side), mode="bilinear", align_corners=False)
        return self.decoder(features)

    def _distillation(self, latents: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        students = dict(zip(("tokens", "pooled"), self._restored(latents), strict=True))
        if set(targets) != set(students):
            raise ValueError(f"a teacher gives tokens and pooled, got {', '.join(sorted(targets))}")
        return {f"distill.{name}": _mse_minus_cosine(students[name], targets[name], name) for name in students}

    def _restored(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and pooled features as the semantic codes give them back."""
        hidden = self.from_semantic(latents.to(self.dtype))
        return hidden, self.encoder.pool(self.encoder.run(hidden, self.semantic_layer, self.encoder.depth))


def _mse_minus_cosine(student: Tensor, teacher: Tensor, name: str) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher {name} must be {list(student.shape)} like the encoder's, got {list(teacher.shape)}; "
            "use a teacher of the same width, patch and image size"
        )
    student, teacher = student.float(), teacher.float()
    return F.mse_loss(student, teacher) - F.cosine_similarity(student, teacher, dim=-1).mean()


def _check_layers(depth: int, semantic: int, pixel: int, shortcut: int | None) -> None:
    order = [0 if shortcut is None else shortcut, pixel, semantic, depth]
    if sorted(order) != order:
        raise ValueError(
            f"layers must keep shortcut_layer <= pixel_layer <= semantic_layer <= {depth} (the tower's), "
            f"got {shortcut}, {pixel}, {semantic}"
        )
