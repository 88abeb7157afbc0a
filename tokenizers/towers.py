"""What a vision tower is to the families that read one: layers that can be run, left and entered anywhere."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from .component import Component


@dataclass(frozen=True)
class VisionFeatures:
    """What a vision tower says about a batch of images."""

    tokens: Tensor  #: [B, N, C] hidden states of the patches before the last layer
    pooled: Tensor  #: [B, C] one vector per image


class Tower(Component):
    """A vision transformer, opened up so that hidden states can be read and replaced.

    Hidden states are ``[B, prefix + N, C]``: tokens that belong to no patch, then the patches in raster order. A
    subclass sets the five numbers below in its constructor and implements the abstract methods.
    """

    image_size: int  #: side of the square images, pixels
    patch_size: int  #: side of a patch, pixels
    width: int  #: C
    depth: int  #: number of transformer layers
    prefix: int  #: tokens before the patches: class token and registers

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """What the first layer reads: ``[B, 3, H, W]`` in [-1, 1] to ``[B, prefix + N, C]``."""

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor:
        """Patches without positions: ``[B, 3, H, W]`` to ``[B, N, C]``, equal for equal patches wherever they are."""

    @abstractmethod
    def layer(self, index: int) -> nn.Module:
        """The transformer layer of an index in [0, depth)."""

    @abstractmethod
    def run(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Layers ``start`` to ``stop - 1`` over ``[B, prefix + N, C]``."""

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer; shape kept.

        Raises:
            ValueError: a tower that has none apart from its pooling.
        """
        raise ValueError(f"a {type(self).__name__} has no norm to be run alone, got {list(hidden.shape)}; use another")

    @abstractmethod
    def pool(self, hidden: Tensor) -> Tensor:
        """One vector per image: the norm after the last layer, then the head or the class token; to ``[B, C]``."""

    @abstractmethod
    def freeze_pooling(self) -> None:
        """Take what only :meth:`pool` runs, which some users never do, out of training."""

    def on_grid(self, hidden: Tensor) -> Tensor:
        """The patches alone: ``[B, prefix + N, C]`` to ``[B, N, C]``."""
        return hidden[:, self.prefix :]

    def forward(self, images: Tensor) -> VisionFeatures:
        """Features of ``[B, 3, H, W]`` images in [-1, 1]."""
        hidden = self.run(self.stem(images), 0, self.depth - 1)
        pooled = self.pool(self.run(hidden, self.depth - 1, self.depth))
        return VisionFeatures(self.on_grid(hidden), pooled)
