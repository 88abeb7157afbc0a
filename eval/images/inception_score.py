"""Inception score (https://arxiv.org/abs/1606.03498): sure of each image, unsure over all of them.

The image at place ``i`` of ``N`` belongs to split ``i * splits // N``, so 50,000 images in 10 splits are the blocks of
5,000 in file order that the ADM evaluator takes. A file sorted by class must be shuffled before it is scored.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torchmetrics import Metric

from .sample_order import first_of_each, sample_indices

FEW = 100  #: images in a split, below which a score says so

_ROWS = 4096  #: turned into float64 at once


@dataclass(frozen=True)
class InceptionScore:
    """Over the splits."""

    mean: float  #: >= 1
    std: float  #: of the population of splits (divided by their number)

    @classmethod
    def from_sums(cls, marginals: Tensor, entropies: Tensor, counts: Tensor) -> Self:
        """``exp(H(y) - mean H(y|x))`` of each split.

        Args:
            marginals: ``[S, K]`` float64, the sum of the class probabilities of a split's images.
            entropies: ``[S]`` float64, the sum of their entropies in nats.
            counts: ``[S]`` images, each at least 1.
        """
        spread = torch.special.entr(marginals / counts[:, None]).sum(1)
        scores = (spread - entropies / counts).exp()
        return cls(float(scores.mean()), float(scores.std(correction=0)))


def inception_score(logits: Tensor, splits: int = 10) -> InceptionScore:
    """``exp(mean KL(p(y|x) || p(y)))`` in each split, in float64.

    Args:
        logits: ``[N, K]`` floats in the order of the images, of the network without its bias (`InceptionOutputs`).
        splits: number of consecutive blocks, as equal as can be.

    Returns:
        The score. Warns if a split has fewer than `FEW` images.

    Raises:
        ValueError: another shape, fewer images than splits, or logits that are not finite.
    """
    count = len(logits)
    _check_splits(count, splits)
    _check_logits(logits)
    _warn_if_few(count, splits)
    places, sums = torch.arange(count, device=logits.device), _Sums.zeros(splits, logits.shape[1], logits.device)
    for rows, index in zip(logits.split(_ROWS), places.split(_ROWS), strict=True):
        sums.add(rows, index * splits // count)
    return InceptionScore.from_sums(sums.marginals, sums.entropies, (places * splits // count).bincount())


class InceptionScoreMetric(Metric):
    """`inception_score` over everything seen, from sums per split: the memory does not grow with the logits.

    Exact and equal on any number of processes, with any number of batches each, because the place of an image decides
    its split. An image that the same process scores again is left out; one that two processes score is refused. States
    are float64, which does not exist on MPS: keep the metric on the CPU there.

    Args:
        count: images in all.
        splits: number of consecutive blocks.
        classes: K of the logits.

    Raises:
        ValueError: fewer images than splits, or no split.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    marginals: Tensor
    entropies: Tensor
    seen: Tensor

    def __init__(self, count: int, splits: int = 10, classes: int = 1008) -> None:
        super().__init__()
        _check_splits(count, splits)
        self.count, self.splits = count, splits
        self.add_state("marginals", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropies", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(count, dtype=torch.int32), dist_reduce_fx="sum")

    def update(self, logits: Tensor, index: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            logits: ``[B, K]`` floats.
            index: ``[B]`` places of the images in the whole set, below ``count``; may be left out where one process
                scores all images in order.

        Raises:
            ValueError: another shape, logits that are not finite, or a place outside the set.
            TypeError: places that are not whole numbers.
        """
        _check_logits(logits, self.marginals.shape[1])
        places = sample_indices(index, len(logits), int(self.seen.sum())).to(self.seen.device)
        if len(places) and int(places.max()) >= self.count:
            raise ValueError(
                f"places must be below {self.count}, the number of images to score, got {int(places.max())}; "
                "pass count= as many as there are"
            )
        fresh = first_of_each(places)
        fresh = fresh[self.seen[places[fresh]] == 0]
        rows, places = logits.detach()[fresh.to(logits.device)].to(self.marginals.device), places[fresh]
        _Sums(self.marginals, self.entropies).add(rows, places * self.splits // self.count)
        self.seen[places] = 1

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``std`` over the splits, float64 scalars; warns as `inception_score`.

        Raises:
            ValueError: images that are missing, or that two processes scored.
        """
        missing, twice = int((self.seen == 0).sum()), int((self.seen > 1).sum())
        if missing:
            raise ValueError(
                f"expected {self.count} images, got {self.count - missing} of them; score all, or pass their count="
            )
        if twice:
            raise ValueError(
                f"expected each image on one process, got {twice} on several; use a sampler that does not pad"
            )
        _warn_if_few(self.count, self.splits)
        counts = (torch.arange(self.count, device=self.seen.device) * self.splits // self.count).bincount()
        score = InceptionScore.from_sums(self.marginals, self.entropies, counts)
        return {
            "mean": torch.tensor(score.mean, dtype=torch.float64),
            "std": torch.tensor(score.std, dtype=torch.float64),
        }


@dataclass
class _Sums:
    """Of the images of each split, added to in place."""

    marginals: Tensor  #: [S, K] float64
    entropies: Tensor  #: [S] float64

    @classmethod
    def zeros(cls, splits: int, classes: int, device: torch.device) -> Self:
        return cls(
            torch.zeros(splits, classes, dtype=torch.float64, device=device),
            torch.zeros(splits, dtype=torch.float64, device=device),
        )

    def add(self, logits: Tensor, split: Tensor) -> None:
        chances = logits.double().softmax(1)
        self.marginals.index_add_(0, split, chances)
        self.entropies.index_add_(0, split, torch.special.entr(chances).sum(1))


def _check_splits(count: int, splits: int) -> None:
    if splits < 1 or count < splits:
        raise ValueError(
            f"an Inception score needs at least one split and an image in each, got {count} images in {splits} "
            "splits; score more images or take fewer splits"
        )


def _warn_if_few(count: int, splits: int) -> None:
    if count < FEW * splits:
        warnings.warn(
            f"{count} images in {splits} splits do not show how often each class is drawn; the Inception score is too "
            f"small and depends on their number (take {FEW} a split at the least)",
            stacklevel=3,
        )


def _check_logits(logits: Tensor, classes: int | None = None) -> None:
    if logits.ndim != 2 or (classes is not None and logits.shape[1] != classes):
        wanted = "[N, K]" if classes is None else f"[B, {classes}]"
        raise ValueError(f"logits must be {wanted}, got {list(logits.shape)}; take them from one network")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite, got NaN or infinity; check the pictures and the network")
