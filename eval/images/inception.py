"""The Inception-v3 of the Frechet inception distance, from a local weights file, computed as TensorFlow 1 did.

The network of 2015-12-05 differs from Inception-v3 as image models ship it: batch norm with epsilon 1e-3, average pools
that do not count padding, a maximum pool in the last block, 1008 classes, and a bilinear resize to 299 that ignores
pixel centres. Published distances hold for this network only. It downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.weight_files import read_weight_file
from ..protocol import file_hash
from .float32 import full_float32

#: How the sha256 of the published file begins: pt_inception-2015-12-05-6726825d.pth of pytorch-fid, which equals
#: weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
INCEPTION_SHA256 = "6726825d"

SIDE = 299  #: pixels of the network's input
_CLASSES = 1008


@dataclass(frozen=True)
class _Conv:
    """One convolution with batch norm and ReLU, as the weights file names it."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  #: by half the kernel, which keeps the size at stride 1


@dataclass(frozen=True)
class _Pool:
    """A 3x3 pool; averages do not count the padding."""

    average: bool
    stride: int = 1


#: A branch is a chain of steps; a tuple of branches inside a chain runs side by side and is concatenated.
_Step: TypeAlias = "_Conv | _Pool | tuple[_Branch, ...]"
_Branch: TypeAlias = "tuple[_Step, ...]"
_AVERAGE, _MAXIMUM, _HALVE = _Pool(True), _Pool(False), _Pool(False, 2)


def _a(pool: int) -> tuple[_Branch, ...]:
    return (
        (_Conv("branch1x1", 64),),
        (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
        (
            _Conv("branch3x3dbl_1", 64),
            _Conv("branch3x3dbl_2", 96, (3, 3)),
            _Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_AVERAGE, _Conv("branch_pool", pool)),
    )


def _b() -> tuple[_Branch, ...]:
    return (
        (_Conv("branch3x3", 384, (3, 3), 2, False),),
        (
            _Conv("branch3x3dbl_1", 64),
            _Conv("branch3x3dbl_2", 96, (3, 3)),
            _Conv("branch3x3dbl_3", 96, (3, 3), 2, False),
        ),
        (_HALVE,),
    )


def _c(width: int) -> tuple[_Branch, ...]:
    return (
        (_Conv("branch1x1", 192),),
        (_Conv("branch7x7_1", width), _Conv("branch7x7_2", width, (1, 7)), _Conv("branch7x7_3", 192, (7, 1))),
        (
            _Conv("branch7x7dbl_1", width),
            _Conv("branch7x7dbl_2", width, (7, 1)),
            _Conv("branch7x7dbl_3", width, (1, 7)),
            _Conv("branch7x7dbl_4", width, (7, 1)),
            _Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (_AVERAGE, _Conv("branch_pool", 192)),
    )


def _d() -> tuple[_Branch, ...]:
    return (
        (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2, False)),
        (
            _Conv("branch7x7x3_1", 192),
            _Conv("branch7x7x3_2", 192, (1, 7)),
            _Conv("branch7x7x3_3", 192, (7, 1)),
            _Conv("branch7x7x3_4", 192, (3, 3), 2, False),
        ),
        (_HALVE,),
    )


def _e(pool: _Pool) -> tuple[_Branch, ...]:
    return (
        (_Conv("branch1x1", 320),),
        (
            _Conv("branch3x3_1", 384),
            ((_Conv("branch3x3_2a", 384, (1, 3)),), (_Conv("branch3x3_2b", 384, (3, 1)),)),
        ),
        (
            _Conv("branch3x3dbl_1", 448),
            _Conv("branch3x3dbl_2", 384, (3, 3)),
            ((_Conv("branch3x3dbl_3a", 384, (1, 3)),), (_Conv("branch3x3dbl_3b", 384, (3, 1)),)),
        ),
        (pool, _Conv("branch_pool", 192)),
    )


_STEM: _Branch = (
    _Conv("Conv2d_1a_3x3", 32, (3, 3), 2, False),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), 1, False),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _HALVE,
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), 1, False),
    _HALVE,
)
_MIXED: Mapping[str, tuple[_Branch, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(_AVERAGE),
    "Mixed_7c": _e(_MAXIMUM),
}


@dataclass(frozen=True)
class InceptionOutputs:
    """What the scores read of a batch."""

    pool: Tensor  #: [B, 2048] float32, for Frechet and kernel distances, precision and recall
    logits: Tensor  #: [B, 1008] float32, without the bias, for the Inception score


class FIDInception(nn.Module):
    """TF1-compatible Inception-v3 (https://arxiv.org/abs/1512.00567), frozen: 2048 pooled features of uint8 images.

    Args:
        path: the published weights (``.pth``, 566 tensors), or the same tensors as ``.safetensors``.
        sha256_prefix: how the file's hash must begin; None takes any file, which its own hash then identifies.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another hash, an unreadable file, or weights whose names or shapes are not this network's.
    """

    name = "Inception-v3 of 2015-12-05 (TF1), pool3, 2048 features, TF1 bilinear to 299"
    num_features = 2048

    def __init__(self, path: str | Path, sha256_prefix: str | None = INCEPTION_SHA256) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Inception weights were expected in {path}, which does not exist; check the path")
        self.weights_hash = file_hash(path)
        if sha256_prefix is not None and not self.weights_hash.startswith(sha256_prefix):
            raise ValueError(
                f"{path} must have a sha256 that begins {sha256_prefix}, got {self.weights_hash[:16]}; take the "
                "published file, or accept and record this one (sha256_prefix=None, --unknown-weights)"
            )
        weights = _read(path)
        with torch.device("meta"):  # names and shapes only: the weights themselves come from the file
            channels = _add(self, _STEM, 3)
            for block, branches in _MIXED.items():
                part = nn.Module()
                channels = sum(_add(part, branch, channels) for branch in branches)
                self.add_module(block, part)
            self.fc = nn.Linear(channels, _CLASSES)
        _check(self.state_dict(), weights, path)
        self.load_state_dict(weights, assign=True)
        self.float().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: statistics of a batch would make features depend on their neighbours."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, 2048]`` float32 of ``[B, 3, H, W]`` uint8, on the device of the weights.

        Raises:
            TypeError: images that are not uint8.
            ValueError: another shape.
        """
        return self.outputs(images).pool

    @torch.no_grad()
    def outputs(self, images: Tensor) -> InceptionOutputs:
        """Features and logits of ``[B, 3, H, W]`` uint8 images; errors as in `forward`."""
        if images.dtype != torch.uint8:
            raise TypeError(
                f"Inception reads uint8 images, got {images.dtype}; round them once with data.transforms.to_uint8"
            )
        if images.ndim != 4 or images.shape[1] != 3 or not images.shape[2:].numel():
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}; convert them to RGB")
        with torch.autocast(images.device.type, enabled=False), full_float32():
            state = (tf1_bilinear(images.to(self.fc.weight.device).float(), SIDE) - 128) / 128
            state = _run(self, _STEM, state)
            for block, branches in _MIXED.items():
                part = cast("nn.Module", getattr(self, block))
                state = torch.cat([_run(part, branch, state) for branch in branches], 1)
            pool = F.adaptive_avg_pool2d(state, 1).flatten(1)
            return InceptionOutputs(pool, pool @ self.fc.weight.T)


def tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """Resize as ``tf.image.resize_bilinear`` of TensorFlow 1 did.

    Pixel ``i`` of the result lies at ``i * input / output`` of the input: no half-pixel centres, no antialiasing, the
    last row and column repeated.

    Args:
        images: ``[B, C, H, W]`` floats.
        side: height and width of the result.

    Returns:
        ``[B, C, side, side]``, of the dtype of ``images``.
    """
    for axis in (3, 2):  # rows first, as TensorFlow does; the order decides the rounding
        size = images.shape[axis]
        place = torch.arange(side, dtype=images.dtype, device=images.device) * (size / side)
        low = place.long()
        high = (low + 1).clamp_max(size - 1)
        weight = (place - low).view(-1, *[1] * (3 - axis))
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, high) - first) * weight
    return images


def _read(path: Path) -> dict[str, Tensor]:
    found: object = read_weight_file(path)
    entries = cast("dict[object, object]", found) if isinstance(found, Mapping) else {}
    if not entries or not all(isinstance(value, Tensor) for value in entries.values()):
        raise ValueError(
            f"{path} must hold tensors by name, got a {type(found).__name__} of something else; take the "
            "state dict out of it"
        )
    return cast("dict[str, Tensor]", entries)


def _check(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Names and shapes, strictly."""
    shared = expected.keys() & weights.keys()
    differing = {
        "missing": sorted(expected.keys() - shared),
        "unexpected": sorted(weights.keys() - shared),
        "of another shape": sorted(name for name in shared if expected[name].shape != weights[name].shape),
    }
    if any(differing.values()):
        found = "; ".join(
            f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
            for what, names in differing.items()
            if names
        )
        raise ValueError(f"{path} must hold the {len(expected)} tensors of the published Inception, got {found}")


def _add(parent: nn.Module, branch: _Branch, channels: int) -> int:
    """Make the layers of a branch under their published names; returns the channels that leave it."""
    for step in branch:
        if isinstance(step, _Conv):
            padding = (step.kernel[0] // 2, step.kernel[1] // 2) if step.padded else 0
            layer = nn.Module()
            layer.conv = nn.Conv2d(channels, step.channels, step.kernel, step.stride, padding, bias=False)
            layer.bn = nn.BatchNorm2d(step.channels, eps=1e-3)
            parent.add_module(step.name, layer)
            channels = step.channels
        elif isinstance(step, tuple):
            channels = sum(_add(parent, fork, channels) for fork in step)
    return channels


def _run(parent: nn.Module, branch: _Branch, state: Tensor) -> Tensor:
    for step in branch:
        if isinstance(step, _Conv):
            layer = getattr(parent, step.name)
            state = F.relu(layer.bn(layer.conv(state)), inplace=True)
        elif isinstance(step, _Pool):
            state = _pooled(step, state)
        else:
            state = torch.cat([_run(parent, fork, state) for fork in step], 1)
    return state


def _pooled(pool: _Pool, state: Tensor) -> Tensor:
    padding = 0 if pool.stride == 2 else 1
    if pool.average:
        return F.avg_pool2d(state, 3, pool.stride, padding, count_include_pad=False)
    return F.max_pool2d(state, 3, pool.stride, padding)
