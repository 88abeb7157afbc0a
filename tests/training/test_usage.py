"""Usage and perplexity over a fixed window."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
from smalti.training.usage import CodeUsage

SPEC = CodeSpec(CodeLayout("sequence", (4,)), (Codebook("semantic", 8, 2), Codebook("pixel", 4)))
STREAM = torch.stack(
    [torch.randint(0, size, (24, 4), generator=torch.Generator().manual_seed(size)) for size in (8, 8, 4)], dim=-1
)


def measured(window: int, *batches: torch.Tensor) -> dict[str, float]:
    meter = CodeUsage(window)
    for ids in batches:
        meter.update(Codes.full(ids, SPEC))
    return {name: float(value) for name, value in meter.compute().items()}


def test_by_hand():
    ids = torch.tensor([[[0, 1, 2], [0, 1, 2], [3, 1, 2], [3, 1, 2]]])
    found = measured(100, ids)
    expected = {
        "usage/semantic": 3 / 8,
        "usage/semantic.0": 2 / 8,
        "usage/semantic.1": 1 / 8,
        "usage/pixel": 1 / 4,
        "perplexity/semantic": 2 ** (0.25 * 2 * 2 + 0.5),  # shares 1/4, 1/4, 1/2: entropy of 1.5 bits
        "perplexity/semantic.0": 2.0,
        "perplexity/semantic.1": 1.0,
        "perplexity/pixel": 1.0,
    }
    assert found == pytest.approx(expected)


def test_the_batch_size_does_not_matter():
    one = measured(20, *STREAM.split(1))
    assert one == measured(20, *STREAM.split(3)) == measured(20, STREAM[-5:])
    assert one != measured(20, STREAM)


def test_a_long_batch_is_counted_whole():
    assert measured(4, STREAM) == measured(10**6, STREAM)


def test_padding_is_left_out():
    spec = CodeSpec(SPEC.layout, (Codebook("pixel", 4),), dynamic=True)
    ids = torch.tensor([[[0], [1], [-1], [-1]]])
    meter = CodeUsage()
    meter.update(Codes(ids, ids[..., 0] >= 0, spec))
    assert meter.compute()["usage/pixel"] == 0.5


def test_an_empty_meter_and_an_empty_window_are_errors():
    with pytest.raises(ValueError, match=r"got none yet; call update first"):
        CodeUsage().compute()
    with pytest.raises(ValueError, match=r"window must be >= 1 token, got 0"):
        CodeUsage(0)


def _worker(rank: int, store: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results[rank] = measured(16, *STREAM[rank::2].split(2))
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_worker, (str(tmp_path / "store"), results), nprocs=2)
        found = dict(results)
    recent = torch.cat([STREAM[0::2][-2:], STREAM[1::2][-2:]])
    assert found[0] == found[1] == pytest.approx(measured(16, recent))
