"""Training of every tokenizer family: pixel losses, the family's own terms, a teacher and a discriminator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from ..data.transforms import resized
from ..tokenizers.augmentation import DiffAugment
from ..tokenizers.base import TrainingTerms, VisualTokenizer
from ..tokenizers.convolutional import Decoder
from ..tokenizers.discriminator import Discriminator
from ..tokenizers.losses import PixelLoss
from ..tokenizers.towers import Tower
from .adversarial import ADVERSARIAL, AdversarialSettings, Look, Reconstructed, adversarial_terms, resting
from .anchors import LogitAnchors
from .base import TrainingModule
from .contrast import Contrast
from .data import ImageData
from .frozen import Frozen
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded
from .seeding import Place, step_generator
from .usage import CodeUsage


class TokenizerTraining(TrainingModule):
    """Trains a tokenizer on batches with ``images`` ``[B, 3, H, W]`` in [-1, 1].

    Logs every term under ``train/``, usage and perplexity of each codebook, and on validation ``val/psnr`` (decibel,
    mean over images), ``val/l1`` and usage of the decoded codes; without a pixel loss every term under ``val/``.

    With a discriminator, what shows whether a run is healthy: ``train/adversarial`` and ``train/discriminator`` (the
    losses), ``train/logits_real`` and ``train/logits_fake`` (means), ``train/adaptive_weight``, and ``train/lecam`` and
    ``train/r1`` where they have a weight. The same global batch gives the same weights on any number of processes; see
    :class:`AdversarialSettings` for accumulated batches. Where the sum of pixel losses rises far above its best, the
    run goes back to a snapshot, and the adversarial term begins anew: warm-up, ramp, and a weight that is lower by the
    factor ``guard/cooling``.

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
        discriminator: Discriminator | None = None,
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
        anchored = discriminator is not None and adversarial.lecam > 0
        self.anchors = LogitAnchors(adversarial.lecam_decay) if anchored else None
        self.augment = DiffAugment(adversarial.augment)
        self._since = 0  # optimizer step at which the adversarial warm-up began anew
        self.guard.watched = "training loss" if pixel_loss is None else "sum of pixel losses"
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
        if pixel:
            total = torch.stack(list(pixel.values())).sum()
            self.watch(total)
            if self.discriminator is not None and terms.reconstruction is not None:
                losses |= self._adversarial(self.discriminator, batch["images"], terms.reconstruction, total)
        self.usage.update(terms.codes)
        self.show({f"train/{name}": value for name, value in losses.items()})
        if self.logs_now:
            self.log_dict(self.usage.compute())
        total = torch.stack([value.float() for value in losses.values()]).sum()
        return total + resting(self.discriminator) if self.discriminator is not None and self._rests() else total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the optimizer off a discriminator that does not train yet: zeros would still decay its weights."""
        if self.discriminator is not None and self._rests():
            self.discriminator.zero_grad(set_to_none=True)

    def on_roll_back(self) -> None:
        """Begin the warm-up and the ramp of the adversarial term anew."""
        self._since = self.global_step + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and the codes seen of late, and when the adversarial warm-up began."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["usage"] = self.usage.state_dict()
        checkpoint["adversarial"] = {"since": self._since}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and the codes seen of late, and when the adversarial warm-up began.

        Moving averages of logits begin anew where the run that wrote the checkpoint had none.
        """
        super().on_load_checkpoint(checkpoint)
        self.usage.load_state_dict(checkpoint.get("usage", {}))
        self._since = checkpoint.get("adversarial", {}).get("since", 0)
        if self.anchors is not None:
            fresh = {f"anchors.{name}": value for name, value in self.anchors.state_dict().items()}
            for key in {"state_dict", "current_model_state"} & set(checkpoint):
                checkpoint[key] = fresh | checkpoint[key]

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
        self.score(found, len(images))

    def on_validation_epoch_end(self) -> None:
        """As every module; and log the usage of the codes just decoded."""
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.validation_usage.compute().items()}, sync_dist=True)
        self.validation_usage.reset()

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        with rounded(self.tokenizer, self.save_dtype):
            self.tokenizer.save_pretrained(folder)

    def _targets(self, images: Tensor) -> dict[str, Tensor]:
        if self._teacher is None:
            return {}
        side = getattr(self._teacher.network, "image_size", images.shape[-1])
        features = self._teacher(resized(images, (side, side)))
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
        self, discriminator: Discriminator, images: Tensor, reconstruction: Tensor, pixel: Tensor
    ) -> dict[str, Tensor]:
        if self._rests():
            return {}
        place, decoder = self.place(), cast(Decoder, self.tokenizer.decoder)
        batch = Reconstructed(images, reconstruction, pixel, decoder.last_layer)
        look = self._look(place, len(images))
        weight = self.adversarial.generator_weight(place.step, self._since) * self.guard.cooling
        found = adversarial_terms(discriminator, self.anchors, self.adversarial, batch, look, place, weight)
        self.show({f"train/{name}": value for name, value in found.seen.items()})
        return found.losses

    def _rests(self) -> bool:
        return self.global_step < self.adversarial.start

    def _look(self, place: Place, count: int) -> Look:
        """The augmentation of this process's rows: drawn for all samples of the step, so that samples keep theirs."""
        if not self.augment.policy:
            return lambda images: images
        rows, total = place.rows(count, self.trainer.global_rank, self.trainer.world_size)
        draws = self.augment.draw(total, step_generator(self.seed, place.step))[rows]
        return lambda images: self.augment(images, draws)


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
