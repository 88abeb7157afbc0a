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
from .processes import collected, everywhere


class TeacherTraining(TrainingModule):
    """Trains a ``transformers`` SigLIP from scratch on batches with ``images`` and ``text``.

    The sigmoid loss (https://arxiv.org/abs/2303.15343) asks of every image and caption of a batch, of all processes
    together, whether they belong together; equal captions do. Logs ``train/retrieval`` and ``val/retrieval``: how often
    an image's best caption of its batch is its own.

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
        self._held_out, self._together = list[tuple[Tensor, ...]](), 0
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
        pictures, texts, ids = self._features(batch)
        logits, pairs = self._compare(pictures, ids, everywhere(texts), everywhere(ids))
        self.show({"train/retrieval": retrieval(logits, pairs)})
        return sigmoid_loss(logits, pairs)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Note the features of held-out pairs, to be compared when those of all processes are there."""
        features = self._features(batch)
        self._held_out += zip(*(part.cpu() for part in features), strict=True)
        self._together = max(self._together, len(features[0]))

    def on_validation_start(self) -> None:
        """As every module; and forget the features of a validation that did not come to its end."""
        super().on_validation_start()
        self._held_out, self._together = [], 0

    def on_validation_epoch_end(self) -> None:
        """Score loss and retrieval, in batches as large as those of all processes together."""
        pairs = collected(self._held_out)
        size = max(collected([self._together])) * self._seat()[1]
        self._held_out, self._together = [], 0
        for start in range(0, len(pairs) if self.global_rank == 0 else 0, size):
            pictures, texts, ids = (
                torch.stack(part).to(self.device) for part in zip(*pairs[start:][:size], strict=True)
            )
            logits, same = self._compare(pictures, ids, texts, ids)
            found = {"val/loss": sigmoid_loss(logits, same), "val/retrieval": retrieval(logits, same)}
            self.score(found, len(logits))
        super().on_validation_epoch_end()

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

    def _features(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Of pictures and captions, ``[B, C]`` of length 1, and the ids of the captions."""
        ids = self.text_ids(batch["text"]).to(self.device)
        found = self.model(input_ids=ids, pixel_values=batch["images"])
        return found.image_embeds.float(), found.text_embeds.float(), ids

    def _compare(self, pictures: Tensor, ids: Tensor, texts: Tensor, all_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, T]`` of pictures by texts, and which belong together: those whose captions have equal ids."""
        logits = pictures @ texts.T * self.model.logit_scale.float().exp() + self.model.logit_bias.float()
        return logits, (ids[:, None] == all_ids[None]).all(-1)


def sigmoid_loss(logits: Tensor, pairs: Tensor) -> Tensor:
    """Pairwise sigmoid loss, summed over captions and averaged over images.

    Args:
        logits: ``[B, T]`` image by caption.
        pairs: ``[B, T]`` bool, true where the two belong together.
    """
    return -F.logsigmoid(torch.where(pairs, logits, -logits)).sum(-1).mean()


def retrieval(logits: Tensor, pairs: Tensor) -> Tensor:
    """Fraction of images whose highest logit of ``[B, T]`` is at one of their captions."""
    return pairs.gather(1, logits.argmax(1, keepdim=True)).float().mean()
