"""Frechet distance beside torchmetrics' and beside a float64 scipy ``sqrtm``: digits and CPU seconds, in one process.

    python benchmarks/frechet.py [--images 5000] [--features 2048] [--runs 5] [--threads 1] [--scipy]

All read the same correlated, rectified features. From statistics is the distance alone; from features includes the sums
over images, which cost both alike. ``scipy``, which smalti does not need, is only run when asked for.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from smalti.eval.images.feature_statistics import FeatureStatistics
from smalti.eval.images.frechet import FrechetDistance, statistics_distance

BATCH = 500


def features(images: int, width: int, seed: int) -> Tensor:
    """``[N, D]`` float32 like pooled features: non-negative, a quarter of the directions carry most of the spread."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=torch.Generator().manual_seed(99)) / (width // 4) ** 0.5
    rows = torch.randn(images, width // 4, generator=generator) @ mixing * (1 + 0.1 * seed)
    return (rows + 0.3 * torch.randn(images, width, generator=generator)).relu()


class Passed(nn.Module):
    """An extractor that hands on the features it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: Tensor) -> Tensor:
        """The same rows."""
        return rows


def ours(first: Tensor, second: Tensor) -> float:
    """Batches into sums, then the distance."""
    metric = FrechetDistance(first.shape[1])
    for real, side in ((True, second), (False, first)):
        for batch in side.split(BATCH):
            metric.update(batch, real)
    return float(metric.compute())


def theirs(first: Tensor, second: Tensor) -> float:
    """The same in torchmetrics, whose answer is float32 for float32 features."""
    metric = FrechetInceptionDistance(feature=Passed(first.shape[1]), input_img_size=(1, 1, 1))
    for real, side in ((True, second), (False, first)):
        for batch in side.split(BATCH):
            metric.update(batch, real=real)
    metric.orig_dtype = torch.float64
    return float(metric.compute())


def by_scipy(first: Tensor, second: Tensor) -> float:
    """The definition, with scipy's root of the product of numpy's covariances."""
    import numpy as np
    from scipy.linalg import sqrtm

    one, two = first.double().numpy(), second.double().numpy()
    covariances = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = np.real(np.trace(sqrtm(covariances[0] @ covariances[1])))
    apart = np.square(one.mean(0) - two.mean(0)).sum()
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root)


def main() -> None:
    """One line per way; each is compared with the first of its group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scipy", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "Metric `FrechetInceptionDistance`")
    first, second = (features(args.images, args.features, seed) for seed in (1, 2))
    one, two = FeatureStatistics.from_features(first), FeatureStatistics.from_features(second)
    ways: dict[str, Callable[[], float]] = {
        "from statistics: smalti": lambda: statistics_distance(one, two),
        "from statistics: torchmetrics": lambda: float(
            _compute_fid(one.mean, one.covariance, two.mean, two.covariance)
        ),
        "from features: smalti": lambda: ours(first, second),
        "from features: torchmetrics": lambda: theirs(first, second),
    }
    if args.scipy:
        ways["from features: scipy's sqrtm"] = lambda: by_scipy(first, second)
    answers: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs):
        for name, way in ways.items():
            start = time.process_time()
            answers[name] = way()
            seconds[name].append(time.process_time() - start)
    exact = list(answers.values())[-1]
    print(f"{args.images} images, {args.features} features, {args.threads} thread(s); off: relative to the last line")
    for name, times in seconds.items():
        ours_here = statistics.median(seconds[f"{name.split(':')[0]}: smalti"])
        ratio, off = statistics.median(times) / ours_here, abs(answers[name] - exact) / exact
        print(
            f"{name:32} {answers[name]:.10f}, {off:.1e} off; {statistics.median(times):.2f} CPU s, {ratio:.2f} x ours"
        )


if __name__ == "__main__":
    main()
