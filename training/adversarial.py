"""The two adversarial losses of one step, each reaching its own side only, and when they count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..tokenizers.losses import hinge_discriminator, hinge_generator


@dataclass(frozen=True)
class AdversarialSettings:
    """When and how much the discriminator counts.

    Args:
        weight: of the generator's term, on top of the adaptive weight.
        start: optimizer steps before the discriminator begins to train.
        warmup: further steps in which it trains but does not count for the generator.
        ramp: further steps over which its weight rises to ``weight``.
        clamp: range of the adaptive weight; [0.3, 10] is DualToken's.
        learning_rate: of the discriminator; that of the generator by default.

    Raises:
        ValueError: a negative number of steps, or a clamp out of order.
    """

    weight: float = 0.75
    start: int = 0
    warmup: int = 500
    ramp: int = 1000
    clamp: tuple[float, float] = (0.3, 10.0)
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if min(self.start, self.warmup, self.ramp) < 0:
            raise ValueError(
                f"start, warmup and ramp must be >= 0 steps, got {self.start}, {self.warmup} and {self.ramp}"
            )
        if not 0 <= self.clamp[0] <= self.clamp[1]:
            raise ValueError(f"clamp must be 0 <= low <= high, got {self.clamp}; (0.3, 10) is usual")

    def generator_weight(self, step: int) -> float:
        """Weight of the generator's term at an optimizer step: 0 until the warm-up is over, then a linear ramp."""
        counted = step - self.start - self.warmup
        return 0.0 if counted < 0 else self.weight * min(1.0, (counted + 1) / max(1, self.ramp))


ADVERSARIAL = AdversarialSettings()  #: the defaults


def generator_term(discriminator: nn.Module, reconstruction: Tensor) -> Tensor:
    """Hinge loss of the generator: gradients reach ``reconstruction`` ``[B, 3, H, W]``, not the discriminator."""
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fixed |= {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    return hinge_generator(functional_call(discriminator, fixed, (reconstruction,)))


def discriminator_term(discriminator: nn.Module, images: Tensor, reconstruction: Tensor) -> Tensor:
    """Hinge loss of the discriminator: gradients reach the discriminator, not ``reconstruction``."""
    return hinge_discriminator(discriminator(images), discriminator(reconstruction.detach()))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, clamp: tuple[float, float]) -> Tensor:
    """``|d reconstruction / d last| / (|d adversarial / d last| + 1e-4)`` (https://arxiv.org/abs/2012.09841).

    Args:
        reconstruction: scalar, all pixel losses.
        adversarial: scalar, the generator's term.
        last: weight of the decoder's last layer, on which both depend.
        clamp: smallest and largest weight.

    Returns:
        A scalar without gradient.
    """
    pixel = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].float().norm()
    opposed = torch.autograd.grad(adversarial, last, retain_graph=True)[0].float().norm()
    return (pixel / (opposed + 1e-4)).clamp(*clamp).detach()
