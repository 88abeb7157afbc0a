"""What a discriminator is to adversarial training, and the one of patches. Knows no loss and no tokenizer."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """Base of discriminators: images to logits that are high where images look real.

    A subclass sets ``minimum`` in its constructor and implements :meth:`judge`.
    """

    minimum: int  #: smallest side of an image, pixels

    @abstractmethod
    def judge(self, images: Tensor) -> list[Tensor]:
        """Logits of images that were checked; see :meth:`forward`."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """All logits of a batch: one tensor ``[B, ...]`` per head, of any float dtype.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1], need not be clamped.

        Raises:
            ValueError: images of another shape, or a side below ``minimum``.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}; add the axis that is missing")
        height, width = images.shape[2:]
        if min(height, width) < self.minimum:
            raise ValueError(
                f"this {type(self).__name__} needs sides of at least {self.minimum} pixels, got {height}x{width}; "
                "use larger images or fewer layers"
            )
        return self.judge(images)


class PatchDiscriminator(Discriminator):
    """PatchGAN: one real-or-fake logit per overlapping patch (pix2pix, https://arxiv.org/abs/1611.07004).

    A first strided convolution, ``layers`` more, of which the last keeps the sides, and a convolution to one logit;
    the receptive field is 70 pixels with three layers. One head, ``[B, 1, h, w]``. Where pix2pix normalises batches,
    which lets every logit depend on the other images and ties the result to the batch size and the number of processes,
    the weights are normalised spectrally (https://arxiv.org/abs/1802.05957): it bounds the slope of the discriminator,
    which is what keeps adversarial training stable, and leaves the statistics of an image, colour and contrast, visible
    to it. The norms are estimated anew at every call in training mode.

    Args:
        width: channels of the first layer; they double per layer, up to eight times.
        layers: layers between the first and the logits.

    Raises:
        ValueError: width or layers below 1.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(
                f"a patch discriminator needs width >= 1 and layers >= 1, got {width} and {layers}; 64 and 3 are usual"
            )
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        strides = [2] * (layers - 1) + [1]
        blocks = [_block(3, width, 2)]
        blocks += [_block(*shape) for shape in zip(widths, widths[1:], strides, strict=False)]
        self.blocks = nn.Sequential(*blocks)
        self.logits = spectral_norm(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.minimum = 3 * 2**layers

    def judge(self, images: Tensor) -> list[Tensor]:
        """See :meth:`Discriminator.judge`."""
        return [self.logits(self.blocks(images))]


def _block(before: int, after: int, stride: int) -> nn.Module:
    conv = spectral_norm(nn.Conv2d(before, after, 4, stride=stride, padding=1))
    return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))
