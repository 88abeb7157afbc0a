"""LaVIT: as many codes as an image needs, selected and merged from a frozen encoder's patches.

Letters: B batch, N patches, C width.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import bottleneck
from .base import TrainingTerms, VisualTokenizer
from .codes import PADDING, CodeLayout, Codes, CodeSpec
from .convolutional import Decoder
from .features import FeatureReader, GridReader
from .learned import straight_through
from .merging import TokenMerger, TokenSelector
from .quantizers import Quantizer
from .queries import NO_PIXELS, agree
from .towers import Tower


class LavitTokenizer(VisualTokenizer):
    """As many codes as an image needs (LaVIT, https://arxiv.org/abs/2309.04669); ``Codes.mask`` says how many.

    Patches of the tower are kept or dropped by the selector, the kept ones take in the dropped, and each becomes a
    code: nearest by distance to its narrowed vector of unit length. As published: a frozen EVA-CLIP-g tower at 224
    pixels, 12 merging layers, 16384 codes of width 32, a third of the patches kept. The release draws what is kept,
    also when it encodes, so that an image has other codes each time; here the likeliest patches are kept, as many as
    would be on average, and drawing is for training, or where ``selection`` says so.

    Terms of training: ``quantizer``, ``states`` (``1 - cosine`` of the tower's features and those the codes give back)
    and ``kept`` (the squared distance of the kept share from ``keep_share``).

    The release has no pixel decoder: it draws with a diffusion model from :meth:`features`, and so must what is built
    without ``decoder``.

    Args:
        encoder: vision tower; its last hidden states are read.
        quantizer: of kept patches, narrowed to its width.
        reader: codes' vectors to one feature per patch of the tower's width: a ``GridReader`` of vectors that are
            widened to that width first, or the release's :class:`~smalti.tokenizers.features.FeatureReader`.
        decoder: those features, widened to its ``dim``, to pixels; none by default.
        layers: merging layers.
        heads: their attention heads.
        keep_share: of the patches, aimed at (a third).
        selection: ``likely``, or ``drawn`` as released.
        leak: of the merger's softmax; see :class:`TokenMerger`.
        freeze_encoder: keep the tower as it is.
        mlp_width: of the merger's feed-forward layers; four times the tower's width by default (6144 as released).

    Raises:
        ValueError: parts of widths or grids that do not fit one another, or a decoder without a reader.
    """

    @register_to_config
    def __init__(
        self,
        encoder: Tower,
        quantizer: Quantizer,
        reader: GridReader | FeatureReader | None = None,
        decoder: Decoder | None = None,
        layers: int = 12,
        heads: int = 16,
        keep_share: float = 1 / 3,
        selection: Literal["likely", "drawn"] = "likely",
        leak: float = 0.0,
        freeze_encoder: bool = False,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        grid_read = isinstance(reader, GridReader)
        if reader is not None:
            wanted = encoder.width if grid_read else quantizer.dim
            agree(
                {
                    "the reader's dim and that of what it reads": (reader.dim, wanted),
                    "the reader's out_dim and the tower's width": (reader.out_dim, encoder.width),
                    "the grids of the reader and of the tower": (reader.grid, encoder.grid),
                }
            )
        if decoder is not None:
            if reader is None:
                raise ValueError(
                    "pixels need a reader and a decoder, got a decoder alone; add a reader or leave both out"
                )
            agree({"the pixels of the decoder and of the tower": (encoder.grid * decoder.stride, encoder.image_size)})
        width, patches = encoder.width, encoder.grid**2
        encoder.freeze_pooling()
        if freeze_encoder:
            encoder.requires_grad_(requires_grad=False)
        self.encoder, self.quantizer, self.reader, self.decoder = encoder, quantizer, reader, decoder
        self.keep_share, self.selection = keep_share, selection
        self.selector = TokenSelector(width, width)
        self.merger = TokenMerger(width, layers, heads, mlp_width or 4 * width, leak=leak)
        self.down = bottleneck(width, width, quantizer.dim)
        self.up = bottleneck(quantizer.dim, width, width) if grid_read else None
        self.places = nn.Parameter(0.02 * torch.randn(patches, width)) if grid_read else None
        self.widen = nn.Linear(width, decoder.dim) if decoder is not None else None
        spec = CodeSpec(CodeLayout("sequence", (patches,)), quantizer.codebooks("code"), dynamic=True)
        self.set_spec(spec, (encoder.image_size, encoder.image_size), encoder.image_size)

    def encode(self, images: Tensor) -> Codes:
        """See :meth:`VisualTokenizer.encode`; codes of kept patches in raster order, then padding."""
        self.check_images(images)
        patches = self._patches(images)
        keep = self._keep(self.selector(patches))
        return self._codes(self.quantizer(self._kept(patches, keep)).ids, keep)

    def embed(self, codes: Codes) -> Tensor:
        """See :meth:`VisualTokenizer.embed`; zero where padded, C is the quantizer's width."""
        self.check_codes(codes)
        return self.quantizer.lookup(codes.ids.clamp(min=0)) * codes.mask[..., None]

    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`VisualTokenizer.decode`; nothing is drawn.

        Raises:
            ValueError: a tokenizer without a pixel decoder.
        """
        self._check_pixels()
        return self._pixels(self.features(self.embed(codes), codes.mask)).clamp(-1, 1)

    def features(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """``[B, C, g, g]``, the tower's features as the codes give them back; LaVIT's diffusion decoders read these.

        Args:
            vectors: ``[B, M, quantizer.dim]`` of the codes in kept order, which is all that says where they were.
            mask: ``[B, M]`` bool, false where padded.

        Raises:
            ValueError: a tokenizer without a reader.
        """
        if self.reader is None:
            raise ValueError(f"features of {type(self).__name__} need a reader, got none; build it with one")
        hidden = vectors.to(self.dtype)
        if self.up is not None and self.places is not None:
            hidden = self.up(hidden) + self.places[: vectors.shape[1]]
        return self.reader(hidden, mask)

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("code")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction, where there is a decoder; ``quantizer``, ``states`` and ``kept``; targets are not used."""
        self.check_images(images)
        patches = self._patches(images)
        logs = self.selector(patches)
        keep = self._keep(logs)
        quantized = self.quantizer(self._kept(patches, keep))
        codes = self._codes(quantized.ids, keep)
        chosen = straight_through(logs[..., 0].exp().float(), keep.float())  # 1 where kept, the selector's gradient
        latents = quantized.latents[0] * chosen[keep][:, None]
        vectors = torch.zeros(*codes.mask.shape, latents.shape[-1], device=latents.device)
        vectors = vectors.masked_scatter(codes.mask[..., None], latents)
        features = self.features(vectors, codes.mask)
        alike = F.cosine_similarity(features.flatten(2).transpose(1, 2).float(), patches.detach().float(), dim=-1)
        kept = (chosen.mean(1) - self.keep_share).square().mean()
        losses = {"quantizer": quantized.loss, "states": 1 - alike.mean(), "kept": kept}
        pixels = None if self.decoder is None else self._pixels(features)
        return TrainingTerms(pixels, codes, losses, latents=vectors)

    def _patches(self, images: Tensor) -> Tensor:
        tower = self.encoder
        return tower.on_grid(tower.run(tower.stem(images.to(self.dtype)), 0, tower.depth))

    def _keep(self, logs: Tensor) -> Tensor:
        """Bool mask ``[B, N]`` of at least one patch per image."""
        logs = logs.detach().float()
        if self.training or self.selection == "drawn":
            drawn = logs - (-torch.rand_like(logs).clamp(min=1e-20).log()).log()
            margin = drawn[..., 0] - drawn[..., 1]
            return (margin > 0) | (margin == margin.amax(1, keepdim=True))
        likely = logs[..., 0].exp()
        expected = likely.sum(1, keepdim=True).round().clamp(min=1)
        rank = likely.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < expected

    def _kept(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Narrowed vectors ``[1, M, d]`` of unit length of the kept patches of all images."""
        return F.normalize(self.down(self.merger(patches, keep))[keep].float(), dim=-1)[None]

    def _codes(self, ids: Tensor, keep: Tensor) -> Codes:
        counts = keep.sum(1, keepdim=True)
        mask = torch.arange(keep.shape[1], device=keep.device) < counts
        padded = ids.new_full((*keep.shape, ids.shape[-1]), PADDING)
        padded[mask] = ids[0]
        return Codes(padded, mask, self.spec)

    def _check_pixels(self) -> None:
        if self.decoder is None:
            raise ValueError(NO_PIXELS.format(type(self).__name__))

    def _pixels(self, features: Tensor) -> Tensor:
        assert self.decoder is not None
        assert self.widen is not None
        return self.decoder(self.widen(features.movedim(1, -1)).movedim(-1, 1))
