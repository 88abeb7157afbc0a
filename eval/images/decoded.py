"""Codes as the pictures that would be saved, whatever decodes them: a tokenizer, or what was trained beside one."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.transforms import to_uint8
from ...generation.detokenizers import Detokenizer
from ...tokenizers.base import VisualTokenizer
from ...tokenizers.codes import Codes
from .float32 import full_float32


class Rebuilder:
    """Decodes the pictures of a set in order, batch by batch.

    What was trained beside a tokenizer draws every picture from the seed and the picture's number, whatever the
    batches; a tokenizer's own decoder draws from one generator a batch, where it draws at all.

    Args:
        decoder: in evaluation mode, on any device; a tokenizer must have a pixel decoder.
        size: (H, W) of the originals; pictures of another size are resized to it (bicubic, antialiased).
        seed: >= 0.
    """

    def __init__(self, decoder: VisualTokenizer | Detokenizer, size: tuple[int, int], seed: int = 0) -> None:
        self._decoder, self._size, self._seed = decoder, size, seed
        self.pictures = 0  #: decoded so far
        self.seconds = 0.0  #: that decoding them took

    def __call__(self, codes: Codes, first: int | None = None) -> Tensor:
        """Some pictures, by default the next ones.

        Args:
            codes: of B pictures, on the decoder's device.
            first: number of the first of them in the set, where others decode some of it.

        Returns:
            ``[B, 3, H, W]`` uint8, on the decoder's device.

        Raises:
            ValueError: pictures that are not finite; the sentence has the number of the first.
        """
        begun, place = time.perf_counter(), self.pictures if first is None else first
        with full_float32():
            images = self._decode(codes, place).float()
        finite = images.isfinite().flatten(1).all(1).cpu()  # waits for the device
        self.seconds += time.perf_counter() - begun
        if not bool(finite.all()):
            wrong = int((~finite).nonzero()[0])
            whose = "decoder" if isinstance(self._decoder, Detokenizer) else "tokenizer"
            raise ValueError(
                f"decoded pictures must be finite, got NaN or infinity in picture {place + wrong}; the {whose} "
                "is damaged, or needs float32"
            )
        self.pictures += len(images)
        levels = to_uint8(images)
        return levels if tuple(levels.shape[2:]) == self._size else resized(levels, self._size)

    def _decode(self, codes: Codes, first: int) -> Tensor:
        if isinstance(self._decoder, Detokenizer):
            return self._decoder.decode(codes, picture_generators(self._seed, first, len(codes)))
        drawn = picture_generators(self._seed, first, 1)[0].initial_seed()
        return self._decoder.decode(codes, torch.Generator(self._decoder.device).manual_seed(drawn))


def paints(tokenizer: VisualTokenizer) -> bool:
    """Whether a tokenizer has a pixel decoder of its own."""
    return getattr(tokenizer, "decoder", None) is not None


def picture_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """One generator for each of ``count`` pictures, decided by the seed and the picture's number alone.

    Args:
        seed: >= 0.
        first: number of the first picture.
        count: pictures.
    """
    numbers = range(first, first + count)
    states = (np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] for number in numbers)
    return [torch.Generator().manual_seed(int(state) >> 1) for state in states]


def resized(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, 3, H, W]`` uint8 pictures at another (H, W): bicubic and antialiased, as PIL resizes files."""
    height, width = size
    pictures = (Image.fromarray(level.permute(1, 2, 0).cpu().numpy()) for level in levels)
    found = [np.array(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(levels.device)
