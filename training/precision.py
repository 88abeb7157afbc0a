"""In which precision trained weights are written."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

SaveDtype = Literal["float32", "bfloat16", "float16"]


@contextmanager
def rounded(module: nn.Module, dtype: SaveDtype) -> Generator[None]:
    """Round the weights of a module to ``dtype`` for as long as it is being saved, then put the exact ones back.

    Half the bytes, and read back as float32. Quantizers stay in float32.
    """
    weights = [(parameter, parameter.data) for parameter in module.parameters()]
    buffers = [(part, name, value) for part in module.modules() for name, value in part.named_buffers(recurse=False)]
    nn.Module.to(module, getattr(torch, dtype))
    try:
        yield
    finally:
        for parameter, exact in weights:
            parameter.data = exact
        for part, name, value in buffers:
            part._buffers[name] = value
