"""Image and text features of a contrastive teacher, for distances between sets and for zero-shot classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SiglipModel

from ...lm.vocabulary import Vocabulary
from ...tokenizers.perceptual import BackboneLoss
from ..protocol import state_hash


class TeacherFeatures:
    """A SigLIP (https://arxiv.org/abs/2303.15343) that reads pictures in [-1, 1] at its own size.

    Args:
        checkpoint: local folder of a SigLIP with both towers, as :class:`~smalti.training.teacher.TeacherTraining`
            writes it.
        vocabulary: of its captions.
        device: where it runs.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, checkpoint: str, vocabulary: Vocabulary, device: str = "cpu") -> None:
        if not Path(checkpoint).is_dir():
            raise FileNotFoundError(f"a SigLIP was expected in {checkpoint}, which is no folder; train or copy one")
        model: Any = SiglipModel.from_pretrained(checkpoint, use_safetensors=True)
        self._model, self._vocabulary = model.eval().to(device), vocabulary
        self.checkpoint = checkpoint
        self._length: int = model.config.text_config.max_position_embeddings
        self.side: int = model.config.vision_config.image_size
        self.dim: int = model.config.vision_config.hidden_size
        self.hash = state_hash(model.state_dict())
        self.name = f"SigLIP vision tower, pooled, {self.dim} features, trained on the data of this comparison"

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Features ``[B, C]`` float32 of ``[B, 3, H, W]``, resized where the size is another (bicubic)."""
        images = images.to(self._model.device).float()
        if images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        return self._model.vision_model(pixel_values=images).pooler_output.float().cpu()

    def perceptual(self) -> BackboneLoss:
        """The perceptual distance over its vision tower, on the CPU."""
        return BackboneLoss(self.checkpoint)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features ``[K, C]`` float32 of captions.

        Raises:
            ValueError: a caption too long for the text tower, or with an unknown word.
        """
        ids = self._vocabulary.padded(texts, self._length).to(self._model.device)
        return self._model.text_model(input_ids=ids).pooler_output.float().cpu()


def zero_shot(features: Tensor, classes: Tensor) -> Tensor:
    """The class ``[B]`` int64 whose text features ``[K, C]`` have the highest cosine with each of ``[B, C]``."""
    return (F.normalize(features.float(), dim=-1) @ F.normalize(classes.float(), dim=-1).T).argmax(-1)
