"""How a latent grid is cut into entities: every position once, exactly back, and what is refused."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.entities import entities
from smalti.tokenizers.codes import CodeLayout

#: Kind, side, grid -> number of entities.
CUTS = [
    ("token", None, (2, 3), 6),
    ("cell", 2, (4, 6), 6),
    ("cell", 8, (16, 16), 4),
    ("cell", 2, (2, 6), 3),
    ("subsample", 2, (4, 6), 4),
    ("subsample", 3, (3, 6), 9),
    ("scale", 2, (16, 16), 5),
    ("scale", 3, (3, 6), 2),
    ("scale", 2, (6, 4), 2),
    ("image", None, (3, 5), 1),
]


def grid(*shape: int) -> CodeLayout:
    return CodeLayout("grid", shape)


@pytest.mark.parametrize(("kind", "side", "shape", "count"), CUTS)
def test_every_position_once_and_back_exactly(kind, side, shape, count):
    cut = entities(grid(*shape), kind, side)
    positions = sum(rows * columns for rows, columns in cut.levels)
    assert cut.count == count
    assert cut.levels[-1] == cut.grid == shape
    assert sorted(cut.order) == list(range(positions))
    assert sum(cut.sizes) == cut.starts[-1] == positions
    assert torch.equal(torch.tensor(cut.order)[cut.inverse()], torch.arange(positions))
    latents = torch.randn(2, 3, *shape)
    tokens = cut.cut(latents)
    assert tokens.shape == (2, positions, 3)
    assert torch.equal(cut.join(tokens), latents)
    assert cut.owners().bincount().tolist() == list(cut.sizes)
    assert bool((cut.owners().diff() >= 0).all())


def test_cells_by_hand():
    cut = entities(grid(4, 4), side=2)
    numbers = torch.arange(16.0).view(1, 1, 4, 4)
    cells = cut.cut(numbers).view(4, 4).long().tolist()
    assert cells == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert cut.places()[4:8].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_the_default_is_the_released_one():
    assert entities(grid(16, 16)) == entities(grid(16, 16), "cell", 8)
    assert entities(grid(16, 16)).sizes == (64,) * 4


def test_subsamples_by_hand():
    cut = entities(grid(4, 4), "subsample", 2)
    numbers = torch.arange(16.0).view(1, 1, 4, 4)
    parts = cut.cut(numbers).view(4, 4).long().tolist()
    assert parts == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


def test_scales_by_hand():
    cut = entities(grid(4, 2), "scale", 2)
    assert cut.levels == ((2, 1), (4, 2))
    numbers = torch.arange(8.0).view(1, 1, 4, 2)
    assert cut.cut(numbers).flatten().tolist() == [1.5, 5.5, 0, 1, 2, 3, 4, 5, 6, 7]
    assert cut.places()[:3].tolist() == [[0.5, 0.5], [2.5, 0.5], [0, 0]]
    assert entities(grid(8, 8), "scale").sizes == (1, 4, 16, 64)


def test_gradients_pass_a_cut_and_back():
    cut = entities(grid(4, 4), "scale")
    latents = torch.randn(1, 1, 4, 4, requires_grad=True)
    cut.join(cut.cut(latents)).sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


@pytest.mark.parametrize(
    ("layout", "arguments", "said"),
    [
        (
            CodeLayout("sequence", (9,)),
            (),
            r"token, cell, subsample, scale or image are cut from a grid \(h, w\), got a sequence of \(9,\); take lat",
        ),
        (CodeLayout("grid", (2, 4, 4)), ("token",), r"cut from a grid \(h, w\), got a grid of \(2, 4, 4\)"),
        (grid(4, 4), ("patch",), "an entity must be one of token, cell, .* or image, got 'patch'; choose one"),
        (
            grid(12, 6),
            ("cell", 4),
            "a cell of 4x4 tokens must be smaller than the 12x6 grid and divide it, got side 4; choose a side of 2, 3",
        ),
        (grid(6, 6), ("cell", 6), "must be smaller than the 6x6 grid .* got side 6; choose a side of 2 or 3, or token"),
        (grid(5, 5), ("cell", 2), "got side 2; choose token or image entities"),
        (grid(4, 4), ("subsample", 1), "a stride of 1 must be at most the sides of the 4x4 grid and divide them"),
        (grid(5, 5), ("scale",), "scales that grow by 2 must divide the 5x5 grid .* choose a side of 5, or token"),
        (grid(4, 4), ("image", 2), "entities of kind image have no side, got 2; leave it out"),
    ],
)
def test_what_cannot_be_cut(layout, arguments, said):
    with pytest.raises(ValueError, match=said):
        entities(layout, *arguments)


def test_latents_of_another_grid():
    with pytest.raises(ValueError, match=r"latents must be \[B, C, 4, 4\] for these entities, got \[1, 2, 4, 6\]; cut"):
        entities(grid(4, 4), side=2).cut(torch.zeros(1, 2, 4, 6))
