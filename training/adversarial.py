"""The adversarial losses of one step, each reaching its own side only, and when they count. Knows no Lightning.

Written so that neither the number of processes nor, but for the adaptive weight, the number of batches that a step is
made of changes what is learnt from the same samples: whatever is not a mean over samples is averaged over processes
before it is used, and whatever moves by itself moves once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList

from ..tokenizers.augmentation import DiffAugment
from ..tokenizers.discriminator import Discriminator
from ..tokenizers.losses import AdversarialKind, discriminator_loss, generator_loss, gradient_penalty
from .anchors import LogitAnchors, mean_logits
from .processes import averaged
from .seeding import Place


@dataclass(frozen=True)
class AdversarialSettings:
    """Which adversarial losses, when and how much they count.

    Args:
        weight: of the generator's term, on top of the adaptive weight.
        start: optimizer steps before the discriminator begins to train.
        warmup: further steps in which it trains but does not count for the generator; anew after a return to a
            snapshot, which also lowers ``weight`` as it lowers the learning rates.
        ramp: further steps over which its weight rises to ``weight``.
        clamp: range of the adaptive weight; [0.3, 10] is DualToken's.
        learning_rate: of the discriminator; that of the generator by default.
        loss: ``hinge`` (https://arxiv.org/abs/1705.02894), ``non-saturating`` (https://arxiv.org/abs/1406.2661), or
            ``leaky-hinge``, that of the DualToken release.
        adaptive: weigh the generator's term by its gradient, as VQGAN does. The weight is that of a batch over all
            processes; with accumulated batches every one has its own, so that two halves are not exactly one whole.
        augment: what real and fake pictures go through before the discriminator sees them, the same for both
            (https://arxiv.org/abs/2006.10738); ``color``, ``translation`` and ``cutout`` for small data sets.
        lecam: weight of LeCAM's regularization (https://arxiv.org/abs/2104.03310); 0 leaves it out.
        lecam_decay: of its moving averages, per optimizer step.
        r1: weight of the penalty on the squared gradient at real images (https://arxiv.org/abs/1801.04406), gamma / 2
            in the paper; 0 leaves it out.
        r1_every: optimizer steps between penalties, each weighted as often (lazy, https://arxiv.org/abs/1912.04958).

    Raises:
        ValueError: a number out of range, a clamp out of order, or an unknown loss or augmentation.
    """

    weight: float = 0.75
    start: int = 0
    warmup: int = 500
    ramp: int = 1000
    clamp: tuple[float, float] = (0.3, 10.0)
    learning_rate: float | None = None
    loss: AdversarialKind = "hinge"
    adaptive: bool = True
    augment: tuple[str, ...] = ()
    lecam: float = 0.0
    lecam_decay: float = 0.999
    r1: float = 0.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        if min(self.start, self.warmup, self.ramp) < 0:
            raise ValueError(
                f"start, warmup and ramp must be >= 0 steps, got {self.start}, {self.warmup} and {self.ramp}"
            )
        if not 0 <= self.clamp[0] <= self.clamp[1]:
            raise ValueError(f"clamp must be 0 <= low <= high, got {self.clamp}; (0.3, 10) is usual")
        if min(self.weight, self.lecam, self.r1) < 0:
            raise ValueError(
                f"weight, lecam and r1 must be >= 0, got {self.weight}, {self.lecam} and {self.r1}; 0 leaves a term out"
            )
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}; null takes the generator's")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"lecam_decay must lie in [0, 1), got {self.lecam_decay}; 0.999 is usual")
        if self.r1_every < 1:
            raise ValueError(f"r1_every must be >= 1 step, got {self.r1_every}; 16 is usual")
        if self.loss not in get_args(AdversarialKind):
            raise ValueError(f"loss must be one of {', '.join(get_args(AdversarialKind))}, got {self.loss}")
        DiffAugment(self.augment)

    def generator_weight(self, step: int, since: int = 0) -> float:
        """Weight of the generator's term: 0 until the warm-up is over, then a linear ramp.

        Args:
            step: optimizer steps so far.
            since: step of the last return to a snapshot, at which warm-up and ramp began anew.
        """
        counted = step - max(self.start, since) - self.warmup
        return 0.0 if counted < 0 else self.weight * min(1.0, (counted + 1) / max(1, self.ramp))


ADVERSARIAL = AdversarialSettings()  #: the defaults

#: What images go through before the discriminator sees them.
Look = Callable[[Tensor], Tensor]


@dataclass
class AdversarialTerms:
    """What one batch adds to training."""

    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  #: weighted scalars, to be summed
    seen: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  #: scalars without gradient, worth a curve


@dataclass(frozen=True)
class Reconstructed:
    """One batch of a generator."""

    images: Tensor  #: [B, 3, H, W] in [-1, 1]
    reconstruction: Tensor  #: [B, 3, H, W], with gradients
    pixel: Tensor  #: scalar, all pixel losses
    last: Tensor  #: weight of the decoder's last layer, on which all losses of pixels depend


def adversarial_terms(
    discriminator: Discriminator,
    anchors: LogitAnchors | None,
    settings: AdversarialSettings,
    batch: Reconstructed,
    look: Look,
    place: Place,
    weight: float,
) -> AdversarialTerms:
    """Losses of generator and discriminator, to be added to one total: each reaches its own side only.

    Args:
        discriminator: in training mode.
        anchors: of LeCAM, where it has a weight.
        settings: see there.
        batch: what the generator was given and made.
        look: the augmentation of this batch.
        place: of the batch in the run.
        weight: of the generator's term, on top of the adaptive weight; at 0 it is not computed.
    """
    found = AdversarialTerms()
    with still(discriminator, move=place.part == 0):
        if weight > 0:
            term = generator_term(discriminator, look(batch.reconstruction), settings.loss)
            if settings.adaptive:
                balance = adaptive_weight(batch.pixel, term, batch.last, settings.clamp)
                found.seen["adaptive_weight"], term = balance, balance * term
            found.losses["adversarial"] = weight * term
        real, fake = discriminator(look(batch.images)), discriminator(look(batch.reconstruction.detach()))
        found.losses["discriminator"] = discriminator_loss(settings.loss, real, fake)
        if settings.r1 > 0 and place.step % settings.r1_every == 0:
            images = batch.images.to(next(discriminator.parameters()).dtype)
            slopes = gradient_penalty(lambda given: discriminator(look(given)), images)
            found.losses["r1"] = settings.r1 * settings.r1_every * slopes
    means = mean_logits(real, fake)
    found.seen["logits_real"], found.seen["logits_fake"] = means
    if anchors is not None:
        if place.part == 0:
            anchors.begin_step()
        found.losses["lecam"] = settings.lecam * anchors.loss(real, fake)
        anchors.collect(means)
    return found


def generator_term(discriminator: nn.Module, reconstruction: Tensor, kind: AdversarialKind = "hinge") -> Tensor:
    """Loss of the generator: gradients reach ``reconstruction`` ``[B, 3, H, W]``, not the discriminator."""
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fixed |= {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    return generator_loss(kind, functional_call(discriminator, fixed, (reconstruction,)))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, clamp: tuple[float, float]) -> Tensor:
    """``|d reconstruction / d last| / (|d adversarial / d last| + 1e-4)`` (https://arxiv.org/abs/2012.09841).

    Gradients are averaged over processes before their norms are taken.

    Args:
        reconstruction: scalar, all pixel losses.
        adversarial: scalar, the generator's term.
        last: weight of the decoder's last layer, on which both depend.
        clamp: smallest and largest weight.

    Returns:
        A scalar without gradient.
    """
    terms = (reconstruction, adversarial)
    found = [torch.autograd.grad(term, last, retain_graph=True)[0].float() for term in terms]
    pixel, opposed = (gradient.norm() for gradient in averaged(torch.stack(found)))
    return (pixel / (opposed + 1e-4)).clamp(*clamp).detach()


def resting(discriminator: nn.Module) -> Tensor:
    """A zero that reaches every parameter: what is trained in several processes must take part in every step."""
    return torch.stack([p.float().sum() for p in discriminator.parameters() if p.requires_grad]).sum() * 0


@contextmanager
def still(discriminator: nn.Module, *, move: bool) -> Generator[None]:
    """Keep estimated norms of weights as they are, after one step of their iteration if they are to ``move``.

    Spectral norms otherwise move at every call, and three calls make a batch: the weights would depend on the order of
    the calls and on the number of batches.
    """
    found = [module for module in discriminator.modules() if isinstance(module, ParametrizationList)]
    training = [part.training for part in found]
    try:
        for part in found:
            if move:
                with torch.no_grad():
                    part()
            part.eval()
        yield
    finally:
        for part, mode in zip(found, training, strict=True):
            part.train(mode)
