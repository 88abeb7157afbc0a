"""Losses between pictures, and the adversarial losses of a discriminator's logits. Knows no tokenizer family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .perceptual import Perceptual

AdversarialKind = Literal["hinge", "non-saturating", "leaky-hinge"]


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


def discriminator_loss(kind: AdversarialKind, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Loss of a discriminator: half of what it pays for both sides, mean over heads.

    ``hinge`` is ``(mean(relu(1 - real)) + mean(relu(1 + fake))) / 2`` (arXiv 1705.02894), ``non-saturating`` is
    ``(mean(softplus(-real)) + mean(softplus(fake))) / 2``, the cross-entropy of real and fake (arXiv 1406.2661).
    ``leaky-hinge`` is the hinge of DualToken's release (arXiv 2503.14324, whose paper names a plain one): a margin that
    is met still counts, by a hundredth, so that it has no lower bound. Papers write sums; the half is the habit of
    VQGAN and its heirs, kept for all. Logits of 0 cost 1, log 2 and 1.

    Args:
        kind: which of them.
        real: logits of images, one tensor of any shape per head.
        fake: logits of detached reconstructions, as many.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: another kind, no heads, or unequally many.
    """
    cost = _cost(kind)
    sides = [(cost(ours.float()).mean() + cost(-theirs.float()).mean()) / 2 for ours, theirs in _heads(real, fake)]
    return torch.stack(sides).mean()


def generator_loss(kind: AdversarialKind, fake: Sequence[Tensor]) -> Tensor:
    """Adversarial loss of a decoder, mean over heads: ``-mean(fake)`` beside a hinge, else ``mean(softplus(-fake))``.

    Args:
        kind: that of the discriminator's loss.
        fake: logits of reconstructions, one tensor of any shape per head.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: another kind, or no heads.
    """
    cost = _cost(kind)
    climb = cost if kind == "non-saturating" else torch.neg
    return torch.stack([climb(theirs.float()).mean() for theirs, _ in _heads(fake, fake)]).mean()


def lecam(real: Sequence[Tensor], fake: Sequence[Tensor], anchor_real: Tensor, anchor_fake: Tensor) -> Tensor:
    """``mean(relu(real - anchor_fake)^2) + mean(relu(anchor_real - fake)^2)``, mean over heads (arXiv 2104.03310).

    It holds the logits of each side near the average of the other's, which keeps a discriminator of few images from
    growing sure of itself.

    Args:
        real: logits of images, one tensor of any shape per head.
        fake: logits of detached reconstructions, as many.
        anchor_real: scalar, a moving average of the mean of ``real`` over steps.
        anchor_fake: scalar, that of ``fake``.

    Returns:
        A float32 scalar >= 0, not weighted.

    Raises:
        ValueError: no heads, or unequally many.
    """
    sides = [
        F.relu(ours.float() - anchor_fake).square().mean() + F.relu(anchor_real - theirs.float()).square().mean()
        for ours, theirs in _heads(real, fake)
    ]
    return torch.stack(sides).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> Tensor:
    """R1: the squared slope of the discriminator at real images, ``mean_b |d sum(logits_b) / d images_b|^2``.

    The paper (arXiv 1801.04406) weights it by half of its gamma, and has one logit per image. Where there are more, of
    patches or heads, they are summed, and the penalty grows with their number. It is taken outside autocast, and
    attention runs in plain kernels, the only ones that can be differentiated twice.

    Args:
        discriminator: gives all logits of a batch; their gradients reach its parameters.
        images: ``[B, 3, H, W]`` real images in [-1, 1], of the dtype of its weights.

    Returns:
        A float32 scalar >= 0, not weighted.
    """
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        total = torch.stack([logits.float().sum() for logits in discriminator(images)]).sum()
        (slopes,) = torch.autograd.grad(total, images, create_graph=True)
    return slopes.float().flatten(1).square().sum(1).mean()


def _cost(kind: AdversarialKind) -> Callable[[Tensor], Tensor]:
    """What a logit that should be high costs."""
    if kind not in _COSTS:
        raise ValueError(f"an adversarial loss is one of {', '.join(_COSTS)}, got {kind!r}; use one of those")
    return _COSTS[kind]


def _heads(real: Sequence[Tensor], fake: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The logits of each head, those of images and of reconstructions."""
    if not real or len(real) != len(fake):
        raise ValueError(
            f"adversarial losses need logits of the same heads, one or more, got {len(real)} and {len(fake)}; pass all "
            "that a discriminator returns"
        )
    return list(zip(real, fake, strict=True))


_COSTS: Mapping[AdversarialKind, Callable[[Tensor], Tensor]] = {
    "hinge": lambda logits: F.relu(1 - logits),
    "non-saturating": lambda logits: F.softplus(-logits),
    "leaky-hinge": lambda logits: F.leaky_relu(1 - logits, 0.01),
}
