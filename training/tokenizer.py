"""Training of every tokenizer family: pixel losses, the family's own terms, a teacher and a discriminator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.base import TrainingTerms, VisualTokenizer
from ..tokenizers.convolutional import Decoder
from ..tokenizers.discriminator import PatchDiscriminator
from ..tokenizers.losses import PixelLoss
from ..tokenizers.towers import Tower
from .adversarial import ADVERSARIAL, AdversarialSettings, adaptive_weight, discriminator_term, generator_term
from .base import TrainingModule
from .contrast import Contrast
from .data import ImageData
from .frozen import Frozen
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded
from .usage import CodeUsage


class TokenizerTraining(TrainingModule):
    """Trains a tokenizer on batches with ``images`` ``[B, 3, H, W]`` in [-1, 1].

    Logs every term under ``train/``, usage and perplexity of each codebook, and on validation ``val/psnr`` (decibel,
    mean over images), ``val/l1`` and usage of the decoded codes; without a pixel loss every term under ``val/``.

    Args:
        tokenizer: any family.
        pixel_loss: between reconstruction and images; None for stages that train no pixels.
        weights: of the family's own terms and of ``contrast`` by name; 1 where none is given, and what has 0 is left
            out.
        only: names of the tokenizer's parts, or of parts of those, that this stage trains; all others stay as they
            are. All by default.
        teacher: gives the family its targets, from images resized to its size; frozen, and not part of checkpoints.
        contrast: of the pictures' features with their captions, for families that have one; none by default.
        discriminator: for an adversarial loss; none by default.
        adversarial: when and how much it counts.
        optimizer: of the tokenizer; the discriminator shares all but the learning rate.
        guard: see :class:`~smalti.training.base.TrainingModule`.
        seed: see :class:`~smalti.training.base.TrainingModule`.
        save_to: folder for the trained tokenizer, written when training ends; averaged weights where they are averaged.
        save_dtype: precision of the written weights; half of it halves the file.

    Raises:
        ValueError: a discriminator without a pixel decoder and a pixel loss, or a part that the tokenizer lacks; at the
            first step, weights of unknown terms, a teacher that the family does not learn from, or a contrast or pixel
            loss for a family that has nothing to compare.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        pixel_loss: PixelLoss | None,
        *,
        weights: dict[str, float] | None = None,
        only: list[str] | None = None,
        teacher: Tower | None = None,
        contrast: Contrast | None = None,
        discriminator: PatchDiscriminator | None = None,
        adversarial: AdversarialSettings = ADVERSARIAL,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        painted = isinstance(getattr(tokenizer, "decoder", None), Decoder) and pixel_loss is not None
        if discriminator is not None and not painted:
            raise ValueError(
                f"an adversarial loss needs a tokenizer with a pixel decoder and a pixel loss beside it, got a "
                f"{type(tokenizer).__name__} without; leave the discriminator out"
            )
        self._resting = _rest(tokenizer, only)
        self.tokenizer, self.contrast = tokenizer, contrast
        self.pixel_loss, self.discriminator, self.adversarial = pixel_loss, discriminator, adversarial
        self.weights, self.save_to = dict(weights or {}), save_to
        self.save_dtype: SaveDtype = save_dtype
        self._teacher = None if teacher is None else Frozen(teacher)
        self.usage, self.validation_usage = CodeUsage(), CodeUsage()

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and one picture must be of a size that the tokenizer takes."""
        super().check_run(trainer, data)
        if isinstance(data, ImageData):
            first = data.first()
            self.tokenizer.check_images(first["images"][None])
            if self.contrast is not None:
                self.contrast.text.ids([first["text"]])

    def train(self, mode: bool = True) -> Self:
        """As every module; parts that this stage does not train stay in evaluation mode."""
        super().train(mode)
        for part in self._resting:
            part.eval()
        return self

    def trained(self) -> Mapping[str, Trained]:
        """The generator (the tokenizer) and, where there are any, the contrast and the discriminator."""
        rate = self.settings.learning_rate
        parts = {"generator": Trained(self.tokenizer, rate)}
        if self.contrast is not None:
            parts["contrast"] = Trained(self.contrast, rate)
        if self.discriminator is not None:
            parts["discriminator"] = Trained(self.discriminator, self.adversarial.learning_rate or rate)
        return parts

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The sum of all terms, those of the discriminator included."""
        terms, losses, pixel = self._terms(batch)
        if self.discriminator is not None and terms.reconstruction is not None:
            total = torch.stack(list(pixel.values())).sum()
            losses |= self._adversarial(self.discriminator, batch["images"], terms.reconstruction, total)
        self.usage.update(terms.codes)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log_dict(self.usage.compute())
        return torch.stack([value.float() for value in losses.values()]).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Encode, decode, compare; without a pixel loss, the terms of training."""
        images: Tensor = batch["images"]
        if self.pixel_loss is None:
            terms, losses, _ = self._terms(batch)
            self.validation_usage.update(terms.codes)
            found = {f"val/{name}": value for name, value in losses.items()}
        else:
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

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        with rounded(self.tokenizer, self.save_dtype):
            self.tokenizer.save_pretrained(folder)

    def _targets(self, images: Tensor) -> dict[str, Tensor]:
        if self._teacher is None:
            return {}
        features = self._teacher(_resized(images, self._teacher.module))
        return {"tokens": features.tokens, "pooled": features.pooled}

    def _terms(self, batch: dict[str, Any]) -> tuple[TrainingTerms, dict[str, Tensor], dict[str, Tensor]]:
        """What the family says, all weighted terms, and those of pixels alone."""
        images: Tensor = batch["images"]
        terms = self.tokenizer.training_step_terms(images, **self._targets(images))
        pixel = {} if self.pixel_loss is None else self._pixel(self.pixel_loss, terms, images)
        return terms, pixel | self._weighted(terms, batch), pixel

    def _pixel(self, loss: PixelLoss, terms: TrainingTerms, images: Tensor) -> dict[str, Tensor]:
        if terms.reconstruction is None:
            raise ValueError(
                f"a pixel loss needs a tokenizer with a pixel decoder, got a {type(self.tokenizer).__name__} without; "
                "set pixel_loss to null"
            )
        return loss(terms.reconstruction, images)

    def _weighted(self, terms: TrainingTerms, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = dict(terms.losses)
        if self.contrast is not None:
            if terms.summary is None:
                raise ValueError(
                    f"{type(self.tokenizer).__name__} has no feature to compare with captions; leave the contrast out"
                )
            losses["contrast"] = self.contrast(terms.summary, batch["text"])
        unknown = sorted(set(self.weights) - set(losses))
        if unknown:
            raise ValueError(
                f"weights must name terms of {type(self.tokenizer).__name__}, which are {', '.join(losses)}, "
                f"got {', '.join(unknown)}"
            )
        if self._teacher is not None and not any(name.startswith("distill.") for name in losses):
            raise ValueError(f"{type(self.tokenizer).__name__} learns nothing from a teacher; leave the teacher out")
        weighed = {name: self.weights.get(name, 1.0) for name in losses}
        return {name: weight * losses[name] for name, weight in weighed.items() if weight}

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


def _resized(images: Tensor, teacher: nn.Module) -> Tensor:
    """Images of the teacher's own size (bicubic), where theirs is another."""
    side = getattr(teacher, "image_size", images.shape[-1])
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True)


def _rest(tokenizer: VisualTokenizer, only: list[str] | None) -> Sequence[nn.Module]:
    """Freeze all parts but these and what is inside them; the frozen ones."""
    tokenizer.train()
    if only is None:
        return []
    named: Sequence[tuple[str, nn.Module]] = list(tokenizer.named_modules())[1:]
    unknown = sorted(set(only) - {name for name, _ in named})
    if unknown or not only:
        known = ", ".join(name for name, _ in tokenizer.named_children())
        raise ValueError(
            f"only must name parts of {type(tokenizer).__name__}, which are {known}, and parts of those, got "
            f"{', '.join(unknown) or 'none'}; correct the names"
        )
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and _inside(name, only))
    around = [name for name, _ in named if any(_inside(part, [name]) for part in only)]
    resting = [part for name, part in named if name not in around and not _inside(name, only)]
    for part in resting:
        part.eval()
    return resting


def _inside(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
