"""Rows in one piece or in two: the same rows."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.tables import Table

MATRIX = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cuts", [[9], [5, 4], [1, 7, 1]])
def test_pieces_are_one_matrix(cuts):
    table, states = Table(*MATRIX.split(cuts)), torch.randn(2, 3, 4)
    tokens = torch.tensor([[0, 4, 5], [8, 3, 6]])
    assert torch.equal(table.embed(tokens), MATRIX[tokens])
    for ids in (range(9), range(2, 7), range(6, 8), range(4)):
        torch.testing.assert_close(table.logits(states, ids), states @ MATRIX[ids.start : ids.stop].T)


def test_gradients_stay_in_their_piece():
    first, second = (piece.clone().requires_grad_() for piece in MATRIX.split([5, 4]))
    table = Table(first, second)
    table.embed(torch.tensor([1, 7])).sum().backward()
    assert first.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
    assert second.grad.abs().sum(1).nonzero().flatten().tolist() == [2]
    second.grad = None
    table.logits(torch.ones(4), range(6, 8)).sum().backward()
    assert second.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 2]


def test_parts_are_views():
    Table(*MATRIX.clone().split([5, 4])).parts(range(3, 7))[0].zero_()
    table = Table(MATRIX.clone())
    table.parts(range(2, 4))[0].zero_()
    assert torch.equal(table.embed(torch.tensor([2, 3])), torch.zeros(2, 4))
