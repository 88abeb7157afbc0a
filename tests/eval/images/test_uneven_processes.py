"""Scores of sets over two processes with 700 and 300 images, in unlike batches, equal those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smalti.eval.images.frechet import FrechetDistance
from smalti.eval.images.inception_score import InceptionScoreMetric
from smalti.eval.images.kernel_distance import KernelDistanceMetric

RANK = """
import json, sys, warnings
import torch
import torch.distributed as dist
from smalti.eval.images.frechet import FrechetDistance
from smalti.eval.images.inception_score import InceptionScoreMetric
from smalti.eval.images.kernel_distance import KernelDistanceMetric
warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
features = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
real = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) * 1.2
frechet, inception = FrechetDistance(16), InceptionScoreMetric(1000, 4, 16)
kernel, placed = KernelDistanceMetric(16, 5, 100, seed=2), FrechetDistance(16)
mine = torch.arange(1000)[::3][:300] if rank else torch.tensor(sorted(set(range(1000)) - set(range(0, 900, 3))))
assert len(mine) == (300 if rank else 700)
for index in mine.split(200 if rank else 70):   # 2 batches here, 10 there
    frechet.update(features[index] + 40, real=False)
    inception.update(features[index], index)
    kernel.update(features[index], real=False, index=index)
    placed.update(features[index], real=False, index=index)
for metric in (kernel, placed):
    metric.update(features[:2], real=False, index=torch.arange(2))  # what a padding sampler repeats
if rank == 0:   # the reference is on this process alone
    frechet.update(real + 40, real=True)
    kernel.update(real, real=True, index=torch.arange(200))
    placed.update(real, real=True)
answer = {"frechet": frechet.compute().item(), "count": frechet.statistics(real=False).count}
answer |= {"placed": placed.compute().item(), "distinct": placed.statistics(real=False).count}
answer["here"], answer["kept"] = int(frechet.features_count), len(placed.features(real=False))
for name, metric in (("inception", inception), ("kernel", kernel)):
    answer |= {f"{name} {part}": value.item() for part, value in metric.compute().items()}
try:
    kernel.update(features[:2], real=False)
except ValueError as error:
    answer["refused"] = str(error)
print(json.dumps(answer))
dist.destroy_process_group()
"""


def alone() -> dict[str, float]:
    features = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    real = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) * 1.2
    frechet, inception = FrechetDistance(16), InceptionScoreMetric(1000, 4, 16)
    kernel, placed = KernelDistanceMetric(16, 5, 100, seed=2), FrechetDistance(16)
    placed.update(features, real=False, index=torch.arange(1000))
    placed.update(real, real=True)
    for batch in features.split(128):
        frechet.update(batch + 40, real=False)
        inception.update(batch)
        kernel.update(batch, real=False)
    frechet.update(real + 40, real=True)
    kernel.update(real, real=True)
    scores = {"frechet": float(frechet.compute()), "count": frechet.statistics(real=False).count}
    scores |= {"placed": float(placed.compute()), "distinct": 1000}
    for name, metric in (("inception", inception), ("kernel", kernel)):
        scores |= {f"{name} {part}": float(value) for part, value in metric.compute().items()}
    return scores


def test_two_processes_equal_one(tmp_path: Path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=280)[0].strip().splitlines()[-1]) for process in ranks]
    expected = alone()
    assert [answer.pop("here") for answer in answers] == [700, 300]  # asking leaves each process its own sums
    assert [answer.pop("kept") for answer in answers] == [701, 301]  # 0 is the first's too, 1 the second's
    refusals = [answer.pop("refused") for answer in answers]
    assert (
        refusals
        == ["expected the place of each image, got none on one of 2 processes; pass index=, the places in the data set"]
        * 2
    )
    assert answers[0] == answers[1]
    assert answers[0] == pytest.approx(expected, rel=1e-10)
    for name in (
        "kernel mean",
        "kernel std",
        "count",
        "placed",
        "distinct",
    ):  # the same rows in the same order: to the last bit
        assert answers[0][name] == expected[name]
