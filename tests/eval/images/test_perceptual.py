"""The mean of pairs, whatever the batches and the processes; and that the weights have an identity."""

import json
import math
from pathlib import Path

import pytest
import torch

from smalti.eval.images.perceptual import LPIPSMetric
from smalti.tokenizers.perceptual import LPIPS

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def backbone(path: Path, seed: int = 0) -> Path:
    """Random weights in torchvision's layout of AlexNet."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for at, (after, before, kernel) in SHAPES.items():
        scale = (2 / (before * kernel * kernel)) ** 0.5
        weights[f"features.{at}.weight"] = scale * torch.randn(after, before, kernel, kernel, generator=generator)
        weights[f"features.{at}.bias"] = torch.zeros(after)
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def distance(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    return LPIPS(backbone(tmp_path_factory.mktemp("weights") / "alex.pth"), net="alex")


def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    return first, second


def test_mean_does_not_depend_on_batches(distance: LPIPS):
    first, second = pairs(5)
    metric = LPIPSMetric(distance)
    for start, end in ((0, 1), (1, 4), (4, 5)):
        metric.update(first[start:end], second[start:end])
    expected = sum(float(distance(first[at : at + 1], second[at : at + 1])) for at in range(5)) / 5
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    metric.reset()
    metric.update(first, first)
    assert metric.compute().item() == 0


def test_autocast_and_casts_change_nothing(distance: LPIPS, precisions: set[str]):
    first, second = pairs(2)
    plain, cast = LPIPSMetric(distance), LPIPSMetric(distance).half()
    plain.update(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(first, second)
    assert plain.compute().item() == cast.compute().item()
    assert precisions == {"ieee"}


def test_weights_are_named_and_not_saved(distance: LPIPS, tmp_path: Path):
    metric = LPIPSMetric(distance)
    other = LPIPSMetric(LPIPS(backbone(tmp_path / "other.pth", seed=1), net="alex"))
    again = LPIPSMetric(LPIPS(backbone(tmp_path / "same.pth"), net="alex"))
    assert metric.weights_hash == again.weights_hash != other.weights_hash
    assert (metric.name, len(metric.weights_hash)) == ("LPIPS 0.1, alex", 64)
    assert json.loads(json.dumps(metric.describe())) == metric.describe()
    assert metric.describe()["weights_hash"] == metric.weights_hash
    assert not metric.state_dict()
    assert not list(metric.parameters())


def test_uneven_parts_add_up(distance: LPIPS):
    """As processes add their states: one saw three pairs, one a single one."""
    first, second = pairs(4)
    whole, parts = LPIPSMetric(distance), [LPIPSMetric(distance) for _ in range(2)]
    for at in range(4):
        whole.update(first[at : at + 1], second[at : at + 1])
        parts[at == 3].update(first[at : at + 1], second[at : at + 1])
    parts[0].merge_state(parts[1])
    assert parts[0].compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)
    assert parts[0].count.item() == 4


def test_refusals(distance: LPIPS):
    metric = LPIPSMetric(distance)
    first, second = pairs(1)
    with pytest.raises(TypeError, match=r"floating point in \[-1, 1\], got torch\.uint8; use data\.transforms"):
        metric.update(first.to(torch.uint8), second)
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got a magnitude of 255; clamp"):
        metric.update(torch.full_like(first, 255), second)
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got a magnitude of nan"):
        metric.update(first, second * math.nan)
    with pytest.raises(ValueError, match=r"two batches \[B, 3, H, W\] of one shape, got"):
        metric.update(first, torch.cat([second, second]))
    with (
        pytest.warns(UserWarning, match="before the ``update`` method"),
        pytest.raises(ValueError, match="at least one pair, got none; call update"),
    ):
        LPIPSMetric(distance).compute()
