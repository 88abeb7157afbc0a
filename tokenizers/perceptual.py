"""Perceptual distances: frozen networks that say how different two pictures look. Nothing here downloads anything."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from ..data.weight_files import read_weight_file
from .held import Held, keeping_dtype


class Perceptual(nn.Module):
    """Base of perceptual distances.

    The network is held outside the module tree, see :class:`~smalti.tokenizers.held.Held`: a module that owns a
    perceptual distance never trains it, never writes it into a checkpoint, and loads its checkpoints strictly.

    Args:
        network: what :meth:`features` runs; frozen and put in eval mode in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = Held(network)

    @property
    def network(self) -> Any:
        """The frozen network."""
        return self._held.network

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_dtype(fn), recurse)

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """What the network sees in ``[B, 3, H, W]`` float32 images in [-1, 1], one tensor per layer."""

    @abstractmethod
    def compare(self, layer: int, first: Tensor, second: Tensor) -> Tensor:
        """Distances ``[B]`` between the float32 features of two batches in the ``layer``-th tensor."""

    def distances(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Distance of each pair, ``[B]`` float32 >= 0; see :meth:`forward`."""
        if reconstruction.shape != images.shape or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"a perceptual distance takes two batches [B, 3, H, W] of one shape, "
                f"got {list(reconstruction.shape)} and {list(images.shape)}"
            )
        with torch.no_grad():
            targets = self.features(images.float())
        pairs = zip(self.features(reconstruction.float()), targets, strict=True)
        return torch.stack([self.compare(i, a.float(), b.float()) for i, (a, b) in enumerate(pairs)]).sum(0)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Mean distance, a float32 scalar; the gradient reaches the reconstruction only.

        Args:
            reconstruction: ``[B, 3, H, W]``, need not be clamped.
            images: ``[B, 3, H, W]`` in [-1, 1].

        Raises:
            ValueError: batches of other or unequal shapes.
        """
        return self.distances(reconstruction, images).mean()


class BackboneLoss(Perceptual):
    """Squared distance between the unit-length hidden states of any vision model of ``transformers``.

    Per position ``|a / |a| - b / |b||^2``, averaged over positions, summed over layers (the feature loss of
    https://arxiv.org/abs/1603.08155 on normalised features). Images are resized (bicubic, antialiased) to the model's
    image size where its configuration names one.

    Args:
        checkpoint: a folder, or the id of a checkpoint in the local Hugging Face cache; of a model with a text tower
            only the vision tower is kept. Mean and standard deviation come from its ``preprocessor_config.json``, 0.5
            each without one.
        layers: indices into the model's hidden states; 0 is the embeddings, -1 the last.

    Raises:
        FileNotFoundError: no such checkpoint on this machine.
        ValueError: a checkpoint without the weights of its vision model, or no layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: str | Path, layers: Sequence[int] = (-1,)) -> None:
        super().__init__(_vision_model(str(checkpoint)))
        self._configure(layers, *_statistics(str(checkpoint)))

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        layers: Sequence[int] = (-1,),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> Self:
        """The same loss over a model that is already built, which is frozen in place.

        Args:
            model: a vision model of ``transformers``: takes ``pixel_values``, gives ``hidden_states``.
            layers: indices into its hidden states.
            mean: per channel, of pixels in [0, 1].
            std: per channel, of pixels in [0, 1].
        """
        loss = cls.__new__(cls)
        Perceptual.__init__(loss, model)
        loss._configure(layers, mean, std)
        return loss

    def _configure(self, layers: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        if not layers:
            raise ValueError("a backbone loss needs at least one layer, got none; -1 is the last hidden state")
        self.layers = tuple(layers)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        size = getattr(self.network.config, "image_size", None)
        self.image_size = (size, size) if isinstance(size, int) else size

    def features(self, images: Tensor) -> list[Tensor]:
        """Hidden states of the chosen layers, ``[B, N, C]`` or ``[B, C, h, w]``.

        Raises:
            ValueError: a layer that the model does not have.
        """
        if self.image_size is not None and images.shape[2:] != tuple(self.image_size):
            images = F.interpolate(images, tuple(self.image_size), mode="bicubic", antialias=True)
        pixels = (0.5 * images + 0.5 - self.mean) / self.std
        states: Sequence[Tensor] = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states
        depth = len(states)
        if not all(-depth <= layer < depth for layer in self.layers):
            raise ValueError(f"layers must lie in [{-depth}, {depth}), the model's hidden states, got {self.layers}")
        return [states[layer] for layer in self.layers]

    def compare(self, layer: int, first: Tensor, second: Tensor) -> Tensor:
        """Mean over positions of the squared distance between unit vectors."""
        channels = 1 if first.ndim == 4 else -1
        squared = (F.normalize(first, dim=channels) - F.normalize(second, dim=channels)).square()
        return squared.sum(channels).flatten(1).mean(1)


class LPIPS(Perceptual):
    """Learned perceptual image patch similarity, version 0.1 (https://arxiv.org/abs/1801.03924).

    The five feature maps of an ImageNet network, unit length per position, their squared difference weighted per
    channel by the learned heads, averaged over positions, summed over maps. Images must lie in [-1, 1]: [0, 1] gives
    numbers several times too small.

    Args:
        backbone_file: weights of torchvision's AlexNet or VGG16 (``features.0.weight``, ...), ``.pth`` or
            ``.safetensors``; its classifier is ignored.
        heads_file: the linear heads as published (``lin0.model.1.weight``, ...); by default those that torchmetrics
            ships.
        net: ``alex`` for scores, ``vgg`` for training.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: another ``net``, an unreadable file, or weights whose names or shapes are not the network's.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, backbone_file: str | Path, heads_file: str | Path | None = None, net: Literal["alex", "vgg"] = "vgg"
    ) -> None:
        if net not in _NETWORKS:
            raise ValueError(f"net must be one of {', '.join(_NETWORKS)}, got {net!r}")
        network = _NETWORKS[net]()
        convolutions = {f"features.{name}": weight for name, weight in network.features.state_dict().items()}
        heads = {f"lin{i}.model.1.weight": head.data.view(1, -1, 1, 1) for i, head in enumerate(network.heads)}
        _fill(convolutions, Path(backbone_file), ignore="classifier.")
        _fill(heads, _shipped_heads(net) if heads_file is None else Path(heads_file))
        super().__init__(network)
        self.net = net
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(-1, 1, 1), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Five maps ``[B, C, h, w]``.

        Raises:
            ValueError: a side too small for the last map.
        """
        if min(images.shape[2:]) < self.network.minimum:
            raise ValueError(
                f"LPIPS over this network needs sides of at least {self.network.minimum} pixels, "
                f"got {images.shape[2]}x{images.shape[3]}; use larger images"
            )
        return self.network((images - self.shift) / self.scale)

    def compare(self, layer: int, first: Tensor, second: Tensor) -> Tensor:
        """Squared difference of one map, channels weighted by its head, averaged over positions."""
        squared = (_unit_length(first) - _unit_length(second)).square()
        return (squared * self.network.heads[layer][:, None, None]).sum(1).mean((1, 2))


class _Network(nn.Module):
    """Convolutions in torchvision's order, read after the layers in ``taps``, and a head per tap."""

    def __init__(self, layers: list[nn.Module], taps: Mapping[int, int], minimum: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.zeros(channels) for channels in taps.values())
        self.taps, self.minimum = frozenset(taps), minimum

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The tapped maps of normalised pixels ``[B, 3, H, W]``."""
        maps: list[Tensor] = []
        for index, layer in enumerate(self.features):
            pixels = layer(pixels)
            if index in self.taps:
                maps.append(pixels)
        return maps


def _alexnet() -> _Network:
    layers = [*_conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *_conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2)]
    layers += [*_conv(192, 384), *_conv(384, 256), *_conv(256, 256)]
    return _Network(layers, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}, minimum=31)


def _vgg16() -> _Network:
    layers: list[nn.Module] = []
    before = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += _conv(before, width)
            before = width
    return _Network(layers, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}, minimum=16)


_NETWORKS: Mapping[str, Callable[[], _Network]] = {"alex": _alexnet, "vgg": _vgg16}


def _conv(before: int, after: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()  # finite slope where all are zero


def _fill(targets: Mapping[str, Tensor], file: Path, ignore: str | None = None) -> None:
    """Copy the weights of a file into ``targets``, published name by published name, strictly."""
    weights = {name: value for name, value in _read(file).items() if ignore is None or not name.startswith(ignore)}
    shared = targets.keys() & weights.keys()
    differing = {
        "missing": sorted(targets.keys() - shared),
        "unexpected": sorted(weights.keys() - shared),
        "of another shape": sorted(name for name in shared if targets[name].shape != weights[name].shape),
    }
    if any(differing.values()):
        found = "; ".join(f"{what}: {', '.join(names)}" for what, names in differing.items() if names)
        raise ValueError(f"{file} must hold this network's weights under their published names, got {found}")
    for name, target in targets.items():
        target.copy_(weights[name])


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"weights were expected in {file}, which does not exist; check the path or download it")
    return read_weight_file(file)


def _shipped_heads(net: str) -> Path:
    spec = find_spec("torchmetrics")
    folder = Path(*(spec.submodule_search_locations if spec and spec.submodule_search_locations else ()))
    return folder / "functional" / "image" / "lpips_models" / f"{net}.pth"


def _vision_model(checkpoint: str) -> nn.Module:
    """The vision tower of a checkpoint on this machine, every weight read from it."""
    try:
        loaded: Any = AutoModel.from_pretrained(checkpoint, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"a vision checkpoint was expected at {checkpoint}, neither a folder with one nor in the local cache "
            f"({' '.join(str(error).split())}); download it first"
        ) from error
    model, report = loaded
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(f"{checkpoint} must hold every weight of its model, missing {', '.join(missing)}")
    return getattr(model, "vision_model", model)


def _statistics(checkpoint: str) -> tuple[Sequence[float], Sequence[float]]:
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint, local_files_only=True)
    except OSError:
        values = {}
    neutral = (0.5, 0.5, 0.5)
    return values.get("image_mean", neutral), values.get("image_std", neutral)
