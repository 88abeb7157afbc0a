"""Training of xAR: flow matching over entities of latents that are computed as pictures come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from ..generation.latents import LatentSpace
from ..generation.xar import XARPipeline, XARSampling
from ..lm.conditions import Wanted, check_one_kind
from ..lm.vocabulary import Vocabulary
from ..lm.xar import XAR
from ..tokenizers.held import Shared
from .base import TrainingModule
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .pictures import PictureText, PictureTextData, PictureTexts
from .precision import SaveDtype, rounded
from .seeding import Draws

#: Pictures, the first of the training data, that the scale of latents is measured on, and how many at once.
_MEASURED, _TOGETHER = 1024, 64


class XARTraining(TrainingModule):
    """Learns velocities of noisy entities for what is said about their pictures (https://arxiv.org/abs/2502.20388).

    Latents are computed in the step, without gradient; a space that does not know their scale is measured on the first
    pictures when the run starts. The paper's recipe for ImageNet: AdamW with betas (0.9, 0.96), decay 0.02, rate 4e-4
    for batches of 2048, clip 1, dropout 0.1, average of weights with 0.9999 (``EMAWeightAveraging``).

    Args:
        latents: the latent space, see :func:`~smalti.generation.latents.tokenizer_latents` and
            :func:`~smalti.generation.latents.autoencoder_latents`.
        vocabulary: that captions are written in; None for a model of classes.
        width: W, channels between the layers.
        encoder_layers: blocks of the first stack.
        decoder_layers: blocks of the second.
        heads: of the attention.
        entity: what is generated at once: ``kind`` and ``side`` of :func:`~smalti.lm.entities.entities`; cells by
            default.
        classes: number of classes, for a model of classes; captions are then numbers.
        dropout: of attention weights and of what attention and feed-forward layers give.
        condition_dropout: share of the pictures that are learned for nothing, in [0, 1].
        sampling: kept in the model's configuration: how it draws where nobody says otherwise.
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite.
        seed: of all that training draws, except the order of the data.
        save_to: folder that receives latent space and model together when training ends.
        save_dtype: precision of the model's written weights; half of it halves the file.

    Raises:
        ValueError: a share outside [0, 1], a vocabulary beside classes or neither, or entities that the grid of the
            latents has not.
    """

    def __init__(
        self,
        latents: LatentSpace,
        vocabulary: Vocabulary | None = None,
        width: int = 768,
        encoder_layers: int = 8,
        decoder_layers: int = 8,
        heads: int = 12,
        *,
        entity: dict[str, Any] | None = None,
        classes: int = 0,
        dropout: float = 0.1,
        condition_dropout: float = 0.1,
        sampling: XARSampling | None = None,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout must lie in [0, 1], got {condition_dropout}; 0.1 is usual")
        check_one_kind(vocabulary, classes)
        self._latents = Shared(latents)  # not part of the checkpoint
        self.condition_dropout, self.save_to = condition_dropout, save_to
        self.save_dtype: SaveDtype = save_dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = XAR.build(
                Vocabulary(None) if vocabulary is None else vocabulary,
                width=width,
                encoder_layers=encoder_layers,
                decoder_layers=decoder_layers,
                heads=heads,
                channels=latents.channels,
                grid=latents.grid,
                entity=entity,
                classes=classes,
                dropout=dropout,
                sampling=asdict(sampling or XARSampling()),
            )
        self._numbers: dict[str, Any] | None = None

    @property
    def latents(self) -> LatentSpace:
        """The latent space, which rests."""
        return self._latents.network

    def trained(self) -> Mapping[str, Trained]:
        """The model alone."""
        return {"model": Trained(self.model, self.settings.learning_rate)}

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and the data must be pictures, of which a space without a scale needs some."""
        super().check_run(trainer, data)
        if data is not None and not isinstance(data, PictureTextData):
            raise ValueError(f"latents are computed from pictures, got {type(data).__name__}; use PictureTextData")
        if data is None and not self.latents.measured:
            raise ValueError(
                "the scale of latents is measured on the training pictures, got plain loaders; use PictureTextData or "
                "measure the latent space before"
            )

    def on_fit_start(self) -> None:
        """As every module; and measure the latents of a space that does not know their scale."""
        super().on_fit_start()
        torch.nn.Module.to(self.latents, self.device)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self._numbers is not None:
            self.latents.restore(self._numbers)
        elif not self.latents.measured:
            self.latents.measure(self._pictures(data.train_set()))
        self._numbers = self.latents.numbers()

    def training_loss(self, batch: list[PictureText]) -> Tensor:
        """Mean squared error of the velocities."""
        draws = self.draws(len(batch))
        dropped = draws.chosen(self.condition_dropout)
        texts = [None if drop else item["caption"] for item, drop in zip(batch, dropped, strict=True)]
        images = torch.stack([item["images"] for item in batch]).to(self.device)
        return self._loss(self.latents.encode(images, draws.samples), texts, draws)

    def validation_step(self, batch: list[PictureText], batch_idx: int) -> None:
        """The same error, with the same times and noise every time."""
        images = torch.stack([item["images"] for item in batch]).to(self.device)
        draws = self.validation_draws(len(batch), batch_idx)
        found = self._loss(self.latents.encode(images), [item["caption"] for item in batch], draws)
        self.score({"val/loss": found}, len(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and the scale of the latents."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latents"] = self._numbers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and the scale of the latents."""
        super().on_load_checkpoint(checkpoint)
        self._numbers = checkpoint.get("latents")

    def save(self, folder: Path) -> None:
        """Write latent space and model."""
        self.model.config.tokenizer_fingerprint = self.latents.fingerprint()
        with rounded(self.model, self.save_dtype):
            XARPipeline(self.latents, self.model).save_pretrained(folder)

    def _loss(self, latents: Tensor, texts: list[str | None], draws: Draws) -> Tensor:
        entities = self.model.entities
        times = draws.normal(entities.count).sigmoid()
        noise = draws.normal(*entities.cut(latents).shape[1:])
        return self.model(latents, self._wanted(texts), times, noise).loss

    def _wanted(self, texts: list[str | None]) -> list[Wanted]:
        return [self.model.condition.wanted(text) for text in texts]

    def _pictures(self, pictures: PictureTexts) -> Iterator[Tensor]:
        for part in torch.arange(min(len(pictures), _MEASURED)).split(_TOGETHER):
            yield torch.stack([pictures[int(index)]["images"] for index in part]).to(self.device)
