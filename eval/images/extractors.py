"""Networks that turn pictures into features, for distances between sets of pictures. All come from local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from ...data.weight_files import read_weight_file
from ...tokenizers.perceptual import BackboneLoss
from ..protocol import state_hash
from .float32 import full_float32
from .inception import FIDInception

#: What stands before the file in the name of the Inception of the Frechet inception distance.
INCEPTION = "inception:"


class FeatureExtractor(Protocol):
    """What a distance between sets of pictures needs of a network. Reads 8-bit levels, so that nothing else can."""

    @property
    def name(self) -> str:
        """Network, layer and preprocessing: two of one name and one ``weights_hash`` give equal features."""
        ...

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights, 64 hex digits."""
        ...

    @property
    def num_features(self) -> int:
        """D."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` float32 of ``[B, 3, H, W]`` uint8, which lie on the device of the network."""
        ...


class VisionExtractor:
    """Features of any vision model of ``transformers``, from a local folder.

    Pooled where the checkpoint holds what pools (SigLIP's head, CLIP's and DINOv2's normalised class token, ViT's
    pooler), else the mean of the last hidden state over positions: weights that a checkpoint lacks would be drawn anew
    in every process. Pictures are resized to the size of the model's configuration (bicubic, antialiased, on floats).

    Args:
        folder: with the configuration and weights; ``preprocessor_config.json`` gives mean and standard deviation,
            0.5 each without one. Of a model with a text tower only the vision tower is kept.
        device: where it runs.

    Raises:
        FileNotFoundError: no such folder, or one without a model.
        ValueError: weights are missing.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"a vision model was expected in {folder}, which is no folder; check the path")
        self._backbone = BackboneLoss(folder).to(device)
        network: Any = self._backbone.network
        pooler = getattr(network, "pooler", None)
        if isinstance(pooler, torch.nn.Module) and _unread(pooler, set(_stored(Path(folder)))):
            network.pooler = None
        self.weights_hash = state_hash(network.state_dict())
        side = self._backbone.image_size or (64, 64)
        with torch.inference_mode():
            pooled, rows = self._features(torch.zeros(1, 3, *side, dtype=torch.uint8, device=device))
        self.num_features = rows.shape[1]
        self.name = f"{type(network).__name__}, {pooled}, {rows.shape[1]} features, {self._preparation()}, float32"

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` float32, on the model's device.

        Args:
            images: ``[B, 3, H, W]`` uint8.

        Raises:
            TypeError: images that are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"an extractor reads uint8 images, got {images.dtype}; use data.transforms.to_uint8")
        with torch.inference_mode(), full_float32():
            return self._features(images)[1]

    def _features(self, images: Tensor) -> tuple[str, Tensor]:
        """How they were pooled, and the features."""
        size, pixels = self._backbone.image_size, images.to(self._backbone.mean.device).float() / 255
        if size is not None and pixels.shape[2:] != tuple(size):
            pixels = F.interpolate(pixels, tuple(size), mode="bicubic", antialias=True)
        found = self._backbone.network(pixel_values=(pixels - self._backbone.mean) / self._backbone.std)
        if getattr(found, "pooler_output", None) is not None:
            return "pooled", found.pooler_output.float().flatten(1)
        last: Tensor = found.last_hidden_state.float()
        return "mean of the last hidden state", last.mean(1) if last.ndim == 3 else last.mean((2, 3))

    def _preparation(self) -> str:
        size, mean, std = self._backbone.image_size, self._backbone.mean.flatten(), self._backbone.std.flatten()
        resized = "as large as they come" if size is None else f"resized to {size[0]}x{size[1]} (bicubic, antialiased)"
        numbers = (" ".join(f"{value:.6g}" for value in values.tolist()) for values in (mean, std))
        return f"{resized}, mean {next(numbers)}, std {next(numbers)}"


def load_extractor(spec: str, device: str = "cpu", unknown_weights: bool = False) -> FeatureExtractor:
    """The extractor that a text names.

    Args:
        spec: ``inception:FILE``, the published weights of the TF1-compatible Inception (`FIDInception`), or a local
            folder of any vision model of ``transformers``.
        device: where it runs.
        unknown_weights: take an Inception of other weights than the published ones, which its hash then names.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an Inception file with another hash than the published one, or weights that do not fit.
    """
    if not spec.startswith(INCEPTION):
        return VisionExtractor(spec, device)
    file = spec.removeprefix(INCEPTION)
    network = FIDInception(file, sha256_prefix=None) if unknown_weights else FIDInception(file)
    return network.to(device)


def _stored(folder: Path) -> Iterator[str]:
    """Names of the weights in a folder."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            yield from weights.keys()
    for file in sorted(folder.glob("*.bin")):
        yield from read_weight_file(file, mmap=True)


def _unread(pooler: torch.nn.Module, stored: set[str]) -> bool:
    """Whether a weight of the pooler is not among those stored."""
    names = [name for name, _ in pooler.named_parameters()]
    return any(not any(key.endswith(f"pooler.{name}") for key in stored) for name in names)
