"""Streams of codes: columns, joint tokens, padding, windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smalti.data.store import TokenRecord, TokenStore, write_store
from smalti.eval.tokens.stream import TokenStream, stored_codes, streams, windows
from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec

GRID = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 8), Codebook("pixel", 4, 2)))
IDS = torch.tensor([[[7, 0, 1], [6, 0, 1], [7, 0, 1], [7, 3, 2]], [[6, 0, 1], [0, 0, 0], [1, 1, 1], [2, 2, 2]]])


def test_every_column_and_all_as_one():
    found = streams(Codes.full(IDS, GRID), "column")
    assert [(stream.name, stream.size) for stream in found] == [
        ("semantic", 8),
        ("pixel.0", 4),
        ("pixel.1", 4),
        ("joint", 128),
    ]
    assert found[0].flat.tolist() == [7, 7, 6, 7, 6, 1, 0, 2]
    assert found[2].scanned.tolist() == [[1, 1, 1, 2], [1, 1, 0, 2]]
    joint = found[3].ids
    assert joint[0, 0] == joint[0, 2] != joint[0, 1] == joint[1, 0]
    assert len(np.unique(joint)) == 6


def test_one_codebook():
    codes = Codes.full(IDS, GRID)
    assert [stream.name for stream in streams(codes, codebook="pixel")] == ["pixel.0", "pixel.1"]
    assert [stream.name for stream in streams(codes, codebook="pixel.1")] == ["pixel.1"]
    assert [stream.name for stream in streams(codes, codebook="joint")] == ["joint"]
    with pytest.raises(ValueError, match=r"one of semantic, pixel.0, pixel.1, joint, got 'text'; use one of those"):
        streams(codes, codebook="text")


def test_dynamic_codes_are_sequences_without_their_padding():
    spec = CodeSpec(CodeLayout("sequence", (4,)), (Codebook("code", 9),), dynamic=True)
    ids = torch.tensor([[8, 1, -1], [2, -1, -1]])[..., None]
    (stream,) = streams(Codes.full(ids, spec))
    assert (stream.images, stream.tokens, stream.layout) == (2, 3, CodeLayout("sequence", (3,)))
    assert stream.flat.tolist() == [8, 1, 2]
    assert [part.tolist() for part in windows(stream.planes, ((0, 0), (0, 1)))] == [[8], [1]]


def test_joint_dynamic_codes_keep_their_padding():
    spec = CodeSpec(CodeLayout("sequence", (2,)), (Codebook("a", 9), Codebook("b", 9)), dynamic=True)
    ids = torch.tensor([[[8, 1], [3, 4]], [[8, 1], [-1, -1]]])
    assert streams(Codes.full(ids, spec), codebook="joint")[0].ids.tolist() == [[1, 0], [1, -1]]


def test_from_a_store(tmp_path):
    write_store(tmp_path, IDS, [TokenRecord()] * 2, {"spec": GRID.to_dict(), "fingerprint": "f00d"})
    assert torch.equal(stored_codes(TokenStore(tmp_path)).ids, IDS)


def test_windows_of_a_grid():
    planes = np.arange(6).reshape(1, 2, 3)
    assert [part.tolist() for part in windows(planes, ((0, 0), (0, 1)))] == [[0, 1, 3, 4], [1, 2, 4, 5]]
    assert [part.tolist() for part in windows(planes, ((1, 0), (0, 1), (1, 1)))] == [[3, 4], [1, 2], [4, 5]]
    assert [len(part) for part in windows(planes, ((0, 0), (2, 0)))] == [0, 0]


def test_shuffling_moves_tokens_only():
    ids = np.array([[0, 1, 2, -1], [3, 4, -1, -1], [5, 6, 7, 8]])
    stream = TokenStream("code", ids, 9, CodeLayout("sequence", (4,)))
    for keep in ("image", "place", "nothing"):
        control = stream.shuffled(np.random.default_rng(0), keep)
        assert sorted(control.flat) == sorted(stream.flat)
        assert not np.array_equal(control.ids, ids)
        lengths = (control.ids >= 0).sum(1)
        assert all((row[:length] >= 0).all() for row, length in zip(control.ids, lengths, strict=True))
    within = stream.shuffled(np.random.default_rng(0), "image")
    assert [sorted(row) for row in within.ids.tolist()] == [sorted(row) for row in ids.tolist()]


def test_shuffling_in_place_keeps_every_place():
    ids = np.random.default_rng(0).integers(0, 9, (30, 5))
    control = TokenStream.of(ids, 9).shuffled(np.random.default_rng(0), "place")
    assert np.array_equal(np.sort(control.ids, axis=0), np.sort(ids, axis=0))
    assert not np.array_equal(control.ids, ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[0, 1]]), "at least two images and a token, got 1 images; encode more"),
        (np.full((2, 2), -1), "at least two images and a token"),
        (np.array([[0, 1], [2, 9]]), r"tokens of code must lie in \[0, 9\), or be -1, got 0..9"),
        (np.array([[0, 1], [2, -2]]), r"must lie in \[0, 9\), or be -1, got -2..2"),
        (np.zeros(4, np.int64), r"must be \[M, N\] or \[M, h, w\], got \[4\]; reshape them"),
    ],
)
def test_what_is_no_stream(ids, message):
    with pytest.raises(ValueError, match=message):
        TokenStream.of(ids, 9)


def test_ids_must_fit_the_layout_and_the_type():
    with pytest.raises(ValueError, match=r"tokens of a grid of \(2, 2\) must be \[M, 4\], got \[2, 3\]; reshape"):
        TokenStream("code", np.zeros((2, 3), np.int64), 9, CodeLayout("grid", (2, 2)))
    with pytest.raises(TypeError, match="tokens must be int64, got int32; convert"):
        TokenStream.of(np.zeros((2, 3), np.int32), 9)  # type: ignore[arg-type]
