"""What the tests of scores share."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """How cuDNN may compute float32 convolutions, gathered at each that runs."""
    seen: set[str] = set()
    backend: Any = torch.backends.cudnn
    convolve = torch.nn.Conv2d._conv_forward

    def recorded(self: torch.nn.Conv2d, *args: torch.Tensor) -> torch.Tensor:
        seen.add(backend.conv.fp32_precision)
        return convolve(self, *args)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", recorded)
    return seen
