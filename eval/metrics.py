"""How close reconstructions come to their originals, under one stated convention.

Published PSNR and SSIM columns differ by convention more than by model: pooling the squared error over the set instead
of averaging per image moves PSNR by several dB, and a data range of 2 on ``[0, 1]`` pictures inflates SSIM by up to
0.19. Here every score is computed per image on ``[0, 1]`` floats (no rounding to uint8) and averaged over images.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

PSNR_CAP = 100.0  #: dB; what an exact copy scores, so that one of them does not make a mean infinite
SSIM_WINDOW = 11  #: pixels, the support of the Gaussian of width 1.5


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


class ReconstructionMetrics(Metric):
    """Mean PSNR, SSIM and L1 over all images seen, exact however unevenly the images fall on processes.

    States are float64 sums and integer counts added across processes; they do not follow ``half()`` or ``float()``.
    float64 does not exist on MPS: keep the metric on the CPU there.
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False

    psnr_sum: Tensor
    ssim_sum: Tensor
    l1_sum: Tensor
    capped: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("psnr_sum", "ssim_sum", "l1_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("capped", "count"):
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

    def compute(self) -> dict[str, Tensor]:
        """Scores over everything seen.

        Returns:
            ``psnr`` (dB), ``ssim`` and ``l1`` (float64 means), ``capped`` (int64, images whose PSNR was capped) and
            ``count`` (int64, images).

        Raises:
            ValueError: if no image was seen.
        """
        if int(self.count) == 0:
            raise ValueError("expected at least one image, got none; call update() before compute()")
        means = {"psnr": self.psnr_sum, "ssim": self.ssim_sum, "l1": self.l1_sum}
        return {name: total / self.count for name, total in means.items()} | {
            "capped": self.capped,
            "count": self.count,
        }


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
