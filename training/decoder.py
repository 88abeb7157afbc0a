"""Training of diffusion decoders: what a frozen tokenizer's codes stand for, learned from noise and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from ..data.transforms import resized
from ..eval.images.metrics import psnr
from ..generation.diffusion import SAMPLING, DecoderSampling, Denoiser, DiffusionDecoder
from ..generation.latents import LatentSpace
from ..generation.objectives import Times, draw_times, noised, training_scheduler
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .base import TrainingModule
from .data import ImageData
from .encode import saved_tokenizer
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded


class DecoderTraining(TrainingModule):
    """Learns to draw pictures ``images`` ``[B, 3, H, W]`` in [-1, 1] from their codes.

    The tokenizer codes the pictures in the step, without gradient, resized where it takes another size than the decoder
    draws. Logs ``train/loss``; on validation ``val/loss`` with the same times and noise every time and, of the first
    batch drawn with the decoder's own sampling, ``val/psnr`` (decibel). Average the weights with Lightning's
    ``EMAWeightAveraging``: the averages are what is written.

    Args:
        tokenizer: folder of the tokenizer, which stays as it is.
        denoiser: a ``UNet2DConditionModel`` or ``PixArtTransformer2DModel`` of ``diffusers``, whose ``sample_size`` is
            the side of the pictures, or of the latents; it starts from weights of ``seed``.
        scheduler: of ``diffusers``; says how noise is mixed in and what is predicted: ``epsilon``, ``sample`` or
            ``v_prediction`` (``DDIMScheduler`` and others), or the velocity of straight paths
            (``FlowMatchEulerDiscreteScheduler``).
        space: latents to denoise in place of pixels, see :func:`~smalti.generation.latents.autoencoder_latents`.
        layers: transformer blocks among the codes before the denoiser attends to them.
        heads: of their attention.
        condition_dropout: share of the pictures that are learned without codes, for guidance, in [0, 1].
        times: how noise levels are drawn.
        sampling: kept with the decoder: how it draws.
        optimizer: learning rate, schedule, decay and clipping.
        guard: see :class:`~smalti.training.base.TrainingModule`.
        seed: of all that training draws, except the order of the data.
        save_to: folder for the trained decoder, written when training ends.
        save_dtype: precision of the written weights; half of it halves the file.

    Raises:
        FileNotFoundError: no such tokenizer.
        ValueError: a share outside [0, 1], or a denoiser that does not fit tokenizer, scheduler or latents.
    """

    def __init__(
        self,
        tokenizer: str,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        space: LatentSpace | None = None,
        *,
        layers: int = 1,
        heads: int = 4,
        condition_dropout: float = 0.1,
        times: Times = "uniform",
        sampling: DecoderSampling = SAMPLING,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout must lie in [0, 1], got {condition_dropout}; 0.1 is usual")
        frozen = saved_tokenizer(tokenizer).eval().requires_grad_(requires_grad=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = type(denoiser).from_config(denoiser.config)
            self.decoder = DiffusionDecoder.build(frozen, made, scheduler, space, sampling, layers, heads)
        self._noising = training_scheduler(scheduler)
        self.condition_dropout, self.save_to = condition_dropout, save_to
        self.times: Times = times
        self.save_dtype: SaveDtype = save_dtype

    @property
    def tokenizer(self) -> VisualTokenizer:
        """Whose codes are decoded; it rests."""
        return self.decoder.tokenizer

    def trained(self) -> Mapping[str, Trained]:
        """The decoder alone."""
        return {"decoder": Trained(self.decoder, self.settings.learning_rate)}

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and one picture must be of the size that the decoder draws."""
        super().check_run(trainer, data)
        if isinstance(data, ImageData):
            images = data.first()["images"][None]
            self.decoder.clean(images)
            self.tokenizer.check_images(self._seen(images))

    def on_fit_start(self) -> None:
        """As every module; the tokenizer follows to the device."""
        super().on_fit_start()
        torch.nn.Module.to(self.tokenizer, self.device)

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean squared error of what is predicted."""
        images: Tensor = batch["images"]
        draws = self.draws(len(images))
        clean = self.decoder.clean(images, draws.samples)
        dropped = draws.uniform() < self.condition_dropout
        times = draws.own(draw_times(self.times, draws.total, draws.step))
        noise = draws.normal(*clean.shape[1:])
        return self._loss(clean, self._codes(images), times, noise, dropped)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same error with fixed times and noise; of the first batch, what is drawn."""
        images: Tensor = batch["images"]
        codes, clean = self._codes(images), self.decoder.clean(images)
        draws = self.validation_draws(len(images), batch_idx)
        noise = draws.normal(*clean.shape[1:])
        times, none = draws.spread(), torch.zeros(len(images), dtype=torch.bool)
        found = {"val/loss": self._loss(clean, codes, times, noise, none)}
        if batch_idx == 0:
            found["val/psnr"] = psnr(self.decoder.decode(codes, draws.samples).float(), images.float()).mean()
        self.score(found, len(images))

    def save(self, folder: Path) -> None:
        """Write the decoder."""
        self.decoder.eval()
        with rounded(self.decoder, self.save_dtype):
            self.decoder.save_pretrained(folder)

    def _codes(self, images: Tensor) -> Codes:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.tokenizer.encode(self._seen(images).to(self.tokenizer.dtype))

    def _seen(self, images: Tensor) -> Tensor:
        return resized(images, self.tokenizer.image_size)

    def _loss(self, clean: Tensor, codes: Codes, times: Tensor, noise: Tensor, dropped: Tensor) -> Tensor:
        made = noised(self._noising, clean, noise.to(clean), times.to(clean.device))
        memory, mask = self.decoder.read_codes(codes)
        memory = torch.where(dropped.to(memory.device)[:, None, None], self.decoder.condition.none_for(memory), memory)
        return F.mse_loss(self.decoder.predict(made.noisy, made.timesteps, memory, mask), made.target)
