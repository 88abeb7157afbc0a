"""Product quantization: every part sees its own channels and nothing else."""

from __future__ import annotations

import pytest
import torch

from smalti.tokenizers.component import build
from smalti.tokenizers.product import ProductQuantizer
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer


def product() -> ProductQuantizer:
    return ProductQuantizer([VectorQuantizer(3, 8), VectorQuantizer(5, 6, depth=2), FiniteScalarQuantizer(4, [3, 3])])


def test_codes_are_those_of_the_parts():
    whole = product().eval()
    latents = torch.randn(2, 7, 12)
    found = whole(latents)
    pieces = latents.split([3, 5, 4], dim=-1)
    alone = [part(piece) for part, piece in zip(whole.parts, pieces, strict=True)]
    assert torch.equal(found.ids, torch.cat([part.ids for part in alone], -1))
    assert torch.equal(found.latents, torch.cat([part.latents for part in alone], -1))
    assert float(found.loss) == pytest.approx(sum(float(part.loss) for part in alone) / 3)
    torch.testing.assert_close(whole.lookup(found.ids), found.latents)
    assert (whole.dim, whole.depth, whole.size, whole.idempotent, whole.revives) == (12, 4, 9, False, True)


def test_tables_are_named_by_part():
    whole = product()
    books = whole.codebooks("pixel")
    sizes = {"pixel.0": 8, "pixel.1.0": 6, "pixel.1.1": 6, "pixel.2": 9}
    assert {book.name: book.size for book in books} == sizes
    assert {name: tuple(rows.shape) for name, rows in whole.vectors("pixel").items()} == {
        "pixel.0": (8, 3),
        "pixel.1.0": (6, 5),
        "pixel.1.1": (6, 5),
        "pixel.2": (9, 4),
    }


def test_it_rebuilds_itself():
    again = build(product().to_spec())
    assert isinstance(again, ProductQuantizer)
    assert [type(part) for part in again.parts] == [VectorQuantizer, VectorQuantizer, FiniteScalarQuantizer]


def test_a_product_of_nothing():
    with pytest.raises(ValueError, match="needs at least one part, got none"):
        ProductQuantizer([])
