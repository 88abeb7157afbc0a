"""float32 as it says: a GPU shortens the factors of convolutions to 10 bits (TF32) unless it is told not to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Generator[None]:
    """Convolve float32 tensors with all their bits inside; other settings, and this one afterwards, stay as they were.

    Products of matrices are not touched: PyTorch leaves them whole unless the user asks otherwise.
    """
    backend: Any = torch.backends.cudnn
    convolution = backend.conv
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = before
