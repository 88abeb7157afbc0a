"""Continuous latent spaces for models that generate latents: pictures in, grids of numbers near unit variance out.

A space is an autoencoder of ``diffusers``, or a tokenizer of ours read before its quantizer. Knows no model.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..data.files import atomic_file, atomic_folder
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from ..tokenizers.vq import VQTokenizer
from .detokenizers import Generators
from .loading import load_model

#: The file that says what a space is, beside the folder ``model``.
ABOUT = "latents.json"


class LatentSpace(ModelMixin, ConfigMixin):
    """Pictures to latents ``[B, C, h, w]`` and back.

    It is saved as ``latents.json`` and the folder ``model``; it rests while another model learns from it.
    """

    config_name = ABOUT
    kind: str  #: what ``latents.json`` calls it
    channels: int  #: C
    grid: tuple[int, int]  #: (h, w)
    image_size: tuple[int, int]  #: (H, W), pixels

    @abstractmethod
    def encode(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Latents of pictures.

        Args:
            images: ``[B, 3, H, W]`` float in [-1, 1].
            generator: of spaces that draw, one or one for each picture: they give their mean without any.

        Returns:
            ``[B, C, h, w]`` float32, about unit variance.

        Raises:
            ValueError: pictures of another size.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1] of latents ``[B, C, h, w]``, clamped."""

    @property
    @abstractmethod
    def inner(self) -> AutoencoderKL | VisualTokenizer:
        """What is saved under ``model``."""

    @abstractmethod
    def inner_fingerprint(self) -> str:
        """Of :attr:`inner`."""

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """What else decides latents and is saved in ``latents.json``."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, numbers: dict[str, Any]) -> Self:
        """A space of the model in a folder and :meth:`numbers`."""

    @property
    def measured(self) -> bool:
        """Whether the scale of the latents is known."""
        return True

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Find the scale of the latents from batches of pictures, for spaces that do not know it."""

    def restore(self, numbers: dict[str, Any]) -> None:
        """Go on with :meth:`numbers` of an earlier run.

        Raises:
            ValueError: a space that has others.
        """
        if self.numbers() != numbers:
            raise ValueError(
                f"a run must go on with the latents that it began with, {numbers}, got {self.numbers()}; "
                "take the same latent space or start anew"
            )

    def fingerprint(self) -> str:
        """Sixteen hex digits of weights and numbers: equal exactly when latents mean the same."""
        told = json.dumps([self.kind, self.numbers(), self.inner_fingerprint()], sort_keys=True)
        return sha256(told.encode()).hexdigest()[:16]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder, whole or not at all; other arguments are diffusers'."""
        with atomic_folder(Path(save_directory)) as folder:
            self.inner.save_pretrained(folder / "model", *args, **kwargs)
            with atomic_file(folder / ABOUT) as file:
                file.write_text(json.dumps({"kind": self.kind, **self.numbers()}, indent=2) + "\n")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: no name, nothing to load
        cls, pretrained_model_name_or_path: str | PathLike[str]
    ) -> LatentSpace:
        """Load a space of any kind from a folder.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.
            ValueError: damaged files.
        """
        folder = Path(pretrained_model_name_or_path)
        missing = [name for name in (ABOUT, "model") if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} should hold a latent space but lacks {', '.join(missing)}; check the path or save it again"
            )
        kinds: dict[str, type[LatentSpace]] = {each.kind: each for each in (AutoencoderLatents, TokenizerLatents)}
        try:
            about = json.loads((folder / ABOUT).read_text())
            return kinds[about.pop("kind")].read(folder / "model", about)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / ABOUT} does not describe a latent space ({error}); save it again") from error


class AutoencoderLatents(LatentSpace):
    """The latents of an ``AutoencoderKL``, as they are read by latent diffusion (https://arxiv.org/abs/2112.10752).

    Args:
        autoencoder: of ``diffusers``.
        image_size: side of the pictures, pixels.
        scale: what latents are multiplied with; 0.2325 is xAR's for KL-16.

    Raises:
        ValueError: an image size off its stride, or a scale that is not positive.
    """

    kind = "autoencoder"

    def __init__(self, autoencoder: AutoencoderKL, image_size: int = 256, scale: float = 0.2325) -> None:
        super().__init__()
        config: Any = autoencoder.config
        stride = 2 ** (len(config.block_out_channels) - 1)
        if image_size < 1 or image_size % stride:
            raise ValueError(f"image_size must be a multiple of {stride} for this autoencoder, got {image_size}")
        if scale <= 0:
            raise ValueError(f"the scale of latents must be above 0, got {scale}; 1 / their deviation is usual")
        self.autoencoder, self.scale, self.channels = autoencoder.eval(), scale, int(config.latent_channels)
        self.grid, self.image_size = (image_size // stride,) * 2, (image_size, image_size)

    @property
    def inner(self) -> AutoencoderKL:
        """See :attr:`LatentSpace.inner`."""
        return self.autoencoder

    @torch.no_grad()
    def encode(self, images: Tensor, generator: Generators = None) -> Tensor:
        """See :meth:`LatentSpace.encode`: the mean of the posterior, or one drawn from it."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"images must be [B, 3, {self.image_size[0]}, {self.image_size[1]}] for these latents, got "
                f"{list(images.shape)}; resize or crop them"
            )
        posterior: Any = self.autoencoder.encode(images.to(self.autoencoder.dtype), return_dict=False)[0]
        return (posterior.mode() if generator is None else posterior.sample(generator)).float() * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`LatentSpace.decode`."""
        unscaled: Any = (latents / self.scale).to(self.autoencoder.dtype)
        found: Any = self.autoencoder.decode(unscaled, return_dict=False)
        return found[0].float().clamp(-1, 1)

    def inner_fingerprint(self) -> str:
        """Hex digits of the weights, which half precision does not change where it loses nothing."""
        digest = sha256()
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def numbers(self) -> dict[str, Any]:
        """See :meth:`LatentSpace.numbers`."""
        return {"image_size": self.image_size[0], "scale": self.scale}

    @classmethod
    def read(cls, folder: Path, numbers: dict[str, Any]) -> Self:
        """See :meth:`LatentSpace.read`."""
        return cls(load_model(AutoencoderKL, folder), **numbers)


class TokenizerLatents(LatentSpace):
    """What a :class:`~smalti.tokenizers.vq.VQTokenizer` quantizes, with mean 0 and variance 1 in each channel.

    Decoding goes through the nearest codes.

    Args:
        tokenizer: with a grid.
        mean: C numbers; None leaves them to :meth:`measure`, as for ``std``.
        std: C numbers above 0.

    Raises:
        ValueError: a tokenizer of another family, or other than C numbers.
    """

    kind = "tokenizer"

    def __init__(
        self, tokenizer: VisualTokenizer, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(tokenizer, VQTokenizer):
            layout = tokenizer.spec.layout
            raise ValueError(
                f"latents before the quantizer are those of a VQTokenizer with a grid, got a "
                f"{type(tokenizer).__name__} whose codes are a {layout.kind} of {layout.shape}; train a VQTokenizer or "
                "take an autoencoder"
            )
        self.tokenizer, self.channels = tokenizer.eval(), tokenizer.quantizer.dim
        height, width = tokenizer.spec.layout.shape
        self.grid, self.image_size = (height, width), tokenizer.image_size
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", None)
        self.register_buffer("std", None)
        if mean is not None and std is not None:
            self._set(torch.tensor(mean), torch.tensor(std))

    @property
    def inner(self) -> VisualTokenizer:
        """See :attr:`LatentSpace.inner`."""
        return self.tokenizer

    @property
    def measured(self) -> bool:
        """See :attr:`LatentSpace.measured`."""
        return self.mean is not None

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """See :meth:`LatentSpace.measure`.

        Raises:
            ValueError: fewer than two latents.
        """
        rows = [self._raw(images).cpu().double().flatten(0, 1) for images in batches]
        if sum(map(len, rows)) < 2:
            raise ValueError("the scale of latents is measured on at least two of them, got fewer; pass more pictures")
        deviation, mean = torch.std_mean(torch.cat(rows), dim=0)
        self._set(mean.float(), deviation.float().clamp_min(1e-4))

    @torch.no_grad()
    def encode(self, images: Tensor, generator: Generators = None) -> Tensor:
        """See :meth:`LatentSpace.encode`; nothing is drawn."""
        mean, std = self._scale()
        return ((self._raw(images) - mean) / std).transpose(1, 2).unflatten(2, self.grid)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`LatentSpace.decode`."""
        mean, std = self._scale()
        raw = latents.to(mean).flatten(2).transpose(1, 2) * std + mean
        ids = self.tokenizer.quantizer(raw).ids
        return self.tokenizer.decode(Codes.full(ids, self.tokenizer.spec)).float()

    def restore(self, numbers: dict[str, Any]) -> None:
        """See :meth:`LatentSpace.restore`; a scale that is not known yet is set."""
        if self.measured:
            super().restore(numbers)
        else:
            self._set(torch.tensor(numbers["mean"]), torch.tensor(numbers["std"]))

    def inner_fingerprint(self) -> str:
        """The tokenizer's own."""
        return self.tokenizer.fingerprint()

    def numbers(self) -> dict[str, Any]:
        """See :meth:`LatentSpace.numbers`."""
        mean, std = self._scale()
        return {"mean": mean.tolist(), "std": std.tolist()}

    @classmethod
    def read(cls, folder: Path, numbers: dict[str, Any]) -> Self:
        """See :meth:`LatentSpace.read`."""
        return cls(VisualTokenizer.from_pretrained(folder), **numbers)

    def _raw(self, images: Tensor) -> Tensor:
        self.tokenizer.check_images(images)
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images must be {self.image_size[0]}x{self.image_size[1]} (height x width) for these latents, got "
                f"{images.shape[2]}x{images.shape[3]}; resize or crop them"
            )
        return self.tokenizer._latents(images).float()  # [B, N, C]

    def _scale(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise ValueError("the scale of these latents is not known yet, got no mean and std; call measure first")
        return self.mean, self.std

    def _set(self, mean: Tensor, std: Tensor) -> None:
        if not len(mean) == len(std) == self.channels or float(std.min()) <= 0:
            raise ValueError(
                f"latents of {self.channels} channels need as many means and deviations above 0, got {len(mean)} and "
                f"{len(std)} from {float(std.min()):g}; measure them again"
            )
        self.mean, self.std = mean.to(self.tokenizer.device), std.to(self.tokenizer.device)


def autoencoder_latents(folder: str, image_size: int = 256, scale: float = 0.2325) -> AutoencoderLatents:
    """The latent space of a saved ``AutoencoderKL``, for a configuration.

    Args:
        folder: where it was saved.
        image_size: see :class:`AutoencoderLatents`.
        scale: see :class:`AutoencoderLatents`.

    Raises:
        FileNotFoundError: no such folder, or one without an autoencoder.
        ValueError: damaged files.
    """
    return AutoencoderLatents(load_model(AutoencoderKL, Path(folder)), image_size, scale)


def tokenizer_latents(folder: str) -> TokenizerLatents:
    """The latent space of a saved tokenizer, for a configuration; its scale is measured when training starts.

    Args:
        folder: where it was saved.

    Raises:
        FileNotFoundError: no such folder, or one without a tokenizer.
        ValueError: damaged files, or a tokenizer without such latents.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"a tokenizer was expected in {folder}, which is no folder; train it or check the path")
    return TokenizerLatents(VisualTokenizer.from_pretrained(folder))
