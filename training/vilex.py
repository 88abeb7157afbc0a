"""Training of ViLex: a picture's words, learned through the loss of a frozen text-to-image model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from ..data.transforms import resized
from ..generation.diffusion import load_scheduler
from ..generation.latents import AutoencoderLatents
from ..generation.loading import load_model
from ..generation.objectives import Times, draw_times, noised, prediction_of, training_scheduler
from ..generation.vilex import ViLex, ViLexPrompts, tail_drop
from ..tokenizers.held import Held
from ..tokenizers.queries import agree
from ..tokenizers.towers import Tower
from .base import TrainingModule
from .data import ImageData
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings, Trained
from .precision import SaveDtype, rounded


class ViLexTraining(TrainingModule):
    """Learns tokens from which a frozen text-to-image model denoises their picture (https://arxiv.org/abs/2412.06774).

    Batches hold ``images`` ``[B, 3, H, W]`` in [-1, 1] of the size that the model draws; the tower sees them resized to
    its own. A random tail of every picture's tokens is dropped. Autoencoder, UNet and text encoder rest: gradients flow
    through them, and they are no part of checkpoints. No picture is learned for an empty prompt, as where a denoiser
    learns guidance: a frozen model knows it already, and it has no token to teach. Logs ``train/loss`` and, with all
    tokens and the same times and noise every time, ``val/loss``.

    Args:
        model: folder of a ``StableDiffusionPipeline``; its ``vae``, ``unet``, ``text_encoder``, ``tokenizer`` and
            ``scheduler`` are read. The scheduler says whether noise or velocity is predicted.
        tower: vision transformer that the tokens are read from, as :class:`~smalti.tokenizers.vision.VisionTower`.
        count: tokens of a picture.
        heads: of the pooling, see :class:`~smalti.generation.vilex.ViLex`.
        freeze_tower: keep the tower as it is.
        times: how noise levels are drawn.
        optimizer: learning rate, schedule, decay and clipping.
        guard: see :class:`~smalti.training.base.TrainingModule`.
        seed: of all that training draws, except the tower and the order of the data.
        save_to: folder for the trained ViLex, written when training ends.
        save_dtype: precision of the written weights; half of it halves the file.

    Raises:
        FileNotFoundError: no such folder, or a part is missing.
        ValueError: damaged files, a model that is asked for more than a prompt, or more tokens than a prompt holds.
    """

    def __init__(
        self,
        model: str,
        tower: Tower,
        count: int = 75,
        heads: int | None = None,
        *,
        freeze_tower: bool = False,
        times: Times = "uniform",
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
        save_dtype: SaveDtype = "float32",
    ) -> None:
        super().__init__(optimizer, guard, seed)
        folder, self.save_to = Path(model), save_to
        self.times: Times = times
        self.save_dtype: SaveDtype = save_dtype
        self.tokenizer = _tokenizer(folder / "tokenizer")
        self.scheduler = training_scheduler(load_scheduler(folder / "scheduler"))
        text_encoder = load_model(CLIPTextModel, folder / "text_encoder")
        unet, vae = load_model(UNet2DConditionModel, folder / "unet"), load_model(AutoencoderKL, folder / "vae")
        _check(unet, vae, text_encoder)
        prediction_of(self.scheduler)
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        space = AutoencoderLatents(vae, unet.config.sample_size * stride, vae.config.scaling_factor)
        self.text_encoder, self.unet, self.space = Held(text_encoder), Held(unet), Held(space)
        words: Tensor = text_encoder.get_input_embeddings().weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vilex = ViLex(tower, words.shape[1], count, heads, float(words.std()), freeze_tower)
        if count > (room := self._prompts().room):
            raise ValueError(f"a prompt has room for {room} tokens, got a count of {count}; set it to {room} or less")

    def trained(self) -> Mapping[str, Trained]:
        """ViLex alone."""
        return {"vilex": Trained(self.vilex, self.settings.learning_rate)}

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and one picture must be of the size that the model draws."""
        super().check_run(trainer, data)
        size: tuple[int, int] = self.space.network.image_size
        if isinstance(data, ImageData) and (found := tuple(data.first()["images"].shape[1:])) != size:
            raise ValueError(
                f"images must be {size[0]}x{size[1]} (height x width) for this text-to-image model, got "
                f"{found[0]}x{found[1]}; set the data's size to {size[0]}"
            )

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean squared error of what the frozen model predicts from the tokens that are kept."""
        images: Tensor = batch["images"]
        draws = self.draws(len(images))
        clean = self.space.network.encode(images, draws.samples)
        times = draws.own(draw_times(self.times, draws.total, draws.step))
        rows = zip(self._tokens(images).split(1), draws.samples, strict=True)
        tokens = [tail_drop(row, generator)[0] for row, generator in rows]
        return self._loss(clean, tokens, times, draws.normal(*clean.shape[1:]))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same error with all tokens, fixed times and fixed noise."""
        images: Tensor = batch["images"]
        draws, clean = self.validation_draws(len(images), batch_idx), self.space.network.encode(images)
        found = self._loss(clean, list(self._tokens(images)), draws.spread(), draws.normal(*clean.shape[1:]))
        self.score({"val/loss": found}, len(images))

    def save(self, folder: Path) -> None:
        """Write ViLex."""
        with rounded(self.vilex, self.save_dtype):
            self.vilex.save_pretrained(folder)

    def _tokens(self, images: Tensor) -> Tensor:
        side = self.vilex.tower.image_size
        return self.vilex(resized(images, (side, side)))

    def _prompts(self) -> ViLexPrompts:
        return ViLexPrompts(self.vilex, self.tokenizer, self.text_encoder.network)

    def _loss(self, clean: Tensor, tokens: list[Tensor], times: Tensor, noise: Tensor) -> Tensor:
        made = noised(self.scheduler, clean, noise.to(clean), times.to(clean.device))
        states = self._prompts().write(tokens)
        found = self.unet.network(made.noisy, made.timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return F.mse_loss(found.float(), made.target)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    if not folder.is_dir():
        raise FileNotFoundError(f"a CLIPTokenizer was expected in {folder}, which is no folder; check the path")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _check(unet: Any, vae: Any, text_encoder: Any) -> None:
    """Raise unless these are the parts of a model that draws from a prompt alone."""
    config = unet.config
    asked = [name for name in ("class_embed_type", "addition_embed_type") if config.get(name) is not None]
    if asked:
        raise ValueError(
            f"ViLex is trained through a UNet that reads prompts alone, got one with {' and '.join(asked)}; take that "
            "of a StableDiffusionPipeline"
        )
    agree(
        {
            "the UNet's cross_attention_dim and the text encoder's width": (
                config.cross_attention_dim,
                text_encoder.config.hidden_size,
            ),
            "the UNet's in_channels and the latents' channels": (config.in_channels, vae.config.latent_channels),
        }
    )
