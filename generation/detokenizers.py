"""What draws pictures from codes in place of a tokenizer's own pixel decoder, and its folder.

Knows no way of drawing. Every one rests on the tokenizer whose codes it was trained for, which is not part of it.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..data.files import atomic_file, atomic_folder
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from ..tokenizers.held import Shared

#: The file that says what a detokenizer is, beside the folders of its parts.
ABOUT = "decoder.json"

#: Where the noise of a batch comes from: one generator that every picture takes a seed from, in turn; one for each
#: picture; or torch's own.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


class Detokenizer(ModelMixin, ConfigMixin):
    """Codes to pixels, by a network that was trained beside a frozen tokenizer.

    It is saved as ``decoder.json`` and a folder for each part; the tokenizer is saved elsewhere and given at loading.

    Args:
        tokenizer: whose codes are decoded; kept outside the module tree: it is neither trained nor saved with this.
        expected: fingerprint of the tokenizer that this was trained for; None for one that is made for this tokenizer.

    Raises:
        ValueError: another tokenizer.
    """

    config_name = ABOUT
    image_size: tuple[int, int]  #: (H, W) of the pictures that it draws, pixels

    def __init__(self, tokenizer: VisualTokenizer, expected: str | None = None) -> None:
        super().__init__()
        self._tokenizer = Shared(tokenizer)
        self.tokenizer_fingerprint = tokenizer.fingerprint()
        if expected not in (None, self.tokenizer_fingerprint):
            raise ValueError(
                f"this decoder was trained for the codes of tokenizer {expected}, got {type(tokenizer).__name__} "
                f"{self.tokenizer_fingerprint}; take the tokenizer it was trained for, or train a decoder for this one"
            )

    @property
    def tokenizer(self) -> VisualTokenizer:
        """Whose codes are decoded."""
        return self._tokenizer.network

    @abstractmethod
    def decode(self, codes: Codes, generator: Generators = None) -> Tensor:
        """Pictures of codes.

        Args:
            codes: of B pictures.
            generator: decides what is drawn. A picture depends on its own seed and not on the rest of the batch, but
                for rounding.

        Returns:
            ``[B, 3, H, W]`` float32 in [-1, 1], clamped.

        Raises:
            ValueError: codes of another tokenizer, or another number of generators than pictures.
        """

    @abstractmethod
    def parts(self) -> Mapping[str, Any]:
        """What has a folder of its own, by its name; each is saved by its ``save_pretrained``."""

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """What else decides the pictures and is saved in ``decoder.json``, as plain values."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, numbers: dict[str, Any], tokenizer: VisualTokenizer, expected: str) -> Self:
        """One from a folder with its parts and :meth:`numbers`.

        Args:
            folder: of the detokenizer.
            numbers: what its ``decoder.json`` holds.
            tokenizer: whose codes are decoded.
            expected: fingerprint of the tokenizer that it was trained for.
        """

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise ``ValueError`` unless this decodes the codes of a tokenizer."""
        found = tokenizer.fingerprint()
        if found != self.tokenizer_fingerprint:
            raise ValueError(
                f"this decoder was trained for the codes of tokenizer {self.tokenizer_fingerprint}, got "
                f"{type(tokenizer).__name__} {found}; take the tokenizer it was trained for, or train a decoder for "
                "this one"
            )

    def schedulers(self) -> Sequence[Any]:
        """Schedulers of diffusers among its parts, whose settings decide the pictures too; none by default."""
        return []

    def fingerprint(self) -> str:
        """Sixteen hex digits of weights, settings and tokenizer: equal exactly when the same codes draw the same."""
        told = [type(self).__name__, self.numbers(), self.tokenizer_fingerprint]
        for scheduler in self.schedulers():
            settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
            told += [type(scheduler).__name__, settings]
        digest = sha256(json.dumps(told, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            values = tensor.detach().float() if tensor.is_floating_point() else tensor
            digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder, whole or not at all; other arguments are those of diffusers and go to the parts."""
        about = {"_class_name": type(self).__name__, "tokenizer": self.tokenizer_fingerprint, **self.numbers()}
        with atomic_folder(Path(save_directory)) as folder:
            for name, part in self.parts().items():
                part.save_pretrained(folder / name, *args, **kwargs)
            with atomic_file(folder / ABOUT) as file:
                file.write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: no name, nothing to load
        cls, pretrained_model_name_or_path: str | PathLike[str], tokenizer: VisualTokenizer
    ) -> Detokenizer:
        """Load one of any kind from a folder, strictly, in evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder.
            tokenizer: whose codes are decoded.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.
            ValueError: damaged files, or a tokenizer that it was not trained for.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(f"{folder} should hold a decoder but lacks {ABOUT}; check the path or train one")
        try:
            about = json.loads((folder / ABOUT).read_text())
            kind, expected = about.pop("_class_name"), about.pop("tokenizer")
            family = _kind(kind)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / ABOUT} does not describe a decoder ({error}); save it again") from error
        if not issubclass(family, cls):
            raise ValueError(f"{folder} holds a {kind}, not a {cls.__name__}; load it with Detokenizer")
        try:
            return family.read(folder, about, tokenizer, expected).eval()
        except TypeError as error:
            raise ValueError(f"{folder / ABOUT} does not describe a {kind} ({error}); save it again") from error


def load_decoder(folder: str | PathLike[str], tokenizer: VisualTokenizer) -> Detokenizer:
    """A saved detokenizer of any kind: see :meth:`Detokenizer.from_pretrained`."""
    return Detokenizer.from_pretrained(folder, tokenizer)


def each(generator: Generators, count: int) -> list[torch.Generator] | None:
    """One generator for each of ``count`` pictures; None where torch's own draws.

    A single generator gives every picture a seed, in turn: batches of any size then draw the same pictures.

    Raises:
        ValueError: another number of generators.
    """
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
        return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    if len(generator) != count:
        raise ValueError(f"one generator per picture is needed, got {len(generator)} for {count} pictures; pass one")
    return list(generator)


def normal(generators: Sequence[torch.Generator] | None, count: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers ``[count, *shape]`` float32, those of a picture from its generator."""
    if generators is None:
        return torch.randn(count, *shape)
    return torch.stack([torch.randn(*shape, generator=each, device=each.device) for each in generators])


def _kind(name: str) -> type[Detokenizer]:
    homes = {"DiffusionDecoder": "diffusion", "UnCLIPDecoder": "unclip"}
    if name in homes:
        return getattr(import_module(f".{homes[name]}", __package__), name)
    found = [kind for kind in _all(Detokenizer) if kind.__name__ == name]
    if not found:
        raise KeyError(f"class {name!r}, which no imported module defines")
    return found[0]


def _all(kind: type[Detokenizer]) -> list[type[Detokenizer]]:
    children = kind.__subclasses__()
    return [*children, *(grandchild for child in children for grandchild in _all(child))]
