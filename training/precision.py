"""In which precision trained weights are written."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
from torch import nn

SaveDtype = Literal["float32", "bfloat16", "float16"]

M = TypeVar("M", bound=nn.Module)


def exported(module: M, dtype: SaveDtype) -> M:
    """The module as it is to be saved: itself in float32, else a copy whose weights are rounded to ``dtype``.

    Half the bytes, and read back as float32. Quantizers stay in float32.
    """
    return module if dtype == "float32" else copy.deepcopy(module).to(getattr(torch, dtype))
