"""How close reconstructions come to their originals, under conventions that have names.

Published PSNR and SSIM columns differ by convention more than by model: pooling the squared error over the set instead
of averaging per image moves PSNR by several dB, and a data range of 2 on ``[0, 1]`` pictures inflates SSIM by up to
0.19. Every score is computed per image on ``[0, 1]`` floats (no rounding to uint8) and averaged over images:

* ``psnr``: as LlamaGen (arXiv 2406.06525), TokenFlow (2412.03069), UniTok (2502.20321) and PAR (2412.15119) compute it.
* ``ssim``: Wang et al. 2004 with its Gaussian window and the true data range; DualToken (2503.14324) takes the same
  window, without the border.
* ``l1``.

Two more exist only to stand beside published tables, and never without their label:

* ``psnr_pooled``: the squared error pooled over the set, the default of torchmetrics.
* ``ssim_llamagen_compat``: inflated, the uniform 7x7 window with the data range of ``[-1, 1]`` on ``[0, 1]`` pictures,
  as the releases of LlamaGen, TokenFlow, UniTok, PAR and ImageFolder (2410.01756) call scikit-image.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from .summed import SummedMetric

PSNR_CAP = 100.0  #: dB; what an exact copy scores, so that one of them does not make a mean infinite
SSIM_WINDOW = 11  #: pixels, the support of the Gaussian of width 1.5
UNIFORM_WINDOW = 7  #: pixels, the side of the window of scikit-image's SSIM


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image: ``-10 log10(mean squared error)`` on ``[0, 1]`` values.

    Args:
        images: ``(B, 3, H, W)`` floats in ``[-1, 1]``.
        targets: the same shape and range.

    Returns:
        ``(B,)`` dB, at most ``PSNR_CAP``; float32, or float64 for float64 images.

    Raises:
        ValueError: if shapes differ, are not ``(B, 3, H, W)``, or values leave ``[-1, 1]``.
        TypeError: if a tensor is not floating point.
    """
    error = (_unit(images, targets) - _unit(targets, images)).square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).clamp(max=PSNR_CAP)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image: Gaussian window 11 of width 1.5, data range 1, reflected borders.

    Wang et al. 2004 with the constants 0.01 and 0.03, averaged over pixels and channels, as torchmetrics computes it.

    Args:
        images: ``(B, 3, H, W)`` floats in ``[-1, 1]``.
        targets: the same shape and range.

    Returns:
        ``(B,)`` in ``[-1, 1]``, 1 for equal images; float32, or float64 for float64 images.

    Raises:
        ValueError: if a side is shorter than the window, shapes differ, or values leave ``[-1, 1]``.
        TypeError: if a tensor is not floating point.
    """
    first, second = _unit(images, targets), _unit(targets, images)
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels (its window), got {height}x{width}; "
            "enlarge both sides alike or leave SSIM out"
        )
    scores = structural_similarity_index_measure(first, second, sigma=1.5, data_range=1.0, reduction="none")
    assert isinstance(scores, Tensor)  # a tuple only comes back when the full map is asked for
    return scores


def l1(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of each image on ``[0, 1]`` values, ``(B,)``; arguments and errors as in `psnr`."""
    return (_unit(images, targets) - _unit(targets, images)).abs().mean(dim=(1, 2, 3))


def ssim_uniform(images: Tensor, targets: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each image as scikit-image computes it by default.

    A window of 7x7 equal weights that stays inside the picture, covariances divided by 48 (the sample's), the constants
    0.01 and 0.03, averaged over windows and channels, all in float64.

    Args:
        images: ``(B, 3, H, W)`` floats in ``[-1, 1]``.
        targets: the same shape and range.
        data_range: the difference of the largest and the smallest value possible; of ``[0, 1]`` pictures it is 1.

    Returns:
        ``(B,)`` float64, at most 1.

    Raises:
        ValueError: if a side is shorter than the window, ``data_range`` is not positive, shapes differ, or values leave
            ``[-1, 1]``.
        TypeError: if a tensor is not floating point.
    """
    if data_range <= 0:
        raise ValueError(f"expected a data range above 0, got {data_range}; pictures in [0, 1] have 1")
    first, second = _unit(images, targets).double(), _unit(targets, images).double()
    height, width = images.shape[-2:]
    if min(height, width) < UNIFORM_WINDOW:
        raise ValueError(
            f"SSIM with a uniform window needs images of at least {UNIFORM_WINDOW}x{UNIFORM_WINDOW} pixels, "
            f"got {height}x{width}; leave it out"
        )
    of_first, of_second = _window_mean(first), _window_mean(second)
    sample = UNIFORM_WINDOW**2 / (UNIFORM_WINDOW**2 - 1)
    variances = sample * (_window_mean(first**2 + second**2) - of_first**2 - of_second**2)
    covariance = sample * (_window_mean(first * second) - of_first * of_second)
    luminance, contrast = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * of_first * of_second + luminance) * (2 * covariance + contrast)
    return (likeness / ((of_first**2 + of_second**2 + luminance) * (variances + contrast))).mean(dim=(1, 2, 3))


def ssim_llamagen_compat(images: Tensor, targets: Tensor) -> Tensor:
    """The inflated SSIM of LlamaGen's ``reconstruction_vq_ddp.py``, for comparison with tables that copy it.

    `ssim_uniform` of ``[0, 1]`` pictures at a data range of 2, which quadruples both constants: 0.04 to 0.19 too
    high.

    Args:
        images: ``(B, 3, H, W)`` floats in ``[-1, 1]``; that script rounds reconstructions to 8 bits first.
        targets: the same shape and range.

    Returns:
        ``(B,)`` float64, at most 1.

    Raises:
        ValueError: as `ssim_uniform`.
        TypeError: as `ssim_uniform`.
    """
    return ssim_uniform(images, targets, data_range=2.0)


class ReconstructionMetrics(SummedMetric):
    """Mean PSNR, SSIM and L1 over all images seen, exact however unevenly the images fall on processes.

    States are float64 sums and integer counts added across processes; they do not follow ``half()`` or ``float()``.
    float64 does not exist on MPS: keep the metric on the CPU there.

    Args:
        compatibility: also report ``psnr_pooled`` and ``ssim_llamagen_compat``, the two values that published tables
            hold for another reason than being right.
    """

    higher_is_better = None

    psnr_sum: Tensor
    ssim_sum: Tensor
    l1_sum: Tensor
    compat_sum: Tensor
    squared_sum: Tensor
    values: Tensor
    capped: Tensor
    count: Tensor

    def __init__(self, compatibility: bool = False) -> None:
        super().__init__()
        self.compatibility = compatibility
        for name in ("psnr_sum", "ssim_sum", "l1_sum", "compat_sum", "squared_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("values", "capped", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, target: Tensor) -> None:
        """Add one batch.

        Args:
            reconstruction: ``(B, 3, H, W)`` floats in ``[-1, 1]``, sides of at least 11.
            target: the same shape and range.

        Raises:
            ValueError: as `ssim`.
            TypeError: as `ssim`.
        """
        ratios = psnr(reconstruction, target)
        self.ssim_sum += ssim(reconstruction, target).double().sum()
        self.psnr_sum += ratios.double().sum()
        self.l1_sum += l1(reconstruction, target).double().sum()
        self.capped += (ratios >= PSNR_CAP).sum()
        self.count += len(ratios)
        if self.compatibility:
            self.compat_sum += ssim_llamagen_compat(reconstruction, target).sum()
            self.squared_sum += ((reconstruction.double() - target.double()) / 2).square().sum()
            self.values += target.numel()

    def compute(self) -> dict[str, Tensor]:
        """Scores over everything seen.

        Returns:
            ``psnr`` (dB), ``ssim`` and ``l1`` (float64 means), ``capped`` (int64, images whose PSNR was capped) and
            ``count`` (int64, images); with ``compatibility`` also ``psnr_pooled`` (dB, at most ``PSNR_CAP``) and
            ``ssim_llamagen_compat``, both float64.

        Raises:
            ValueError: if no image was seen.
        """
        if int(self.count) == 0:
            raise ValueError("expected at least one image, got none; call update() before compute()")
        means = {"psnr": self.psnr_sum, "ssim": self.ssim_sum, "l1": self.l1_sum}
        scores = {name: total / self.count for name, total in means.items()}
        if self.compatibility:
            pooled = (-10 * (self.squared_sum / self.values).log10()).clamp(max=PSNR_CAP)
            scores |= {"psnr_pooled": pooled, "ssim_llamagen_compat": self.compat_sum / self.count}
        return scores | {"capped": self.capped, "count": self.count}

    def describe(self) -> dict[str, Any]:
        """The convention of each score that `compute` reports, by name, as JSON values for a protocol record."""
        mean = "of each image, then the mean"
        record: dict[str, Any] = {
            "psnr": {"values": "[0, 1]", "reduction": mean, "cap_db": PSNR_CAP},
            "ssim": {
                "values": "[0, 1]",
                "window": f"Gaussian {SSIM_WINDOW}, width 1.5, mirrored borders",
                "covariance": "population",
                "data_range": 1.0,
                "reduction": mean,
            },
            "l1": {"values": "[0, 1]", "reduction": mean},
        }
        if self.compatibility:
            record["psnr_pooled"] = {"values": "[0, 1]", "reduction": "squared error pooled over the set"}
            record["ssim_llamagen_compat"] = {
                "values": "[0, 1]",
                "window": f"uniform {UNIFORM_WINDOW}, inside the picture",
                "covariance": "sample",
                "data_range": 2.0,
                "reduction": mean,
            }
        return record


def _window_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, UNIFORM_WINDOW, stride=1)


def _unit(images: Tensor, other: Tensor) -> Tensor:
    """``[-1, 1]`` to ``[0, 1]``, at least float32, after checking shape, type and range."""
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}; use data.transforms.to_tensor")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != other.shape:
        raise ValueError(
            f"images and targets must share one shape (B, 3, H, W), got {tuple(images.shape)} and "
            f"{tuple(other.shape)}; crop or stack them alike"
        )
    peak = images.detach().abs().amax() if images.numel() else torch.zeros(())
    if not bool(peak <= 1 + 1e-4):  # written so that NaN fails; the slack is rounding in half precision
        raise ValueError(f"images must lie in [-1, 1], got a magnitude of {float(peak):.4g}; clamp or rescale them")
    return (images.to(torch.promote_types(images.dtype, torch.float32)) + 1) / 2
