"""Losses between pictures, and the adversarial losses of a discriminator's logits. Knows no tokenizer family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .perceptual import Perceptual


class PixelLoss(nn.Module):
    """How far a reconstruction is from its images: absolute, squared and perceptual difference, each with a weight.

    Args:
        l1: weight of the mean absolute difference.
        l2: weight of the mean squared difference.
        perceptual: a frozen perceptual distance, or none.
        perceptual_weight: its weight.

    Raises:
        ValueError: a negative weight, or no weight above zero.
    """

    def __init__(
        self, l1: float = 1.0, l2: float = 0.0, perceptual: Perceptual | None = None, perceptual_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.weights = {"l1": l1, "l2": l2, "perceptual": 0.0 if perceptual is None else perceptual_weight}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"weights of pixel losses must be >= 0 and one of them above zero, "
                f"got l1 {l1}, l2 {l2}, perceptual {self.weights['perceptual']}"
            )
        self.perceptual = perceptual

    def forward(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Weighted float32 scalars named ``l1``, ``l2`` and ``perceptual``; terms of weight zero are left out.

        Args:
            reconstruction: ``[B, 3, H, W]``, need not be clamped.
            images: ``[B, 3, H, W]`` in [-1, 1].

        Raises:
            ValueError: shapes that differ.
        """
        if reconstruction.shape != images.shape:
            raise ValueError(
                f"a reconstruction must have the shape of its images, {list(images.shape)}, "
                f"got {list(reconstruction.shape)}; resize one of them"
            )
        reconstruction, images = reconstruction.float(), images.float()
        return {
            name: weight * self._term(name, reconstruction, images) for name, weight in self.weights.items() if weight
        }

    def _term(self, name: str, reconstruction: Tensor, images: Tensor) -> Tensor:
        if self.perceptual is not None and name == "perceptual":
            return self.perceptual(reconstruction, images)
        return (F.l1_loss if name == "l1" else F.mse_loss)(reconstruction, images)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator, ``(mean(relu(1 - real)) + mean(relu(1 + fake))) / 2`` (arXiv 1705.02894).

    Args:
        real: logits of images, any shape.
        fake: logits of detached reconstructions, any shape.

    Returns:
        A float32 scalar >= 0.
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def leaky_hinge_discriminator(real: Tensor, fake: Tensor, slope: float = 0.01) -> Tensor:
    """The hinge of the DualToken release (arXiv 2503.14324): margins that are met still count, ``slope`` times.

    The paper names a plain hinge, :func:`hinge_discriminator`. This one has no lower bound.

    Args:
        real: logits of images, any shape.
        fake: logits of detached reconstructions, any shape.
        slope: weight of margins that are met.

    Returns:
        A float32 scalar.
    """
    margins = F.leaky_relu(1 - real.float(), slope).mean() + F.leaky_relu(1 + fake.float(), slope).mean()
    return 0.5 * margins


def hinge_generator(fake: Tensor) -> Tensor:
    """Adversarial loss of a decoder, ``-mean(fake)``, a float32 scalar from logits of any shape (arXiv 1705.02894)."""
    return -torch.mean(fake.float())
