"""LaVIT: as many codes as an image needs, selected and merged from a frozen encoder's patches.

Letters: B batch, N patches, C width.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, bottleneck, causal, feed_forward
from .base import TrainingTerms, VisualTokenizer
from .codes import PADDING, CodeLayout, Codes, CodeSpec
from .convolutional import Decoder
from .learned import straight_through
from .quantizers import Quantizer
from .queries import GridReader, agree
from .vision import VisionTower


class TokenSelector(nn.Module):
    """Log-probabilities of keeping each patch (https://arxiv.org/abs/2309.04669).

    Half of every patch's channels are replaced by their mean over the patches, so that each is judged in context.

    Args:
        dim: C, width of the patches.
        width: hidden channels, even.
        eps: of the norm.
    """

    def __init__(self, dim: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(dim, eps), nn.Linear(dim, width), nn.GELU())
        halves = (nn.Linear(width, width // 2), nn.Linear(width // 2, width // 4), nn.Linear(width // 4, 2))
        self.judge = nn.Sequential(halves[0], nn.GELU(), halves[1], nn.GELU(), halves[2])

    def forward(self, patches: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, N, 2]`` log-probabilities of keeping (0) and dropping (1)."""
        own, shared = self.local(patches).chunk(2, dim=-1)
        together = shared.mean(1, keepdim=True).expand_as(shared)
        return self.judge(torch.cat([own, together], dim=-1)).log_softmax(-1)


class TokenMerger(nn.Module):
    """Kept patches, each having read the kept ones before it and all that were dropped.

    The release hides patches by a softmax that leaks a little (``leak=1e-6``): where nothing is dropped, every patch
    then reads the mean of all patches, later ones too. Here hidden patches are hidden.

    Args:
        dim: C.
        layers: number of blocks.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        eps: of the norms.
        leak: see :class:`~smalti.tokenizers.attention.Attention`; 0 here, 1e-6 as released.
    """

    def __init__(self, dim: int, layers: int, heads: int, hidden: int, eps: float = 1e-5, leak: float = 0.0) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.blocks = nn.ModuleList(MergerBlock(dim, heads, hidden, eps, leak) for _ in range(layers))

    def forward(self, patches: Tensor, keep: Tensor) -> Tensor:
        """``[B, N, C]``, rows of dropped patches included, from patches and a bool mask ``[B, N]`` of the kept.

        Dropped patches are read as they came, normed; kept ones start from the patches themselves.
        """
        original = self.norm_in(patches)
        itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
        before = causal(keep.shape[1], keep.device) & keep[:, None] | itself
        merged = patches
        for block in self.blocks:
            merged = block(merged, original, before, ~keep[:, None])
        return self.norm_out(merged)


class MergerBlock(nn.Module):
    """Causal self-attention among the kept, cross-attention to the dropped, feed-forward layer; each after a norm."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float, leak: float) -> None:
        super().__init__()
        self.norm_kept, self.norm_dropped, self.norm_mlp = (nn.LayerNorm(dim, eps) for _ in range(3))
        self.kept, self.dropped = Attention(dim, heads, leak=leak), Attention(dim, heads, leak=leak)
        self.kept_out, self.dropped_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, hidden)

    def forward(self, merged: Tensor, original: Tensor, before: Tensor, dropped: Tensor) -> Tensor:
        """``[B, N, C]``, shape kept; masks over the kept patches before each, and over the dropped ones."""
        merged = merged + self.kept_out(self.kept(self.norm_kept(merged), None, before))
        dropped = dropped.expand(-1, merged.shape[1], -1)
        seeing = dropped.any(-1, keepdim=True) | bool(self.dropped.leak)
        read = self.dropped_out(self.dropped(self.norm_dropped(merged), original, dropped))
        merged = merged + read * seeing
        return merged + self.mlp(self.norm_mlp(merged))


class LavitTokenizer(VisualTokenizer):
    """As many codes as an image needs (LaVIT, https://arxiv.org/abs/2309.04669); ``Codes.mask`` says how many.

    Patches of the tower are kept or dropped by the selector, the kept ones take in the dropped, and each becomes a
    code: nearest by distance to its narrowed vector of unit length. As published: a frozen EVA-CLIP-g tower at 224
    pixels, 12 merging layers, 16384 codes of width 32, a third of the patches kept. The release draws what is kept,
    also when it encodes, so that an image has other codes each time; here what is more likely kept than not is kept,
    and drawing is for training, or where ``selection`` says so.

    Terms of training: ``quantizer``, ``states`` (``1 - cosine`` of the tower's features and those the codes give back)
    and ``kept`` (the squared distance of the kept share from ``keep_share``).

    Args:
        encoder: vision tower; its last hidden states are read.
        quantizer: of kept patches, narrowed to its width.
        reader: codes' vectors to one feature per patch, both of the tower's width.
        decoder: those features, widened to its ``dim``, to pixels.
        layers: merging layers.
        heads: their attention heads.
        keep_share: of the patches, aimed at (a third).
        selection: ``likely``, or ``drawn`` as released.
        leak: of the merger's softmax; see :class:`TokenMerger`.
        freeze_encoder: keep the tower as it is.

    Raises:
        ValueError: parts of widths or grids that do not fit one another.
    """

    @register_to_config
    def __init__(
        self,
        encoder: VisionTower,
        quantizer: Quantizer,
        reader: GridReader,
        decoder: Decoder,
        layers: int = 12,
        heads: int = 16,
        keep_share: float = 1 / 3,
        selection: Literal["likely", "drawn"] = "likely",
        leak: float = 0.0,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        agree(
            {
                "the reader's dim and the tower's width": (reader.dim, encoder.width),
                "the reader's out_dim and the tower's width": (reader.out_dim, encoder.width),
                "the grids of the reader and of the tower": (reader.grid, encoder.grid),
                "the pixels of the decoder and of the tower": (encoder.grid * decoder.stride, encoder.image_size),
            }
        )
        width, patches = encoder.width, encoder.grid**2
        encoder.freeze_pooling()
        if freeze_encoder:
            encoder.requires_grad_(requires_grad=False)
        self.encoder, self.quantizer, self.reader, self.decoder = encoder, quantizer, reader, decoder
        self.keep_share, self.selection = keep_share, selection
        self.selector = TokenSelector(width, width)
        self.merger = TokenMerger(width, layers, heads, 4 * width, leak=leak)
        self.down, self.up = bottleneck(width, width, quantizer.dim), bottleneck(quantizer.dim, width, width)
        self.places = nn.Parameter(0.02 * torch.randn(patches, width))
        self.widen = nn.Linear(width, decoder.dim)
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
        """See :meth:`VisualTokenizer.decode`; nothing is drawn."""
        return self._pixels(self.features(self.embed(codes), codes.mask)).clamp(-1, 1)

    def features(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """``[B, C, g, g]``, the tower's features as the codes give them back; LaVIT's diffusion decoders read these.

        Args:
            vectors: ``[B, M, quantizer.dim]`` of the codes in kept order, which is all that says where they were.
            mask: ``[B, M]`` bool, false where padded.
        """
        return self.reader(self.up(vectors.to(self.dtype)) + self.places[: vectors.shape[1]], mask)

    def code_vectors(self) -> dict[str, Tensor]:
        """See :meth:`VisualTokenizer.code_vectors`."""
        return self.quantizer.vectors("code")

    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """Reconstruction, ``quantizer``, ``states`` and ``kept``; targets are not used."""
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
        return TrainingTerms(self._pixels(features), codes, losses)

    def _patches(self, images: Tensor) -> Tensor:
        return self.encoder.run(self.encoder.stem(images.to(self.dtype)), 0, self.encoder.depth)

    def _keep(self, logs: Tensor) -> Tensor:
        """Bool mask ``[B, N]`` of at least one patch per image."""
        logs = logs.detach().float()
        if self.training or self.selection == "drawn":
            logs = logs - (-torch.rand_like(logs).clamp(min=1e-20).log()).log()
        margin = logs[..., 0] - logs[..., 1]
        return (margin > 0) | (margin == margin.amax(1, keepdim=True))

    def _kept(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Narrowed vectors ``[1, M, d]`` of unit length of the kept patches of all images."""
        return F.normalize(self.down(self.merger(patches, keep))[keep].float(), dim=-1)[None]

    def _codes(self, ids: Tensor, keep: Tensor) -> Codes:
        counts = keep.sum(1, keepdim=True)
        mask = torch.arange(keep.shape[1], device=keep.device) < counts
        padded = ids.new_full((*keep.shape, ids.shape[-1]), PADDING)
        padded[mask] = ids[0]
        return Codes(padded, mask, self.spec)

    def _pixels(self, features: Tensor) -> Tensor:
        return self.decoder(self.widen(features.movedim(1, -1)).movedim(-1, 1))
