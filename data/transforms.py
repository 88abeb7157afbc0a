"""Pictures to tensors and back: crop, resize, range. Pillow does the resampling; nothing here needs torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CropMode = Literal["center", "random", "adm"]
Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]


@dataclass(frozen=True)
class Crop:
    """A picture of any size to one fixed size, without distortion.

    ``center`` resizes until the picture just covers ``size`` (the longer side is rounded down) and cuts out the
    middle. ``random`` cuts a box of the aspect of ``size``, whose share of the largest such box is drawn from
    ``scale``, at a random place, and resizes it. Downscaling is antialiased, with every filter but nearest.

    ``adm`` is the crop under which ImageNet scores are published (ADM, https://arxiv.org/abs/2105.05233; LlamaGen, VAR,
    MAR): halved with a box filter while the shorter side is at least twice ``size``, then bicubic until it is ``size``
    (the longer side is rounded to the nearest), then the middle is cut out. Its filters are fixed: ``filter`` does not
    apply to it and stays at its default.

    Raises:
        ValueError: a size, scale, mode or filter out of range; ``adm`` with a filter of its own or a size that is not
            square.
    """

    size: int | tuple[int, int]  #: side of a square, or (height, width), in pixels
    mode: CropMode = "center"
    filter: Filter = "lanczos"
    flip: bool = False  #: mirror every second picture, by chance
    scale: tuple[float, float] = (0.8, 1.0)  #: random mode: least and greatest share of the shorter side

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"expected a crop of at least 1x1, got size {self.size}; choose a positive size")
        if self.mode not in get_args(CropMode):
            raise ValueError(f"expected a crop mode of {', '.join(get_args(CropMode))}, got {self.mode!r}; choose one")
        if self.filter not in get_args(Filter):
            raise ValueError(f"expected a filter of {', '.join(get_args(Filter))}, got {self.filter!r}; choose one")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"expected 0 < least <= greatest <= 1 as scale, got {self.scale}; choose such a range")

        if self.mode == "adm" and self.filter != "lanczos":
            raise ValueError(
                f"the crop adm halves with box and ends with bicubic, got filter {self.filter!r}; leave the filter out"
            )
        if self.mode == "adm" and self.shape[0] != self.shape[1]:
            raise ValueError(f"the crop adm cuts squares, got size {self.size}; choose one side, or the mode center")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    @property
    def deterministic(self) -> bool:
        """Whether the same picture always gives the same crop."""
        return self.mode != "random" and not self.flip

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> Image.Image:
        """Crop ``image``.

        Args:
            image: any size of at least 1x1.
            generator: draws the place, the scale and the flip; may be None where ``deterministic``.

        Returns:
            An image of ``shape``, in the mode of ``image``.

        Raises:
            ValueError: the crop is random and there is no generator.
        """
        if self.deterministic:
            return self._middle(image)
        if generator is None:
            raise ValueError(
                "expected a generator for a random crop or flip, got None; pass numpy.random.default_rng(seed)"
            )
        cropped = self._random(image, generator) if self.mode == "random" else self._middle(image)
        if self.flip and generator.random() < 0.5:
            return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return cropped

    def describe(self) -> dict[str, object]:
        """What decides the pixels, as JSON values, for a protocol record."""
        record: dict[str, object] = {
            "size": list(self.shape),
            "mode": self.mode,
            "filter": "box halving, then bicubic" if self.mode == "adm" else self.filter,
            "flip": self.flip,
        }
        return record | ({"scale": list(self.scale)} if self.mode == "random" else {})

    def _middle(self, image: Image.Image) -> Image.Image:
        return self._adm(image) if self.mode == "adm" else self._center(image)

    def _adm(self, image: Image.Image) -> Image.Image:
        side = self.shape[0]
        while min(image.size) >= 2 * side:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))

    def _center(self, image: Image.Image) -> Image.Image:
        height, width = self.shape
        if height * image.width >= width * image.height:  # the picture is the wider one: its height decides
            resized = max(width, height * image.width // image.height), height
        else:
            resized = width, max(height, width * image.height // image.width)
        image = image.resize(resized, self._resampling)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _random(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        height, width = self.shape
        unit = min(image.height / height, image.width / width) * generator.uniform(*self.scale)
        # A panorama's box may be thinner than a pixel; Pillow needs one whole pixel.
        box_width, box_height = min(image.width, max(1, unit * width)), min(image.height, max(1, unit * height))
        left = generator.random() * (image.width - box_width)
        top = generator.random() * (image.height - box_height)
        return image.resize((width, height), self._resampling, (left, top, left + box_width, top + box_height))

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling[self.filter.upper()]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as ``[3, H, W]`` float32, ``v / 127.5 - 1`` in ``[-1, 1]``; `to_uint8` is its exact inverse.

    Raises:
        ValueError: the picture is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"expected a picture of mode RGB, got {image.mode}; convert it with .convert('RGB')")
    return from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def from_uint8(levels: Tensor) -> Tensor:
    """Levels 0 to 255 of any shape as contiguous float32 in ``[-1, 1]``."""
    return levels.contiguous().float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Pictures as 8-bit levels: ``floor(127.5 x + 128)``, clamped to 0..255.

    This is the rounding under which all 256 levels of `to_tensor` come back unchanged; plain truncation of
    ``127.5 (x + 1)`` corrupts a quarter of them.

    Args:
        images: ``[..., 3, H, W]``, any float dtype, nominally in ``[-1, 1]``; values beyond are clamped.

    Returns:
        uint8 of the same shape.

    Raises:
        TypeError: the tensor is not floating point.
        ValueError: the shape is another, or a value is NaN.
    """
    if not images.is_floating_point():
        raise TypeError(f"expected floating-point images in [-1, 1], got {images.dtype}; convert them with from_uint8")
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"expected images of shape [..., 3, H, W], got {list(images.shape)}; move the channels there")
    if bool(images.isnan().any()):
        raise ValueError(f"expected finite images, got {int(images.isnan().sum())} NaN values; find where they arise")
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Pictures ``[..., 3, H, W]`` in ``[-1, 1]`` as a flat list of RGB images, by `to_uint8` and with its errors."""
    levels = to_uint8(images).flatten(0, -4) if images.ndim > 3 else to_uint8(images)[None]
    return [Image.fromarray(level.permute(1, 2, 0).cpu().numpy()) for level in levels]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, 3, H, W]`` pictures at another (height, width), bicubic and antialiased; they themselves at their own."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)
