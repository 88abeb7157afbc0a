"""Mean and covariance of a set of features: how they are summed, and how they are kept in a file with their identity.

A Frechet distance means little without knowing which pictures, which crop and which network the reference came from,
so a stored reference carries all of it and refuses to be compared with features of another network.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...data.files import atomic_file
from ..protocol import file_hash, state_hash

#: What a set of pictures can be.
SPLITS = ("train", "validation", "test", "generated")

_ENTRY = "smalti.reference"
_FIELDS = ("extractor", "weights_hash", "dataset", "dataset_hash", "split", "crop", "converted")
_ROWS = 1024  #: added at once: a large set is never copied to float64 whole, and a part stays in the cache
_COLUMNS = 256  #: of the scatter computed at once: narrow enough to leave most of the upper triangle out


@dataclass(frozen=True)
class FeatureStatistics:
    """What a Frechet distance needs of one set of features.

    Raises:
        ValueError: shapes that do not fit, fewer than two images, or a number that is not finite.
        TypeError: tensors that are not float64.
    """

    mean: Tensor  #: [D] float64
    covariance: Tensor  #: [D, D] float64, unbiased
    count: int  #: images

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != 2 * self.mean.shape:
            raise ValueError(
                f"statistics must be a mean [D] and a covariance [D, D], got {list(self.mean.shape)} and "
                f"{list(self.covariance.shape)}; take both from one set of features"
            )
        if self.mean.dtype != torch.float64 or self.covariance.dtype != torch.float64:
            raise TypeError(
                f"statistics must be float64, got {self.mean.dtype} and {self.covariance.dtype}; "
                "sum the features in float64"
            )
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two images, got {self.count}; score more of them")
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("statistics must be finite, got NaN or infinity; compute them again")

    @classmethod
    def from_features(cls, features: Tensor) -> Self:
        """Statistics of ``[N, D]`` floats, summed in float64 on the CPU.

        Raises:
            ValueError: another shape, fewer than two rows, or features that are not finite.
        """
        check_features(features)
        moments = Moments.of(features)
        return cls(moments.mean, moments.covariance(), moments.count)


@dataclass
class Moments:
    """Running mean and scatter (the sum of outer products about the mean), added to in place.

    Kept about the mean rather than about zero (Chan, Golub and LeVeque 1983), so that nothing cancels where the mean is
    far larger than the spread.
    """

    mean: Tensor  #: [D] float64
    scatter: Tensor  #: [D, D] float64; only the lower triangle holds
    count: int

    @classmethod
    def zeros(cls, width: int) -> Self:
        """Of no features of that width."""
        return cls(torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64), 0)

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of ``[N, D]`` floats, summed in float64 on the CPU."""
        moments = cls.zeros(features.shape[1])
        for rows in features.split(_ROWS):
            moments.add(rows.double().cpu())
        return moments

    def add(self, rows: Tensor) -> None:
        """Add ``[B, D]`` float64 features on the same device."""
        if not len(rows):
            return
        centre, total = rows.mean(0), self.count + len(rows)
        shift = centre - self.mean
        between = shift * (self.count * len(rows) / total) ** 0.5
        spread = torch.cat([rows - centre, between[None]])
        for start in range(0, len(self.mean), _COLUMNS):
            stop = start + _COLUMNS
            self.scatter[start:stop, :stop].addmm_(spread[:, start:stop].T, spread[:, :stop])
        self.mean.add_(shift, alpha=len(rows) / total)
        self.count = total

    def merge(self, other: Moments) -> None:
        """Add everything that ``other`` has seen."""
        if not other.count:
            return
        total, shift = self.count + other.count, other.mean - self.mean
        self.scatter.add_(other.scatter).addr_(shift, shift, alpha=self.count * other.count / total)
        self.mean.add_(shift, alpha=other.count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """``[D, D]``, unbiased and symmetric; of at least two rows."""
        lower = self.scatter.tril() / (self.count - 1)
        return lower + lower.tril(-1).T


@dataclass(frozen=True)
class Reference:
    """Statistics with their identity, as one file keeps them.

    Raises:
        ValueError: ``split`` is none of `SPLITS`.
    """

    statistics: FeatureStatistics
    extractor: str  #: its name
    weights_hash: str  #: sha256 of its weights
    dataset: str  #: name
    dataset_hash: str  #: of the pictures' content (`ContentHash`), or of the file that was converted
    split: str  #: one of `SPLITS`
    crop: Any  #: of the pictures, as `PictureSet.describe` says it, or None where unknown
    converted: bool = False  #: from a file that does not say which pictures it is of

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"the split of a reference must be one of {', '.join(SPLITS)}, got {self.split!r}")

    @property
    def knows_pictures(self) -> bool:
        """Whether ``dataset_hash`` is of pictures; of a converted file they are not known."""
        return not self.converted

    @property
    def identity(self) -> str:
        """What a score is measured against, 64 hex digits.

        Of the pictures' content, which outlasts another batch size; of mean and covariance where the pictures are not
        known, whatever file they came in.
        """
        if self.knows_pictures:
            return self.dataset_hash
        return state_hash({"mean": self.statistics.mean, "covariance": self.statistics.covariance})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            DiskFullError: no space left; the old file, if any, is untouched.
        """
        fields = {name: getattr(self, name) for name in _FIELDS}
        about = json.dumps(fields | {"count": self.statistics.count})
        tensors = {"mean": self.statistics.mean, "covariance": self.statistics.covariance}
        with atomic_file(path) as partial:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial, {_ENTRY: about})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or holds something else than statistics.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"reference statistics were expected at {path}, got no such file; check the path")
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})[_ENTRY])
                statistics = FeatureStatistics(file.get_tensor("mean"), file.get_tensor("covariance"), about["count"])
            return cls(statistics, **{name: about[name] for name in _FIELDS})
        except (SafetensorError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} should be a safetensors file, got a damaged one ({reason}); compute the statistics again"
            ) from error
        except KeyError as error:
            raise ValueError(
                f"{path} should hold reference statistics but lacks {error}; write it with `smalti eval statistics`"
            ) from error

    @classmethod
    def from_adm(
        cls, path: str | Path, *, split: str, count: int, dataset: str, extractor: str, weights_hash: str
    ) -> Self:
        """Read ``mu`` and ``sigma`` of an ``.npz`` in the layout of ADM (https://arxiv.org/abs/2105.05233).

        Such a file does not say what it was computed from, so the caller does. Pickled arrays are refused.

        Args:
            path: the file; its hash becomes ``dataset_hash``.
            split: of the pictures behind it; the published ``VIRTUAL_imagenet`` files are of the train set.
            count: pictures behind it.
            dataset: name.
            extractor: name of the network whose features it describes.
            weights_hash: sha256 of that network's weights.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such ``.npz``, or ``split`` is unknown.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"ADM statistics were expected at {path}, got no such file; check the path")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mean, covariance = (torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in ("mu", "sigma"))
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, AttributeError, TypeError, EOFError) as error:
            raise ValueError(
                f"{path} should be an .npz with numeric mu and sigma, got something else "
                f"({' '.join(str(error).split())}); fetch it again or compute the statistics"
            ) from error
        statistics = FeatureStatistics(mean, covariance, count)
        return cls(statistics, extractor, weights_hash, dataset, file_hash(path), split, None, converted=True)

    def require(self, *, extractor: str, weights_hash: str, task: str) -> None:
        """Refuse a comparison that would mean nothing.

        Args:
            extractor: name of the network that the other features came from.
            weights_hash: sha256 of its weights.
            task: what is measured; ``reconstruction`` may not be compared with a train set or with drawn pictures,
                which are not the originals of any reconstruction.

        Raises:
            ValueError: another extractor, other weights, or reconstructions against a train set or drawn pictures.
        """
        pairs = {"extractor": (extractor, self.extractor), "weights_hash": (weights_hash, self.weights_hash)}
        for name, (wanted, mine) in pairs.items():
            if mine != wanted:
                raise ValueError(
                    f"expected reference statistics of {name} {wanted!r}, got {mine!r}; compute them with the "
                    "extractor that scores the images"
                )
        if task == "reconstruction" and self.split in ("train", "generated"):
            raise ValueError(
                f"reconstructions must be compared with their originals, got statistics of the {self.split} split of "
                f"{self.dataset}; take statistics of the pictures that were reconstructed, after the same crop"
            )


def check_features(features: Tensor, width: int | None = None) -> None:
    """Refuse what cannot be summed.

    Raises:
        ValueError: not ``[N, D]`` (with ``D == width``, if given), or a feature that is not finite.
    """
    if features.ndim != 2 or (width is not None and features.shape[1] != width):
        wanted = "[N, D]" if width is None else f"[N, {width}]"
        raise ValueError(f"features must be {wanted}, got {list(features.shape)}; take all from one extractor")
    if not bool(features.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity; check the pictures and the extractor")
