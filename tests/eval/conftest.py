"""A decoder with one weight, so that what is said about decoders can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from smalti.generation.detokenizers import Detokenizer, Generators, each, normal
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.codes import Codes


class Brush(Detokenizer):
    """What the tokenizer's own decoder makes of codes, and noise of its own for every picture."""

    def __init__(self, tokenizer: VisualTokenizer, strength: float = 0.1, side: int | None = None) -> None:
        super().__init__(tokenizer)
        self.strength = nn.Parameter(torch.tensor(strength))
        self.image_size = tokenizer.image_size if side is None else (side, side)
        self.batches: list[int] = []

    def decode(self, codes: Codes, generator: Generators = None) -> Tensor:
        self.batches.append(len(codes))
        noise = normal(each(generator, len(codes)), len(codes), (3, *self.image_size))
        images = nn.functional.interpolate(self.tokenizer.decode(codes), self.image_size, mode="nearest")
        return (images + self.strength.detach() * noise).clamp(-1, 1)

    def untrained(self, seed: int = 0) -> Brush:
        return Brush(self.tokenizer, 5.0)

    def parts(self) -> Mapping[str, Any]:
        return {}

    def numbers(self) -> dict[str, Any]:
        return {"bristles": 3}

    @classmethod
    def read(cls, folder: Path, numbers: dict[str, Any], tokenizer: VisualTokenizer, expected: str) -> Self:
        return cls(tokenizer)


@pytest.fixture
def brush() -> type[Brush]:
    return Brush
