"""The tokenizer contract: images in, ids out; ids in, images out. Knows no family and no language model."""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..data.files import atomic_folder
from .codes import Codes, CodeSpec
from .component import build, freeze, unusual


@dataclass(frozen=True)
class TrainingTerms:
    """What a family hands to training: its reconstruction and its own losses; pixel losses are added outside."""

    reconstruction: Tensor | None  #: [B, 3, H, W], not clamped, differentiable; None without a pixel decoder
    codes: Codes  #: the codes drawn this step, for usage and perplexity
    losses: Mapping[str, Tensor] = field(default_factory=dict)  #: the family's own terms, scalars, unweighted
    summary: Tensor | None = None  #: [B, C], the image's feature that is compared with captions, for families with one
    #: [B, N, C] float32, what ``embed(codes)`` gives, in training with the gradient of the encoder (straight-through);
    #: where the pass itself moves tables (moving averages), what they gave before. None where a code is not embedded as
    #: the value it was quantized to.
    latents: Tensor | None = None


class VisualTokenizer(ModelMixin, ConfigMixin):
    """Images to discrete codes and back.

    A family subclasses this in a file of its own, decorates ``__init__`` with diffusers' ``register_to_config``, calls
    :meth:`set_spec` there and implements the four methods below. ``save_pretrained``, ``push_to_hub`` and the
    safetensors format are diffusers'.
    """

    config_name = "config.json"
    spec: CodeSpec
    image_size: tuple[int, int]  #: (H, W) that ``spec`` describes
    stride: int  #: pixels per grid cell; sides must be multiples of it
    any_size: bool = False  #: True where sides other than ``image_size`` are encoded too

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """Code a batch of images.

        Args:
            images: ``[B, 3, H, W]`` float in [-1, 1].

        Returns:
            Codes with ids ``[B, N, D]``.

        Raises:
            ValueError: an image size the tokenizer cannot take.
            TypeError: images that are not floating point.
        """

    @abstractmethod
    def embed(self, codes: Codes) -> Tensor:
        """Vectors ``[B, N, C]`` of the codes, for a language model to read; differentiable in the codebooks."""

    @abstractmethod
    def decode(self, codes: Codes, generator: torch.Generator | None = None) -> Tensor:
        """Pixels of codes: ``[B, 3, H, W]`` in [-1, 1], clamped. ``generator`` serves decoders that draw."""

    def pooled(self, codes: Codes) -> Tensor | None:
        """Image features ``[B, C]`` in the space of the teacher, for families that learn from one; None for others."""
        return None

    @abstractmethod
    def code_vectors(self) -> Mapping[str, Tensor]:
        """What the codes of each codebook stand for: ``[K, C]`` by name. Codes that look alike lie close together."""

    @abstractmethod
    def training_step_terms(self, images: Tensor, **targets: Tensor) -> TrainingTerms:
        """One differentiable pass over ``[B, 3, H, W]`` images; ``targets`` are the family's own (teacher features)."""

    def tuned_embedding(self, terms: TrainingTerms) -> Tensor:
        """What :meth:`embed` gives, ``[B, N, C]`` float32, with the gradient of the encoder beside the codebooks'.

        A language model that reads this tunes the tokenizer (ETT, https://arxiv.org/abs/2505.10562). A weight that the
        gradient of the latents reaches anyway, such as IBQ's table, learns through them alone: once, as in training for
        pixels.

        Args:
            terms: of :meth:`training_step_terms` in training mode, with their graph.

        Raises:
            ValueError: a family without :attr:`TrainingTerms.latents`.
        """
        latents = terms.latents
        if latents is None:
            raise ValueError(
                f"tuning needs latents that are embedded as they are quantized, got a {type(self).__name__} without; "
                "read its codes with embed, or tune another family"
            )
        with _at_rest(_reached(latents)):
            found = self.embed(terms.codes)
        return found + (latents - latents.detach())

    def set_spec(self, spec: CodeSpec, image_size: tuple[int, int], stride: int) -> None:
        """Declare what the codes of this tokenizer look like; called once, in the constructor."""
        self.spec, self.image_size, self.stride = spec, image_size, stride

    def check_images(self, images: Tensor) -> None:
        """Raise one clear sentence unless ``images`` can be encoded."""
        if not images.is_floating_point():
            raise TypeError(
                f"images must be floating point in [-1, 1], got {images.dtype}; convert uint8 with x / 127.5 - 1"
            )
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images must be [B, 3, H, W] with B >= 1, got {list(images.shape)}")
        height, width = images.shape[2:]
        if self.any_size:
            self._check_sides(height, width)
        elif (height, width) != self.image_size:
            raise ValueError(
                f"images must be {self.image_size[0]}x{self.image_size[1]} (height x width) for this tokenizer, "
                f"got {height}x{width}; resize or crop them"
            )

    def _check_sides(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride or not height or not width:
            raise ValueError(
                f"images must be divisible by {self.stride} in height and width, got {height}x{width}; "
                f"resize or pad to {_up(height, self.stride)}x{_up(width, self.stride)}"
            )

    def check_codes(self, codes: Codes) -> None:
        """Raise one clear sentence unless ``codes`` come from a tokenizer of this spec."""
        if not len(codes):
            raise ValueError("codes must hold at least one image, got an empty batch")
        same = codes.spec.codebooks == self.spec.codebooks and codes.spec.layout.kind == self.spec.layout.kind
        if not same or not (self.any_size or codes.spec == self.spec):
            raise ValueError(
                f"codes must keep this tokenizer's spec {self.spec}, got {codes.spec}; re-encode the images"
            )

    def fingerprint(self) -> str:
        """Sixteen hex digits of configuration and weights: equal exactly when the codes mean the same.

        Half-precision weights count as the float32 they are read back as, and arguments at their defaults not at all:
        a tokenizer stays the same when its class learns an option.
        """
        told_apart_by = unusual(type(self), freeze(_public(self.config)))
        digest = sha256(json.dumps([self.spec.to_dict(), told_apart_by], sort_keys=True).encode())
        return _hashed(self, digest)

    def identity(self) -> dict[str, Any]:
        """What tells this tokenizer from others, as JSON values, for the record of what it made.

        ``class``, ``fingerprint``, ``spec``, ``config`` and, in ``weights``, sixteen hex digits of every part: of two
        tokenizers with unlike fingerprints they name the difference.
        """
        parts = {name: _hashed(part, sha256()) for name, part in self.named_children() if part.state_dict()}
        told = json.loads(json.dumps(unusual(type(self), freeze(_public(self.config)))))
        about = {"class": type(self).__name__, "fingerprint": self.fingerprint(), "spec": self.spec.to_dict()}
        return about | {"config": told, "weights": parts}

    def register_to_config(self, **kwargs: Any) -> None:
        """Record constructor arguments, components as specs. Called by the decorator of ``__init__``.

        What a family hands to the family that it extends is not its own.
        """
        own = signature(type(self)).parameters
        super().register_to_config(
            **freeze({name: value for name, value in kwargs.items() if name in own or name.startswith("_")})
        )

    def __getattr__(self, name: str) -> Any:
        """Find modules, parameters and buffers only: diffusers would answer with the spec of a component."""
        return nn.Module.__getattr__(self, name)

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """diffusers' reader of a saved configuration, with component specs turned back into components.

        They are built in the order of the constructor, where diffusers has that of a set: a seed then gives the same
        weights in every process.
        """
        init, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return build({name: init[name] for name in signature(cls).parameters if name in init}), unused, hidden

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights to a folder, whole or not at all; other arguments are diffusers'.

        Other files that the folder holds, such as a model card, stay.
        """
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)
            _keep_others(Path(save_directory), folder)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: no name, nothing to load
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a tokenizer of any family from a folder or a hub id, strictly.

        ``torch_dtype`` (or ``dtype``) casts all but the quantizers; other arguments are diffusers'.

        Raises:
            FileNotFoundError: the folder lacks its configuration or weights.
            ValueError: a tokenizer of another family than this class, or weights that are damaged or do not match the
                configuration key by key.
        """
        path = Path(pretrained_model_name_or_path)
        if path.exists() or path.is_absolute() or str(path).startswith("."):
            _check_folder(path / (kwargs.get("subfolder") or ""))
        dtypes = {kwargs.pop(name, None) for name in ("torch_dtype", "dtype")} - {None}
        options = {**kwargs, "low_cpu_mem_usage": kwargs.get("device_map") is not None, "output_loading_info": True}
        options["use_safetensors"] = True
        try:
            family = cls._family(str(path), **kwargs)
            loaded: Any = super(VisualTokenizer, family).from_pretrained(pretrained_model_name_or_path, **options)
        except (OSError, RuntimeError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{path} does not hold a readable tokenizer ({' '.join(str(error).split())}); save it again"
            ) from error
        model, report = loaded
        differing = {kind: keys for kind, keys in report.items() if keys}
        if differing:
            raise ValueError(f"weights in {path} must match its configuration key by key, got {differing}")
        nn.Module.to(model, *dtypes)
        return model.eval()

    @classmethod
    def _family(cls, name: str, **kwargs: Any) -> type[Self]:
        hub = {key: kwargs[key] for key in ("revision", "subfolder", "cache_dir", "local_files_only") if key in kwargs}
        config: Any = cls.load_config(name, **hub)
        class_name = str(config.get("_class_name"))
        families = import_module(__package__.rpartition(".")[0] if __package__ else "smalti")
        family: type[Any] | None = getattr(families, class_name, None) or _imported(VisualTokenizer, class_name)
        if family is None:
            raise ValueError(
                f"{name} holds a tokenizer of class {class_name!r}, which no imported module defines; "
                "import the module that defines it first"
            )
        if not issubclass(family, cls) and not issubclass(cls, family):
            raise ValueError(f"{name} holds a {class_name}, not a {cls.__name__}; load it with VisualTokenizer")
        return family if issubclass(family, cls) else cls


def load_tokenizer(folder: str) -> VisualTokenizer:
    """A saved tokenizer of any family, for a configuration to go on from: see :meth:`VisualTokenizer.from_pretrained`.

    Args:
        folder: where it was saved, or a hub id.
    """
    return VisualTokenizer.from_pretrained(folder)


def _reached(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves that the gradient of a tensor reaches."""
    nodes: list[Any] = [tensor.grad_fn]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        nodes += (following for following, _ in node.next_functions)
        if hasattr(node, "variable"):  # of torch's accumulators alone, where a gradient ends
            yield node.variable


@contextmanager
def _at_rest(weights: Iterable[Tensor]) -> Generator[None]:
    """Let no gradient of what is computed inside reach these weights."""
    resting = list(weights)
    for weight in resting:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in resting:
            weight.requires_grad = True


def _hashed(module: nn.Module, digest: Any) -> str:
    """Sixteen hex digits of a digest to which the weights of a module are added, half precision as float32."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().float() if tensor.is_floating_point() else tensor
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(digest.hexdigest())[:16]


def _imported(cls: type[VisualTokenizer], name: str) -> type[Any] | None:
    for child in cls.__subclasses__():
        if child.__name__ == name:
            return child
        if found := _imported(child, name):
            return found
    return None


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(f"a tokenizer folder was expected at {path}, which does not exist; check the path")
    names = {file.name for file in path.iterdir()}
    missing = [name for name in ("config.json", "diffusion_pytorch_model.safetensors") if name not in names]
    if missing and not any(name.endswith(".index.json") for name in names):
        raise FileNotFoundError(
            f"{path} should hold a tokenizer but lacks {', '.join(missing)}; save or train it again"
        )


def _keep_others(before: Path, after: Path) -> None:
    """Copy what a save does not write from the folder that is about to be replaced."""
    written = {file.name for file in after.iterdir()}
    for other in before.iterdir() if before.is_dir() else ():
        if other.name in written or other.name.startswith("diffusion_pytorch_model"):
            continue
        if other.is_dir():
            shutil.copytree(other, after / other.name, symlinks=True)
        else:
            shutil.copy2(other, after / other.name, follow_symlinks=False)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _up(side: int, stride: int) -> int:
    return max(1, -(-side // stride)) * stride
