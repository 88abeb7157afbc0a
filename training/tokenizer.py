"""Training of every tokenizer family: pixel losses, the family's own terms, a teacher and a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from ..tokenizers.base import TrainingTerms, VisualTokenizer
from ..tokenizers.convolutional import Decoder
from ..tokenizers.discriminator import PatchDiscriminator
from ..tokenizers.losses import PixelLoss
from ..tokenizers.vision import VisionTower
from .adversarial import ADVERSARIAL, AdversarialSettings, adaptive_weight, discriminator_term, generator_term
from .base import TrainingModule
from .data import ImageData
from .frozen import Frozen
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded
from .usage import CodeUsage


class TokenizerTraining(TrainingModule):
    """Trains a tokenizer on batches with ``images`` ``[B, 3, H, W]`` in [-1, 1].

    Logs every term under ``train/``, usage and perplexity of each codebook, and on validation ``val/psnr`` (decibel,
    mean over images), ``val/l1`` and usage of the decoded codes.

    Args:
        tokenizer: any family.
        pixel_loss: between reconstruction and images.
        weights: of the family's own terms by name; 1 where none is given.
        teacher: gives the family its targets; frozen, and not part of checkpoints.
        discriminator: for an adversarial loss; none by default.
        adversarial: when and how much it counts.
        optimizer: of the tokenizer; the discriminator shares all but the learning rate.
        guard: see :class:`~smalti.training.base.TrainingModule`.
        seed: see :class:`~smalti.training.base.TrainingModule`.
        save_to: folder for the trained tokenizer, written when training ends; averaged weights where they are averaged.
        save_dtype: precision of the written weights; half of it halves the file.

    Raises:
        ValueError: a discriminator beside a tokenizer without a pixel decoder; at the first step, weights of unknown
            terms, or a teacher that the family does not learn from.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        pixel_loss: PixelLoss,
        *,
        weights: dict[str, float] | None = None,
        teacher: VisionTower | None = None,
        discriminator: PatchDiscriminator | None = None,
        adversarial: AdversarialSettings = ADVERSARIAL,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        if discriminator is not None and not isinstance(getattr(tokenizer, "decoder", None), Decoder):
            raise ValueError(
                f"an adversarial loss needs a tokenizer with a pixel decoder, got {type(tokenizer).__name__}; "
                "leave the discriminator out"
            )
        self.tokenizer = tokenizer.train()
        self.pixel_loss, self.discriminator, self.adversarial = pixel_loss, discriminator, adversarial
        self.weights, self.save_to = dict(weights or {}), save_to
        self.save_dtype: SaveDtype = save_dtype
        self._teacher = None if teacher is None else Frozen(teacher)
        self.usage, self.validation_usage = CodeUsage(), CodeUsage()

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and one picture must be of a size that the tokenizer takes."""
        super().check_run(trainer, data)
        if isinstance(data, ImageData):
            self.tokenizer.check_images(data.first()["images"][None])

    def trained(self) -> Mapping[str, Trained]:
        """The generator (the tokenizer) and, where there is one, the discriminator."""
        rate = self.settings.learning_rate
        parts = {"generator": Trained(self.tokenizer, rate)}
        if self.discriminator is not None:
            parts["discriminator"] = Trained(self.discriminator, self.adversarial.learning_rate or rate)
        return parts

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The sum of all terms, those of the discriminator included."""
        images: Tensor = batch["images"]
        terms = self.tokenizer.training_step_terms(images, **self._targets(images))
        pixel = self.pixel_loss(terms.reconstruction, images)
        losses = pixel | self._weighted(terms)
        if self.discriminator is not None:
            reconstruction = torch.stack(list(pixel.values())).sum()
            losses |= self._adversarial(self.discriminator, images, terms.reconstruction, reconstruction)
        self.usage.update(terms.codes)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log_dict(self.usage.compute())
        return torch.stack([value.float() for value in losses.values()]).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Encode, decode, compare."""
        images: Tensor = batch["images"]
        codes = self.tokenizer.encode(images)
        difference = (self.tokenizer.decode(codes).float() - images.float()).flatten(1)
        psnr = 10 * torch.log10(4 / difference.square().mean(1).clamp(min=1e-10))
        self.validation_usage.update(codes)
        found = {"val/psnr": psnr.mean(), "val/l1": difference.abs().mean()}
        self.log_dict(found, batch_size=len(images), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the codes just decoded."""
        self.log_dict({f"val/{name}": value for name, value in self.validation_usage.compute().items()})
        self.validation_usage.reset()

    def on_fit_end(self) -> None:
        """Write the tokenizer; also where a resumed run had no step left."""
        super().on_fit_end()
        if self.save_to is not None and self.trainer.is_global_zero:
            with rounded(self.tokenizer, self.save_dtype):
                self.tokenizer.save_pretrained(self.save_to)

    def _targets(self, images: Tensor) -> dict[str, Tensor]:
        if self._teacher is None:
            return {}
        features = self._teacher(images)
        return {"tokens": features.tokens, "pooled": features.pooled}

    def _weighted(self, terms: TrainingTerms) -> dict[str, Tensor]:
        unknown = sorted(set(self.weights) - set(terms.losses))
        if unknown:
            raise ValueError(
                f"weights must name terms of {type(self.tokenizer).__name__}, which are {', '.join(terms.losses)}, "
                f"got {', '.join(unknown)}"
            )
        if self._teacher is not None and not any(name.startswith("distill.") for name in terms.losses):
            raise ValueError(f"{type(self.tokenizer).__name__} learns nothing from a teacher; leave the teacher out")
        return {name: self.weights.get(name, 1.0) * value for name, value in terms.losses.items()}

    def _adversarial(
        self, discriminator: nn.Module, images: Tensor, reconstruction: Tensor, pixel: Tensor
    ) -> dict[str, Tensor]:
        settings, step = self.adversarial, self.global_step
        if step < settings.start:
            return {}
        losses: dict[str, Tensor] = {}
        weight = settings.generator_weight(step)
        if weight > 0:
            term = generator_term(discriminator, reconstruction)
            decoder: Any = self.tokenizer.decoder
            balance = adaptive_weight(pixel, term, decoder.last_layer, settings.clamp)
            losses["adversarial"] = weight * balance * term
            self.log("train/adaptive_weight", balance)
        # Last, because spectral norms move when the discriminator is called.
        losses["discriminator"] = discriminator_term(discriminator, images, reconstruction)
        return losses
