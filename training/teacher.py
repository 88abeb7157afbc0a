"""A small SigLIP of one's own, so that semantic codes can be taught without downloading anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from ..data.files import atomic_folder
from ..lm.vocabulary import Vocabulary
from .base import TrainingModule
from .data import ImageData
from .guard import GUARD, GuardSettings
from .optimizer import OPTIMIZER, OptimizerSettings


class TeacherTraining(TrainingModule):
    """Trains a ``transformers`` SigLIP from scratch on batches with ``images`` and ``text``.

    The sigmoid loss (https://arxiv.org/abs/2303.15343) asks of every image and caption of a batch whether they belong
    together; equal captions do. Logs ``train/retrieval`` and ``val/retrieval``: how often an image's best caption of
    its batch is its own.

    Args:
        vocabulary: of the captions.
        image_size: side of the square images, pixels.
        patch_size: side of a patch, pixels.
        width: hidden size of both towers.
        layers: transformer layers of each tower.
        heads: attention heads.
        text_length: longest caption, in pieces.
        optimizer: learning rate, schedule, decay and clipping.
        guard: see :class:`~smalti.training.base.TrainingModule`.
        seed: see :class:`~smalti.training.base.TrainingModule`.
        save_to: folder for the trained SigLIP, written when training ends;
            :meth:`~smalti.tokenizers.vision.VisionTower.from_checkpoint` reads it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        image_size: int,
        patch_size: int,
        *,
        width: int = 192,
        layers: int = 6,
        heads: int = 3,
        text_length: int = 32,
        optimizer: OptimizerSettings = OPTIMIZER,
        guard: GuardSettings = GUARD,
        seed: int = 0,
        save_to: str | None = None,
    ) -> None:
        super().__init__(optimizer, guard, seed)
        self.vocabulary, self.text_length, self.save_to = vocabulary, text_length, save_to
        self.padding = vocabulary.special("<pad>")
        size = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        text = size | {"vocab_size": self.padding + 1, "max_position_embeddings": text_length}
        text |= {"pad_token_id": self.padding, "bos_token_id": None, "eos_token_id": None, "projection_size": width}
        vision = size | {"image_size": image_size, "patch_size": patch_size}
        self.model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).train()
        with torch.no_grad():  # the paper's start: most pairs do not belong together
            self.model.logit_scale.fill_(math.log(10.0))
            self.model.logit_bias.fill_(-10.0)

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """As every module does; and one picture must be of the teacher's size and have a caption of known words."""
        super().check_run(trainer, data)
        if isinstance(data, ImageData):
            first = data.first()
            self.text_ids([first["text"]])
            height, width = first["images"].shape[1:]
            config: Any = self.model.config.vision_config  # transformers types it as a mapping
            side: int = config.image_size
            if (height, width) != (side, side):
                raise ValueError(
                    f"images must be {side}x{side} for a teacher of image_size {side}, got {height}x{width}; set the "
                    f"data's size to {side}"
                )

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """The sigmoid loss per image."""
        logits, pairs = self._compare(batch)
        self.log("train/retrieval", retrieval(logits, pairs))
        return sigmoid_loss(logits, pairs)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and retrieval on held-out pairs."""
        logits, pairs = self._compare(batch)
        found = {"val/loss": sigmoid_loss(logits, pairs), "val/retrieval": retrieval(logits, pairs)}
        self.log_dict(found, batch_size=len(logits), sync_dist=True, prog_bar=True)

    def save(self, folder: Path) -> None:
        """Write the SigLIP checkpoint."""
        with atomic_folder(folder) as unfinished:
            self.model.save_pretrained(unfinished)

    def text_ids(self, captions: list[str]) -> Tensor:
        """Ids ``[B, text_length]`` int64 of captions, padded on the right.

        Raises:
            ValueError: an empty caption, or one of more than ``text_length`` pieces or with an unknown word.
        """
        if not all(caption.strip() for caption in captions):
            raise ValueError(
                "a teacher needs a caption for every picture, got one without; add the missing captions or leave those "
                "pictures out"
            )
        return self.vocabulary.padded(captions, self.text_length)

    def _compare(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        captions: list[str] = batch["text"]
        ids = self.text_ids(captions).to(self.device)
        logits = self.model(input_ids=ids, pixel_values=batch["images"]).logits_per_image.float()
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        same = torch.tensor([numbers[caption] for caption in captions], device=logits.device)
        return logits, same[:, None] == same[None]


def sigmoid_loss(logits: Tensor, pairs: Tensor) -> Tensor:
    """Pairwise sigmoid loss, summed over captions and averaged over images.

    Args:
        logits: ``[B, B]`` image by caption.
        pairs: ``[B, B]`` bool, true where the two belong together.
    """
    return -F.logsigmoid(torch.where(pairs, logits, -logits)).sum(-1).mean()


def retrieval(logits: Tensor, pairs: Tensor) -> Tensor:
    """Fraction of images whose highest logit of ``[B, B]`` is at one of their captions."""
    return pairs.gather(1, logits.argmax(1, keepdim=True)).float().mean()
