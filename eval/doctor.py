"""What is wrong with a tokenizer or its training, in plain words, and what is known to help.

Reads curves and codes only; nothing here trains or changes anything. Thresholds are rules of thumb and are named in
every finding, so that a reader can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import Codes
from .adversarial_curves import examine_adversarial
from .findings import Finding, present, problem
from .plots import Curve

DEAD = 0.2  #: share of a codebook below which its other codes count as dead
FEW = 2.0  #: perplexity below which a codebook says next to nothing
GROWN = 5.0  #: growth of a quantizer's loss over its least value that counts as running away
LOST = 0.01  #: share of steps skipped for not being finite


def examine_curves(curves: Mapping[str, Curve], settings: Mapping[str, Any] | None = None) -> list[Finding]:
    """Findings in the curves of one training run, by the names that smalti logs them under.

    Args:
        curves: from :func:`~smalti.eval.plots.read_curves`.
        settings: arguments of the trained module by dotted name, where they are known.
    """
    found, finite = list[Finding](), dict[str, Curve]()
    # A sum of what two opponents pay may rise in a healthy run.
    pixels = {"train/l1", "train/l2"} | ({"train/loss"} if "train/discriminator" not in curves else set[str]())
    for name, curve in curves.items():
        values = [value for _, value in curve]
        kind, _, book = name.partition("/")
        if not all(map(math.isfinite, values)):
            found.append(_broken(name))
            continue
        finite[name] = curve
        if kind == "usage":
            found += _usage(book, values)
        elif kind == "perplexity":
            found += _perplexity(book, values)
        elif name.startswith("train/quantizer"):
            found += _commitment(name, values)
        elif name in pixels:
            found += _divergence(name, values)
    return found + examine_adversarial(finite, settings) + _skipped(curves) + _overfitted(curves)


@torch.inference_mode()
def examine_tokenizer(tokenizer: VisualTokenizer, images: Tensor) -> list[Finding]:
    """Findings in the weights of a tokenizer and in what it makes of some pictures.

    Args:
        tokenizer: in eval mode.
        images: ``[B, 3, H, W]`` in [-1, 1]; a few dozen of the kind it was trained on.
    """
    found = [
        _broken(name)
        for name, weight in tokenizer.state_dict().items()
        if weight.is_floating_point() and not bool(weight.isfinite().all())
    ]
    if found:
        return found
    for name, table in tokenizer.code_vectors().items():
        found += _table(name, table)
    codes = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
    for name, ids, size in _streams(codes):
        found += _drawn(name, ids, size)
    return found + _range(images.float(), tokenizer.decode(codes).float().cpu())


def _usage(book: str, values: Sequence[float]) -> list[Finding]:
    now, best = present(values), max(values)
    if now < DEAD:
        return [
            problem(
                book,
                f"{now:.1%} of its codes are in use (under {DEAD:.0%}); the others are dead",
                "restart dead codes (revive_below 0.05 to 1) and start from k-means; else a smaller codebook, a "
                "narrower codebook_dim (8 to 16), or cosine comparison",
            )
        ]
    if now < best / 2:
        return [
            problem(
                book,
                f"usage fell from {best:.1%} to {now:.1%}: codes are dying while training goes on",
                "a lower learning rate for the encoder, a longer warm-up, or a slower decay of the averages (0.99)",
            )
        ]
    return []


def _perplexity(book: str, values: Sequence[float]) -> list[Finding]:
    now, best = present(values), max(values)
    if now < FEW:
        return [
            problem(
                book,
                f"perplexity {now:.2f} (under {FEW:g}): nearly every position has the same code",
                "the encoder has collapsed: lower the commitment weight and the learning rate, warm up, and look "
                "whether the decoder can do without these codes",
            )
        ]
    if now < best / 4:
        return [
            problem(
                book,
                f"perplexity fell from {best:.1f} to {now:.1f}: the codebook is collapsing",
                "stop and resume from an earlier checkpoint with a lower learning rate",
            )
        ]
    return []


def _commitment(name: str, values: Sequence[float]) -> list[Finding]:
    smooth = _smooth(values)
    least, now = min(smooth), smooth[-1]
    if len(smooth) < 3 or least <= 0 or now < GROWN * least:
        return []
    return [
        problem(
            name,
            f"grew from {least:.3g} to {now:.3g} ({now / least:.0f} times): latents run away from their codes",
            "raise the commitment weight, clip gradients, lower the learning rate, or compare on the unit sphere",
        )
    ]


def _divergence(name: str, values: Sequence[float]) -> list[Finding]:
    smooth = _smooth(values)
    least, now = min(smooth), smooth[-1]
    if len(smooth) < 3 or least <= 0 or now < 2 * least:
        return []
    return [
        problem(
            name,
            f"rose from {least:.3g} to {now:.3g}: the run has diverged",
            "resume from before the rise with a lower learning rate; clip gradients",
        )
    ]


def _skipped(curves: Mapping[str, Curve]) -> list[Finding]:
    found: list[Finding] = []
    if (rolled := _last(curves, "guard/rollbacks")) > 0:
        found.append(
            problem(
                "guard",
                f"weights were rolled back {rolled:.0f} times: steps were not finite, or the loss had risen for good",
                "a lower learning rate, a longer warm-up, or float32 in place of half precision",
            )
        )
    steps = max((step for curve in curves.values() for step, _ in curve), default=0) + 1
    if (skipped := _last(curves, "guard/skipped")) > LOST * steps:
        found.append(
            problem(
                "guard",
                f"{skipped:.0f} of {steps:.0f} steps were skipped because something was not finite",
                "look for damaged pictures, lower the learning rate, clip gradients",
            )
        )
    if (broken := sum(value for _, value in curves.get("data/skipped", ()))) > 0:
        found.append(
            Finding("remark", "data", f"{broken:.0f} unreadable pictures were replaced", "remove them from the folder")
        )
    return found


def _overfitted(curves: Mapping[str, Curve]) -> list[Finding]:
    ratios = [value for _, value in curves.get("val/psnr", ())]
    if len(ratios) < 3 or ratios[-1] > max(ratios) - 1:
        return []
    return [
        problem(
            "val/psnr",
            f"fell from {max(ratios):.1f} to {ratios[-1]:.1f} dB on pictures that are not trained on",
            "more pictures or crops, weight decay, or fewer steps; keep the best checkpoint",
        )
    ]


def _table(name: str, table: Tensor) -> list[Finding]:
    rows = table.float().cpu()
    same = len(rows) - len(rows.unique(dim=0))
    if same > 0.5 * len(rows):
        return [
            problem(
                name,
                f"{same} of {len(rows)} codes are copies of others",
                "they were never trained apart: train longer with restarts of dead codes, or shrink the codebook",
            )
        ]
    return []


def _drawn(name: str, ids: Tensor, size: int) -> list[Finding]:
    counts = torch.bincount(ids, minlength=size).double()
    spread = float(torch.special.entr(counts / counts.sum().clamp_min(1)).sum().exp())
    used = int((counts > 0).sum())
    if len(ids) > 1 and spread < FEW:
        return [
            problem(
                name,
                f"{len(ids)} positions share {used} codes, perplexity {spread:.2f} (under {FEW:g})",
                "these codes say next to nothing: the encoder has collapsed, or a residual depth or scale too many",
            )
        ]
    reach = min(size, len(ids))
    if used < DEAD * reach:
        return [
            Finding(
                "remark",
                name,
                f"these pictures draw {used} of {size} codes ({len(ids)} positions; perplexity {spread:.1f})",
                "few pictures draw few codes: give more of them, or look at the usage curve of the training run",
            )
        ]
    return []


def _range(images: Tensor, rebuilt: Tensor) -> list[Finding]:
    """Whether another scale and offset would make the reconstruction much better: two value ranges met."""
    x, y = rebuilt.flatten().double(), images.cpu().flatten().double()
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var(correction=0).clamp_min(1e-12))
    offset = float(y.mean() - slope * x.mean())
    before, after = float((x - y).square().mean()), float((slope * x + offset - y).square().mean())
    if after > 0.2 * before or before < 1e-3:
        return []
    return [
        problem(
            "pixels",
            f"reconstructions fit their pictures {before / after:.0f} times better after x -> {slope:.2f} x "
            f"{offset:+.2f}: encoder and decoder mean different value ranges",
            "pictures are in [-1, 1] everywhere in smalti; rescale what was trained on [0, 1] or on other statistics",
        )
    ]


def _streams(codes: Codes) -> Iterator[tuple[str, Tensor, int]]:
    """The ids of every codebook and depth, and of every scale where codes come in scales."""
    layout, ids = codes.spec.layout, codes.ids.cpu()
    scales = [side * side for side in layout.shape] if layout.kind == "scales" else [layout.positions]
    masks = codes.mask.cpu().split(scales, dim=1)
    for scale, (part, mask) in enumerate(zip(ids.split(scales, dim=1), masks, strict=True)):
        place = f", scale {layout.shape[scale]}x{layout.shape[scale]}" if len(scales) > 1 else ""
        for book, columns in zip(codes.spec.codebooks, codes.spec.slices().values(), strict=True):
            for depth, column in enumerate(part[mask][:, columns].unbind(-1)):
                yield f"{book.name}{f', depth {depth}' if book.depth > 1 else ''}{place}", column, book.size


def _broken(name: str) -> Finding:
    return problem(
        name,
        "has values that are not finite",
        "the run is lost from there on: resume from an earlier checkpoint with a lower learning rate",
    )


def _last(curves: Mapping[str, Curve], name: str) -> float:
    return curves[name][-1][1] if curves.get(name) else 0.0


def _smooth(values: Sequence[float]) -> list[float]:
    """Medians of a tenth of the curve each; single spikes do not count."""
    width = max(1, len(values) // 10)
    return [median(values[start : start + width]) for start in range(0, len(values) - width + 1, width)]
