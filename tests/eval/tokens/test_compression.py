"""Huffman's code of known distributions, and compressors on streams that they can and cannot shorten."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.eval.tokens.compression import compression, huffman_bits
from smalti.eval.tokens.stream import TokenStream


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([4, 2, 1, 1], 1.75),  # powers of two: the entropy itself
        ([1, 1, 1, 1, 1, 1, 1, 1], 3),
        ([5, 9, 12, 13, 16, 45], 2.24),  # the example of Cormen, Leiserson, Rivest and Stein
        ([7, 3], 1),
        ([7], 0),
    ],
)
def test_huffman(counts, bits):
    assert huffman_bits(np.array(counts)) == pytest.approx(bits)


def test_huffman_lies_within_a_bit_of_the_entropy():
    counts = np.random.default_rng(0).integers(1, 1000, 300)
    shares = counts / counts.sum()
    bits = float(-(shares * np.log2(shares)).sum())
    assert bits <= huffman_bits(counts) < bits + 0.1


def test_flat_tokens_do_not_shrink():
    found = compression(TokenStream.of(np.random.default_rng(0).integers(0, 1024, (50, 64)), 1024))
    assert (found.count, found.plain_bits) == (3200, 10)
    saved = found.to_dict()
    assert abs(saved["huffman_saved"]) < 0.03
    assert saved["zlib_saved"] < 0
    assert saved["lzma_saved"] < 0


def test_repetition_is_found_in_the_scan_order():
    rows = np.random.default_rng(0).integers(0, 1024, (1, 32, 1)).repeat(40, axis=0).repeat(32, axis=2)
    found = compression(TokenStream.of(rows, 1024))
    assert found.to_dict()["lzma_saved"] > 0.95
    assert found.huffman_bits > 4  # which sees single tokens only
    snaky = np.random.default_rng(1).integers(0, 1024, (200, 4, 1)).repeat(4, axis=2)
    raster, column = (compression(TokenStream.of(snaky, 1024, order)) for order in ("raster", "column"))
    assert raster.lzma_bits < column.lzma_bits


@pytest.mark.parametrize("size", [1, 1 << 20, 1 << 40])
def test_any_codebook(size):
    found = compression(TokenStream.of(np.zeros((2, 50), np.int64) + size - 1, size))
    assert found.huffman_bits == 0
    assert ("huffman_saved" in found.to_dict()) == (size > 1)
