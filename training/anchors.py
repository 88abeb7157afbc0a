"""What a discriminator said of late, which LeCAM holds it to. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tokenizers.losses import lecam
from .processes import averaged


class LogitAnchors(nn.Module):
    """Moving averages of the mean logits of real and of fake images, for LeCAM (https://arxiv.org/abs/2104.03310).

    One optimizer step is one observation, of however many batches and processes it is made: its means are collected
    and enter the averages when the next step begins. All batches of a step see the same anchors. Every number is a
    buffer, so that checkpoints, steps that are left out and returns to a snapshot treat it like a codebook.

    Args:
        decay: of the averages, in [0, 1).
    """

    means: Tensor  #: [2] float32: of real and of fake images
    steps: Tensor  #: scalar float32: steps in them
    pending: Tensor  #: [3] float32: sums over the batches of the last step, real and fake, and the number of batches

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("pending", torch.zeros(3))

    @torch.no_grad()
    def begin_step(self) -> None:
        """Let the step before enter the averages; the first becomes the averages."""
        sums, count = self.pending[:2], self.pending[2]
        kept = torch.where(self.steps > 0, self.decay, 0.0)
        moved = kept * self.means + (1 - kept) * sums / count.clamp(min=1)
        self.means.copy_(torch.where(count > 0, moved, self.means))
        self.steps += (count > 0).float()
        self.pending.zero_()

    @torch.no_grad()
    def collect(self, means: Tensor) -> None:
        """Add the mean logits ``[2]`` of one batch, of real and of fake images over all processes."""
        self.pending += torch.cat([means.float(), means.new_ones(1)])

    def loss(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """LeCAM's penalty, a float32 scalar; zero as long as no step has entered the averages.

        Args:
            real: logits of images, one tensor per head.
            fake: logits of detached reconstructions.
        """
        anchor_real, anchor_fake = self.means.clone()
        return (self.steps > 0).float() * lecam(real, fake, anchor_real, anchor_fake)


def mean_logits(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """``[2]`` float32: means over heads, images and processes of the logits of real and of fake images."""
    means = [torch.stack([logits.detach().float().mean() for logits in heads]).mean() for heads in (real, fake)]
    return averaged(torch.stack(means))
