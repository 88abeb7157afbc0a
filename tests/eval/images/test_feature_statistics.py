"""Means and covariances by hand, and files that come back equal or say what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smalti.eval.images.feature_statistics import FeatureStatistics, Moments, Reference
from smalti.eval.protocol import file_hash

FEATURES = torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 4.0]])  # means 2 and 2; deviations (-1,-2), (1,0), (0,2)
KNOWN = {"extractor": "a network", "weights_hash": "beef"}


@pytest.fixture
def reference() -> Reference:
    statistics = FeatureStatistics.from_features(FEATURES)
    return Reference(
        statistics, **KNOWN, dataset="tiles", dataset_hash="f00d", split="validation", crop={"size": [8, 8]}
    )


def adm(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_of_three_rows():
    statistics = FeatureStatistics.from_features(FEATURES.half())
    assert statistics.mean.tolist() == [2.0, 2.0]
    assert statistics.covariance.tolist() == [[1.0, 1.0], [1.0, 4.0]]
    assert statistics.count == 3


def test_equals_numpy_however_the_rows_are_split_and_merged():
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    pieces = [Moments.zeros(5) for _ in range(3)]
    for piece, part in zip(pieces, (rows[:1], rows[1:1], rows[1:]), strict=True):
        piece.add(part[:7])
        piece.add(part[7:])
    merged = Moments.zeros(5)
    for piece in pieces:
        merged.merge(piece)
    assert merged.count == 50
    assert torch.allclose(merged.mean, rows.mean(0), rtol=1e-13)
    expected = torch.from_numpy(np.cov(rows.numpy(), rowvar=False))
    assert torch.allclose(merged.covariance(), expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(FeatureStatistics.from_features(rows).covariance, expected, rtol=1e-12, atol=1e-14)


def test_comes_back_from_its_file(reference: Reference, tmp_path: Path):
    reference.save(tmp_path / "deep" / "stats.safetensors")
    again = Reference.load(tmp_path / "deep" / "stats.safetensors")
    assert torch.equal(again.statistics.mean, reference.statistics.mean)
    assert torch.equal(again.statistics.covariance, reference.statistics.covariance)
    assert replace(again, statistics=reference.statistics) == reference
    reference.save(tmp_path / "twice.safetensors")
    assert file_hash(tmp_path / "twice.safetensors") == file_hash(tmp_path / "deep" / "stats.safetensors")


def test_reads_adm_statistics(tmp_path: Path):
    path = adm(
        tmp_path / "stats.npz", mu=np.ones(2, np.float32), sigma=np.eye(2), arr_0=np.zeros((1, 4, 4, 3), np.uint8)
    )
    found = Reference.from_adm(path, split="train", count=10, dataset="ImageNet", **KNOWN)
    assert found.statistics.mean.tolist() == [1.0, 1.0]
    assert torch.equal(found.statistics.covariance, torch.eye(2, dtype=torch.float64))
    assert (found.dataset_hash, found.split, found.statistics.count, found.crop) == (file_hash(path), "train", 10, None)


def test_require(reference: Reference):
    reference.require(**KNOWN, task="reconstruction")
    with pytest.raises(ValueError, match="statistics of extractor 'another', got 'a network'; compute them"):
        reference.require(extractor="another", weights_hash="beef", task="generation")
    with pytest.raises(ValueError, match="statistics of weights_hash 'dead', got 'beef'; compute them"):
        reference.require(extractor="a network", weights_hash="dead", task="generation")
    train = replace(reference, split="train")
    train.require(**KNOWN, task="generation")
    with pytest.raises(ValueError, match="got statistics of the train split of tiles; take statistics of the pictures"):
        train.require(**KNOWN, task="reconstruction")
    with pytest.raises(
        ValueError, match="must be compared with their originals, got statistics of the generated split"
    ):
        replace(reference, split="generated").require(**KNOWN, task="reconstruction")


def test_identity_is_of_the_pictures_where_they_are_known(reference: Reference):
    other = replace(reference, statistics=FeatureStatistics(reference.statistics.mean + 1e-9, torch.eye(2).double(), 9))
    known, unknown = (replace(reference, converted=converted) for converted in (False, True))
    assert (known.knows_pictures, known.identity) == (True, reference.dataset_hash)
    assert other.identity == known.identity
    assert not unknown.knows_pictures
    assert len(unknown.identity) == 64
    assert replace(unknown, dataset_hash="another file").identity == unknown.identity
    assert replace(other, converted=True).identity != unknown.identity


def test_what_is_no_statistics(reference: Reference):
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    with pytest.raises(ValueError, match=r"a mean \[D\] and a covariance \[D, D\], got \[2\] and \[3, 3\]"):
        FeatureStatistics(mean, torch.eye(3).double(), 9)
    with pytest.raises(TypeError, match=r"must be float64, got torch.float32 and torch.float64"):
        FeatureStatistics(mean.float(), covariance, 9)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        FeatureStatistics(mean, covariance, 1)
    with pytest.raises(ValueError, match="statistics must be finite, got NaN"):
        FeatureStatistics(mean, covariance * torch.nan, 9)
    with pytest.raises(ValueError, match="one of train, validation, test, generated, got 'val'"):
        replace(reference, split="val")


def test_files_that_are_no_reference(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"statistics were expected at .*none\.safetensors, got no such file"):
        Reference.load(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"got a damaged one .*; compute the statistics again"):
        Reference.load(tmp_path / "damaged.safetensors")
    save_file({"mean": torch.zeros(2)}, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"should hold reference statistics but lacks 'smalti\.reference'"):
        Reference.load(tmp_path / "codes.safetensors")
    about = {"smalti.reference": json.dumps({"count": 3})}
    save_file(
        {"mean": torch.zeros(2).double(), "covariance": torch.eye(2).double()}, tmp_path / "old.safetensors", about
    )
    with pytest.raises(ValueError, match="lacks 'extractor'; write it with `smalti eval statistics`"):
        Reference.load(tmp_path / "old.safetensors")


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.ones(2)},
        {"mu": np.array([object()]), "sigma": np.ones((1, 1))},
        {"mu": np.array("a"), "sigma": np.ones(1)},
    ],
)
def test_archives_that_are_no_adm_statistics(arrays, tmp_path: Path):
    with pytest.raises(ValueError, match=r"should be an \.npz with numeric mu and sigma, got something else"):
        Reference.from_adm(adm(tmp_path / "x.npz", **arrays), split="train", count=9, dataset="", **KNOWN)


def test_adm_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.save(tmp_path / "y.npy", np.ones(3))
    for name in ("x.npz", "y.npy"):
        with pytest.raises(ValueError, match=r"should be an \.npz with numeric mu and sigma"):
            Reference.from_adm(tmp_path / name, split="train", count=9, dataset="", **KNOWN)
    with pytest.raises(FileNotFoundError, match="ADM statistics were expected at"):
        Reference.from_adm(tmp_path / "z.npz", split="train", count=9, dataset="", **KNOWN)
