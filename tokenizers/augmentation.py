"""Differentiable augmentation of what a discriminator sees. Draws nothing by itself: random numbers are an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

POLICY = ("color", "translation", "cutout")  #: all augmentations, in the order in which they are applied

_NUMBERS = 10  #: random numbers per image: three of colours, two of a shift, two of a hole, and one switch for each


@dataclass(frozen=True)
class Draws:
    """Random numbers for the augmentation of some images, one row per image, the same whatever the policy.

    Rows do not depend on each other. Real and fake images may share them, and the rows of a large batch may be split
    among processes: ``draws[2:4]``, ``draws[[0, 3]]``.

    Args:
        numbers: ``[B, 10]`` floats in [0, 1), on the CPU as they were drawn.

    Raises:
        ValueError: numbers of another shape.
    """

    numbers: Tensor

    def __post_init__(self) -> None:
        if self.numbers.ndim != 2 or self.numbers.shape[1] != _NUMBERS:
            raise ValueError(
                f"draws must be numbers [B, {_NUMBERS}], got {list(self.numbers.shape)}; take rows with a slice or a "
                "list of indices"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Draws:
        return Draws(self.numbers[rows])


class DiffAugment(nn.Module):
    """Augments real and fake images alike before a discriminator sees them (https://arxiv.org/abs/2006.10738).

    The discriminator cannot learn the training pictures by heart, and the generator's gradients flow through what was
    done to its pictures. With u, v in [0, 1) drawn for each image:

    * ``color``: brightness ``x + u - 1/2``; saturation, the distance of a pixel from its mean over channels, times
      ``2 u``; contrast, the distance from the mean of the image, times ``u + 1/2``.
    * ``translation``: moved by up to an eighth of each side, zeros behind.
    * ``cutout``: a hole of zeros, half the image's height and width, its centre anywhere in the image.

    Zero is grey. Values may leave [-1, 1]. It has no parameters and no state.

    Args:
        policy: those that are applied, whatever their order; none leaves images as they are.
        probability: with which each is applied to an image, 1 in the paper.

    Raises:
        ValueError: an unknown augmentation, or a probability outside [0, 1].
    """

    def __init__(self, policy: Sequence[str] = POLICY, probability: float = 1.0) -> None:
        super().__init__()
        unknown = sorted(set(policy) - set(POLICY))
        if unknown:
            raise ValueError(f"policy must be some of {', '.join(POLICY)}, got {', '.join(unknown)}; correct the names")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}; the paper augments with 1")
        self.policy, self.probability = tuple(policy), probability

    def draw(self, count: int, generator: Generator | None = None) -> Draws:
        """Numbers for ``count`` images.

        Args:
            count: number of images.
            generator: on the CPU, whatever the device of the images; torch's default one where there is none.
        """
        return Draws(torch.rand(count, _NUMBERS, generator=generator))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Augmented images, shape and dtype kept; equal draws do the same to any images of one size.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            draws: B rows.

        Raises:
            ValueError: images of another shape, or another number of rows.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(draws):
            raise ValueError(
                f"augmentation takes images [B, 3, H, W] and a row of draws for each, got {list(images.shape)} and "
                f"{len(draws)} rows; draw for the number of images"
            )
        numbers = draws.numbers.to(images.device)
        for name, (columns, switch, change) in _CHANGES.items():
            if name in self.policy:
                applied = (numbers[:, switch] < self.probability)[:, None, None, None]
                images = torch.where(applied, change(images, numbers[:, columns]), images)
        return images


def _color(images: Tensor, numbers: Tensor) -> Tensor:
    brightness, saturation, contrast = numbers.to(images.dtype)[..., None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _translation(images: Tensor, numbers: Tensor) -> Tensor:
    for dim, number in zip((2, 3), numbers.unbind(1), strict=True):
        size = images.shape[dim]
        most = (size + 4) // 8
        moved = _whole(number, 2 * most + 1) - most
        source = torch.arange(size, device=images.device) - moved[:, None]
        inside = _along(dim, (source >= 0) & (source < size))
        places = _along(dim, source.clamp(0, size - 1)).expand_as(images)
        images = images.gather(dim, places) * inside
    return images


def _cutout(images: Tensor, numbers: Tensor) -> Tensor:
    inside = list[Tensor]()
    for dim, number in zip((2, 3), numbers.unbind(1), strict=True):
        size = images.shape[dim]
        hole = (size + 1) // 2
        first = _whole(number, size + 1 - hole % 2)[:, None] - hole // 2
        place = torch.arange(size, device=images.device)
        inside.append(_along(dim, (place >= first) & (place < first + hole)))
    return images.masked_fill(inside[0] & inside[1], 0)


def _whole(numbers: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) as whole numbers in [0, count), each as likely."""
    return (numbers * count).long().clamp(max=count - 1)  # a product may be rounded up to count


def _along(dim: int, values: Tensor) -> Tensor:
    """``[B, size]`` as it stands along one side of images."""
    return values[:, None, :, None] if dim == 2 else values[:, None, None, :]


#: Name -> its columns among the draws, the column of its switch, and what it does.
_CHANGES: Mapping[str, tuple[slice, int, Callable[[Tensor, Tensor], Tensor]]] = {
    "color": (slice(0, 3), 7, _color),
    "translation": (slice(3, 5), 8, _translation),
    "cutout": (slice(5, 7), 9, _cutout),
}
