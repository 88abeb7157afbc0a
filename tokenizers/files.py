"""Codes on disk: one safetensors file that says which tokenizer made them, of which pictures, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.files import atomic_file
from .base import VisualTokenizer
from .codes import Codes, CodeSpec

#: The one metadata entry; safetensors writes several in an order that changes from run to run.
_ENTRY = "smalti.codes"
_FIELDS = ("tokenizer", "spec", "transform", "names")
_PICTURES = "pictures_hash"  # older files lack it


@dataclass(frozen=True)
class CodesFile:
    """The codes of M pictures and where they come from.

    The file holds ``ids`` (int32 ``[M, N, D]``), ``mask`` (bool ``[M, N]``) and the rest as JSON in its metadata; equal
    contents are equal bytes.

    Raises:
        ValueError: another number of names than of pictures.
    """

    codes: Codes
    names: tuple[str, ...]  #: of the pictures
    fingerprint: str  #: of the tokenizer that made the codes
    transform: Mapping[str, Any] = field(default_factory=dict)  #: how pictures became tensors, as JSON values
    pictures_hash: str | None = None  #: of the pictures' own pixels in their order; None where it is not known

    def __post_init__(self) -> None:
        if len(self.names) != len(self.codes):
            raise ValueError(f"codes need one name per picture, got {len(self.names)} for {len(self.codes)} pictures")

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            DiskFullError: no space left; the old file, if any, is untouched.
        """
        values = (self.fingerprint, self.codes.spec.to_dict(), dict(self.transform), list(self.names))
        about = json.dumps(dict(zip(_FIELDS, values, strict=True)) | {_PICTURES: self.pictures_hash})
        tensors = {"ids": self.codes.ids.cpu().to(torch.int32), "mask": self.codes.mask.cpu()}
        with atomic_file(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {_ENTRY: about})

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or holds something else than codes.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"a file of codes was expected at {path}, got no such file; check the path")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})[_ENTRY])
                ids, mask = file.get_tensor("ids").long(), file.get_tensor("mask")
            fingerprint, spec, transform, names = (about[name] for name in _FIELDS)
            codes = Codes(ids, mask, CodeSpec.from_dict(spec))
            return cls(codes, tuple(names), fingerprint, transform, about.get(_PICTURES))
        except (SafetensorError, TypeError, AttributeError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} should be a safetensors file, got a damaged one ({reason}); encode the pictures again"
            ) from error
        except KeyError as error:
            raise ValueError(f"{path} should hold codes of pictures but lacks {error}; write it with encode") from error

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise unless ``tokenizer`` made these codes.

        Raises:
            ValueError: another fingerprint; the sentence names both.
        """
        if tokenizer.fingerprint() != self.fingerprint:
            raise ValueError(
                f"these codes were made by tokenizer {self.fingerprint}, got tokenizer {tokenizer.fingerprint()}; "
                "decode them with the one that made them, or encode the pictures again"
            )
