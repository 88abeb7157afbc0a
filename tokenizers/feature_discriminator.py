"""The discriminator that looks at images through a frozen vision tower."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from .discriminator import Discriminator
from .held import Held
from .towers import Tower


class FeatureDiscriminator(Discriminator):
    """Small trained heads on hidden states of a frozen vision tower (projected GAN, https://arxiv.org/abs/2111.01007).

    One head per layer, each with one logit per patch, ``[B, N]``, as StyleGAN-T (https://arxiv.org/abs/2301.09515) has
    them on DINO and VAR and UniTok after it. A head projects the patches, mixes neighbours in raster order and reads a
    logit; its weights are normalised spectrally. StyleGAN-T's heads norm batches; here the hidden states are normed
    patch by patch, so that logits do not depend on the other images of a batch.

    Images of other sizes are resized (bicubic, antialiased) to the tower's square. The tower is held outside the module
    tree, see :class:`~smalti.tokenizers.held.Held`: it is neither trained nor saved, and gradients flow through it to
    the images.

    Args:
        tower: the vision tower, frozen in place and kept in float32.
        layers: indices into its hidden states, one per head; 0 is what the first layer reads, ``depth`` and -1 the
            last.
        kernel: patches that are mixed, in raster order; the last and the first are neighbours.

    Raises:
        ValueError: no layers, layers that the tower lacks or that are named twice, or a kernel that is even or longer
            than the patches.
    """

    def __init__(self, tower: Tower, layers: Sequence[int], kernel: int = 9) -> None:
        super().__init__()
        self.layers = _places(layers, tower.depth)
        if kernel % 2 == 0 or not 0 < kernel <= tower.grid**2:
            raise ValueError(
                f"kernel must be odd and in [1, {tower.grid**2}], the tower's number of patches, got {kernel}; "
                "9 is usual"
            )
        self.held = Held(tower)
        self.heads = nn.ModuleList(_Head(tower.width, kernel) for _ in self.layers)
        self.minimum = 1

    @property
    def tower(self) -> Tower:
        """The frozen tower."""
        return self.held.network

    def judge(self, images: Tensor) -> list[Tensor]:
        """See :meth:`Discriminator.judge`."""
        side, dtype = self.tower.image_size, next(self.heads.parameters()).dtype
        images = images.float()
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        hidden = self._hidden(images)
        return [head(hidden[layer].to(dtype)) for head, layer in zip(self.heads, self.layers, strict=True)]

    def _hidden(self, images: Tensor) -> dict[int, Tensor]:
        """The patches ``[B, N, C]`` after each layer that a head reads."""
        hidden, at, found = self.tower.stem(images), 0, dict[int, Tensor]()
        for layer in sorted(self.layers):
            hidden, at = self.tower.run(hidden, at, layer), layer
            found[layer] = self.tower.on_grid(hidden)
        return found


class _Head(nn.Module):
    """Patches to logits."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.project = spectral_norm(nn.Conv1d(width, width, 1))
        self.mix = spectral_norm(nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular"))
        self.logits = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, N]``."""
        projected = F.leaky_relu(self.project(self.norm(hidden).transpose(1, 2)), 0.2)
        mixed = F.leaky_relu(self.mix(projected), 0.2)
        return self.logits((projected + mixed) * 0.5**0.5)[:, 0]


def _places(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers as indices from 0 to ``depth``, in the order given."""
    if not all(-depth - 1 <= layer <= depth for layer in layers):
        raise ValueError(
            f"layers must lie in [{-depth - 1}, {depth}], the tower's hidden states, got {list(layers)}; "
            "0 is what the first layer reads"
        )
    places = tuple(layer % (depth + 1) for layer in layers)
    if not places or len(set(places)) < len(places):
        raise ValueError(
            f"layers must name at least one hidden state, and none twice, got {list(layers)}; -1 is the last"
        )
    return places
