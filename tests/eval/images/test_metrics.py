"""Known answers, a slow independent SSIM, and sums that stay exact over two uneven processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.eval.images.metrics import (
    PSNR_CAP,
    ReconstructionMetrics,
    l1,
    psnr,
    ssim,
    ssim_llamagen_compat,
    ssim_uniform,
)


def pictures(count: int, seed: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """One channel in [0, 1], window by window, as in the 2004 paper with mirrored borders."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    first, second = (np.pad(channel, 5, mode="reflect") for channel in (first, second))
    scores = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = (channel[top : top + 11, left : left + 11] for channel in (first, second))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            scores.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(scores))


def test_psnr_known_answers():
    black = torch.full((3, 3, 4, 4), -1.0)
    other = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.full((3, 4, 4), -0.8)])
    expected = [0.0, 20 * math.log10(2), 20.0]  # errors of 1, 1/2 and 1/10 on the unit scale
    assert psnr(other, black).tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_an_exact_copy_is_the_cap():
    images = pictures(2, 0)
    assert psnr(images, images).tolist() == [PSNR_CAP, PSNR_CAP]


def test_psnr_is_per_image_not_pooled():
    target = torch.full((2, 3, 4, 4), -1.0)
    images = torch.stack([torch.full((3, 4, 4), -0.8), torch.full((3, 4, 4), -0.98)])
    assert psnr(images, target).mean().item() == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_ssim_equals_the_slow_loop():
    images, targets = pictures(2, 1, 14), pictures(2, 2, 14)
    targets = 0.7 * images + 0.3 * targets
    first, second = ((side.double().numpy() + 1) / 2 for side in (images, targets))
    slow = [np.mean([slow_ssim(first[b, c], second[b, c]) for c in range(3)]) for b in range(2)]
    assert ssim(images, targets).tolist() == pytest.approx(slow, abs=1e-4)
    assert ssim(images.double(), targets.double()).tolist() == pytest.approx(slow, abs=1e-9)


def test_ssim_of_an_exact_copy_is_one():
    images = pictures(2, 3)
    assert ssim(images, images).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def slow_uniform(first: np.ndarray, second: np.ndarray, data_range: float) -> float:
    """One channel in [0, 1], every 7x7 window inside it, covariances by the definition for a sample."""
    scores = []
    for top in range(first.shape[0] - 6):
        for left in range(first.shape[1] - 6):
            x, y = (channel[top : top + 7, left : left + 7].flatten() for channel in (first, second))
            (vx, cov), (_, vy) = np.cov(x, y, ddof=1)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            numerator = (2 * x.mean() * y.mean() + c1) * (2 * cov + c2)
            scores.append(numerator / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (vx + vy + c2)))
    return float(np.mean(scores))


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_uniform_ssim_equals_the_slow_loop(data_range: float):
    images, targets = pictures(2, 1, 12)[..., :10].double(), pictures(2, 2, 12)[..., :10].double()
    targets = 0.7 * images + 0.3 * targets
    first, second = ((side.numpy() + 1) / 2 for side in (images, targets))
    slow = [np.mean([slow_uniform(first[b, c], second[b, c], data_range) for c in range(3)]) for b in range(2)]
    assert ssim_uniform(images, targets, data_range).tolist() == pytest.approx(slow, abs=1e-12)
    assert ssim_uniform(images.float(), targets.float(), data_range).tolist() == pytest.approx(slow, abs=1e-6)


def test_uniform_ssim_equals_scikit_image():
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    images = pictures(2, 1, 20).double()
    targets = 0.6 * images + 0.4 * pictures(2, 2, 20).double()
    pairs = [
        ((a.permute(1, 2, 0).numpy() + 1) / 2, (b.permute(1, 2, 0).numpy() + 1) / 2)
        for a, b in zip(images, targets, strict=True)
    ]
    for data_range in (1.0, 2.0):
        theirs = [reference(a, b, data_range=data_range, channel_axis=-1) for a, b in pairs]
        assert ssim_uniform(images, targets, data_range).tolist() == pytest.approx(theirs, abs=1e-12)


def test_the_compatibility_ssim_is_the_inflated_one():
    images = pictures(2, 1)
    targets = 0.7 * images + 0.3 * pictures(2, 2)
    inflated = ssim_llamagen_compat(images, targets)
    assert torch.equal(inflated, ssim_uniform(images, targets, 2.0))
    assert bool((inflated > ssim_uniform(images, targets) + 0.001).all())
    assert ssim_llamagen_compat(images, images).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_uniform_ssim_of_flat_pictures_by_hand():
    black, grey = torch.full((1, 3, 7, 7), -1.0), torch.zeros(1, 3, 7, 7)
    assert ssim_uniform(black, grey).item() == pytest.approx(1e-4 / (0.25 + 1e-4), rel=1e-9)
    assert ssim_llamagen_compat(black, grey).item() == pytest.approx(4e-4 / (0.25 + 4e-4), rel=1e-9)


def test_compatibility_values_by_hand():
    target = torch.full((2, 3, 12, 12), -1.0)
    images = torch.stack([torch.full((3, 12, 12), -0.8), torch.full((3, 12, 12), -0.98)])  # errors of 1/10 and 1/100
    metric = ReconstructionMetrics(compatibility=True)
    for at in range(2):
        metric.update(images[at : at + 1], target[at : at + 1])
    scores = metric.compute()
    assert scores["psnr"].item() == pytest.approx(30, abs=1e-3)
    assert scores["psnr_pooled"].item() == pytest.approx(-10 * math.log10((1e-2 + 1e-4) / 2), abs=1e-5)
    assert scores["ssim_llamagen_compat"].item() == pytest.approx(ssim_llamagen_compat(images, target).mean().item())


def test_pooled_psnr_weighs_pixels_and_is_capped():
    metric = ReconstructionMetrics(compatibility=True)
    metric.update(torch.full((1, 3, 12, 12), -0.8), torch.full((1, 3, 12, 12), -1.0))
    metric.update(torch.full((1, 3, 12, 24), -1.0), torch.full((1, 3, 12, 24), -1.0))
    with_copies = metric.compute()["psnr_pooled"].item()
    assert with_copies == pytest.approx(-10 * math.log10(1e-2 / 3), abs=1e-5)
    metric.reset()
    metric.update(pictures(1, 0), pictures(1, 0))
    assert metric.compute()["psnr_pooled"].item() == PSNR_CAP


def test_compatibility_values_are_asked_for_and_described():
    for compatibility in (False, True):
        metric = ReconstructionMetrics(compatibility=compatibility)
        metric.update(pictures(1, 0), pictures(1, 1))
        assert set(metric.describe()) == set(metric.compute()) - {"count", "capped"}
        assert ("ssim_llamagen_compat" in metric.describe()) == compatibility
        assert json.loads(json.dumps(metric.describe())) == metric.describe()


def test_l1_is_on_the_unit_scale():
    assert l1(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).tolist() == [0.5]


def test_half_precision_images_are_scored_in_float32():
    images = pictures(2, 4).bfloat16()
    assert psnr(images, images.flip(0)).dtype == torch.float32


def test_means_do_not_depend_on_batches():
    images, targets = pictures(7, 5), pictures(7, 6)
    targets[2] = images[2]
    whole, parts = ReconstructionMetrics(), ReconstructionMetrics()
    whole.update(images, targets)
    for start, end in ((0, 1), (1, 6), (6, 7)):
        parts.update(images[start:end], targets[start:end])
    first, second = whole.compute(), parts.compute()
    assert first["psnr"].item() == pytest.approx(psnr(images, targets).double().mean().item(), abs=1e-9)
    assert {name: value.item() for name, value in second.items()} == pytest.approx(
        {name: value.item() for name, value in first.items()}, abs=1e-6
    )
    assert (first["capped"].item(), first["count"].item()) == (1, 7)


def test_states_keep_their_precision():
    metric = ReconstructionMetrics().half()
    assert (metric.psnr_sum.dtype, metric.count.dtype) == (torch.float64, torch.int64)


RANK = """
import sys, warnings
import torch
import torch.distributed as dist
from smalti.eval.images.metrics import ReconstructionMetrics
warnings.simplefilter("ignore")
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
metric = ReconstructionMetrics(compatibility=True)
for at in range(5) if rank == 0 else []:   # rank 1 never sees an image
    metric.update(images[at : at + 1], images[at : at + 1].flip(-1))
print({name: value.item() for name, value in metric.compute().items()})
dist.destroy_process_group()
"""


def test_exact_over_two_uneven_processes(tmp_path: Path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=240)[0].strip().splitlines()[-1] for process in ranks]
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric = ReconstructionMetrics(compatibility=True)
    for at in range(5):
        metric.update(images[at : at + 1], images[at : at + 1].flip(-1))
    alone = str({name: value.item() for name, value in metric.compute().items()})
    assert answers == [alone, alone]


def test_refusals():
    good = pictures(1, 0)
    with pytest.raises(TypeError, match=r"floating point in \[-1, 1\], got torch.uint8; use data"):
        psnr(good.to(torch.uint8), good)
    with pytest.raises(ValueError, match=r"share one shape .* got \(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        psnr(good, pictures(2, 0))
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got a magnitude of 255"):
        psnr(good, torch.full_like(good, 255))
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got a magnitude of nan"):
        psnr(good * math.nan, good)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels .* got 8x16; enlarge"):
        ssim(good[:, :, :8], good[:, :, :8])
    with pytest.raises(ValueError, match=r"uniform window needs .* at least 7x7 pixels, got 6x16; leave it out"):
        ssim_uniform(good[:, :, :6], good[:, :, :6])
    with pytest.raises(ValueError, match=r"expected a data range above 0, got 0; pictures in \[0, 1\] have 1"):
        ssim_uniform(good, good, data_range=0)
    with (
        pytest.warns(UserWarning, match="before the ``update`` method"),
        pytest.raises(ValueError, match="at least one image, got none"),
    ):
        ReconstructionMetrics().compute()


def test_a_batch_may_be_measured_apart_from_the_others():
    batches = [torch.rand(3, 3, 16, 16) * 2 - 1 for _ in range(4)]
    whole, parts, counter = (ReconstructionMetrics(compatibility=True) for _ in range(3))
    for image, target in (batches[:2], batches[2:]):
        whole.update(image, target)
        found = parts.of(image, target)
        assert int(parts.count) == 0
        counter.add(found)
    assert counter.compute() == whole.compute()
    counter.add(counter.of(*batches[1:3]))
    assert int(counter.compute()["count"]) == 9  # no value of before is kept
