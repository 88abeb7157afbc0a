"""Where the codes of a batch come from: a store, a tokenizer that rests, or one that is tuned with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..tokenizers.base import TrainingTerms, VisualTokenizer
from ..tokenizers.codes import Codes
from ..tokenizers.held import Shared
from ..tokenizers.lookup import looked_up
from ..tokenizers.losses import PixelLoss


@dataclass(frozen=True)
class Tuning:
    """What holds a tokenizer to its pictures while a language model's loss pulls at it.

    Args:
        weight: of the reconstruction terms beside the language model's loss; 0.25 in the paper.
        pixel_loss: between reconstruction and images; absolute and squared error by default.
        weights: of the family's own terms by name; 1 where none is given, 0 leaves a term out.
        learning_rate: of the tokenizer; the language model's by default.
    """

    weight: float = 0.25
    pixel_loss: PixelLoss | None = None
    weights: dict[str, float] = field(default_factory=dict)
    learning_rate: float | None = None


TUNING = Tuning()


@dataclass(frozen=True)
class Coded:
    """The codes of a batch of items."""

    ids: list[Tensor]  #: [N, D] int64 of each, on the CPU
    read_as: Sequence[Tensor | None]  #: [N, C] of each, what the language model reads in place of its own look-up
    losses: Mapping[str, Tensor] = field(default_factory=dict)  #: weighted terms of a tokenizer that is tuned


class Coder(nn.Module):
    """Codes of items that have ``ids`` or ``images``; the tokenizer is part of it where it is tuned.

    End-to-end tuning (ETT, https://arxiv.org/abs/2505.10562): the language model reads what the tokenizer embeds, and
    its loss reaches codebooks and encoder.

    Args:
        tokenizer: makes the codes.
        tuning: how it is held to its pictures; None for one that rests.

    Raises:
        ValueError: a tokenizer to be tuned whose vectors are not what a language model looks up on its own.
    """

    def __init__(self, tokenizer: VisualTokenizer, tuning: Tuning | None = None) -> None:
        super().__init__()
        self.tuning = tuning
        self._tokenizer = Shared(tokenizer.eval())  # not part of the checkpoint
        self.tuned = None
        if tuning is not None:
            _check_lookup(tokenizer)
            self.tuned = tokenizer.train()  # quantizers pass no gradient in evaluation

    @property
    def tokenizer(self) -> VisualTokenizer:
        """The tokenizer, whether or not it is tuned."""
        return self._tokenizer.network

    def forward(self, items: Sequence[Mapping[str, Any]], device: torch.device) -> Coded:
        """Codes of a batch of items; in training with the terms of a tokenizer that is tuned."""
        if "ids" in items[0]:
            return Coded([item["ids"] for item in items], [None] * len(items))
        images = torch.stack([item["images"] for item in items]).to(device)
        if self.tuning is None or not self.training:
            codes = self.encode(images)
            return Coded(_rows(codes), [None] * len(items))
        terms = self.tokenizer.training_step_terms(images)
        vectors = self.tokenizer.tuned_embedding(terms)
        losses = {name: self.tuning.weight * value for name, value in _terms(self.tuning, terms, images).items()}
        read_as = [row[kept] for row, kept in zip(vectors, terms.codes.mask, strict=True)]
        return Coded(_rows(terms.codes), read_as, losses)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """Codes of ``[B, 3, H, W]`` images, by the tokenizer as it is now."""
        resting, was = self.tokenizer, self.tokenizer.training
        torch.nn.Module.to(resting, images.device)
        resting.eval()
        codes = resting.encode(images.to(resting.dtype))
        resting.train(was)
        return codes

    @torch.no_grad()
    def psnr(self, images: Tensor) -> Tensor:
        """``[B]`` decibel of pictures after encoding and decoding."""
        codes, was = self.encode(images), self.tokenizer.training
        self.tokenizer.eval()
        rebuilt = self.tokenizer.decode(codes).float()
        self.tokenizer.train(was)
        return 10 * torch.log10(4 / (rebuilt - images.float()).square().flatten(1).mean(1).clamp(min=1e-10))


def _rows(codes: Codes) -> list[Tensor]:
    return list(codes.ids.cpu())


def _terms(tuning: Tuning, terms: TrainingTerms, images: Tensor) -> dict[str, Tensor]:
    if terms.reconstruction is None:
        raise ValueError(
            "a tokenizer is tuned beside its reconstruction, got one without a pixel decoder; train one first"
        )
    unknown = sorted(set(tuning.weights) - set(terms.losses))
    if unknown:
        raise ValueError(
            f"weights must name terms out of {', '.join(terms.losses)}, got {', '.join(unknown)}; correct it"
        )
    own = {name: tuning.weights.get(name, 1.0) * value for name, value in terms.losses.items()}
    kept = {name: value for name, value in own.items() if tuning.weights.get(name, 1.0)}
    pixel_loss = tuning.pixel_loss or PixelLoss(1.0, 1.0)
    return {**pixel_loss(terms.reconstruction, images), **kept}


@torch.no_grad()
def _check_lookup(tokenizer: VisualTokenizer) -> None:
    """Raise unless the sums of a tokenizer's code vectors are what it embeds."""
    spec = tokenizer.spec
    sizes = torch.tensor([book.size for book in spec.columns])
    ids = torch.arange(spec.positions)[:, None] * torch.arange(1, spec.depth + 1) % sizes
    embedded = tokenizer.embed(Codes.full(ids[None].to(tokenizer.device), spec)).float()
    found = looked_up(tokenizer.code_vectors(), ids[None].to(tokenizer.device), spec).float()
    if embedded.shape != found.shape or not torch.allclose(embedded, found, atol=1e-4):
        raise ValueError(
            f"a tokenizer is tuned where its embedding adds the vectors of one codebook, got a "
            f"{type(tokenizer).__name__} whose {', '.join(book.name for book in spec.codebooks)} do not; share one "
            "table among the depths of each"
        )
