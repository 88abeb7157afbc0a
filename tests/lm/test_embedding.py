"""Where in the image a code stands, added to its token."""

from __future__ import annotations

import torch

from smalti.lm.embedding import CodePositions
from smalti.lm.layout import TEXT
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))


def test_slot_is_position_times_depth_plus_column():
    added = CodePositions(SPEC, 6)
    found = added(torch.arange(12)[None])[0]
    for position in range(4):
        for column in range(3):
            expected = added.position.weight[position] + added.column.weight[column]
            assert torch.equal(found[position * 3 + column], expected)


def test_text_gets_nothing_and_teaches_nothing():
    added = CodePositions(SPEC, 6)
    found = added(torch.tensor([[TEXT, 4, TEXT]]))
    assert torch.equal(found[0, [0, 2]], torch.zeros(2, 6))
    found.sum().backward()
    assert added.position.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
    assert added.column.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


def test_different_slots_differ():
    found = CodePositions(SPEC, 6)(torch.arange(12)[None])[0]
    assert len(torch.unique(found, dim=0)) == 12
