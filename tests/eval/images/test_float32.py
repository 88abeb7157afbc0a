"""The setting is changed inside, comes back whatever happens, and stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from smalti.eval.images.float32 import full_float32

CUDNN: Any = torch.backends.cudnn


@pytest.fixture(params=["tf32", "ieee", "none"])
def before(request: pytest.FixtureRequest) -> Iterator[str]:
    kept = CUDNN.conv.fp32_precision
    CUDNN.conv.fp32_precision = request.param
    yield request.param
    CUDNN.conv.fp32_precision = kept


def others() -> tuple[object, ...]:
    return CUDNN.enabled, CUDNN.benchmark, CUDNN.deterministic, CUDNN.rnn.fp32_precision, CUDNN.fp32_precision


def test_convolutions_are_whole_inside_and_as_before_outside(before: str):
    around = others()
    with full_float32():
        assert CUDNN.conv.fp32_precision == "ieee"
        assert others() == around
        with full_float32():
            pass
        assert CUDNN.conv.fp32_precision == "ieee"
        assert torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).item() == 9
    assert (CUDNN.conv.fp32_precision, others()) == (before, around)


def test_an_error_inside_changes_nothing(before: str):
    with pytest.raises(KeyError, match="inside"), full_float32():
        raise KeyError("inside")
    assert CUDNN.conv.fp32_precision == before


def test_the_older_switch_is_read_as_before():
    kept = CUDNN.allow_tf32
    for allowed in (False, True):
        CUDNN.allow_tf32 = allowed
        with full_float32():
            pass
        assert CUDNN.allow_tf32 is allowed
    CUDNN.allow_tf32 = kept
