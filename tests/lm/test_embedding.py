"""What a step wrote, summed, and where in the image it wrote it."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.embedding import CodePositions, embed_tokens
from smalti.lm.layout import NONE, TEXT
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))


def test_flat_slot_is_position_times_depth_plus_column():
    added = CodePositions(SPEC, 1, 6)
    found = added(torch.arange(12)[None])[0]
    for position in range(4):
        for column in range(3):
            expected = added.position.weight[position] + added.column.weight[column]
            assert torch.equal(found[position * 3 + column], expected)


def test_slot_is_the_position_where_a_step_writes_all_columns():
    added = CodePositions(SPEC, 3, 6)
    expected = added.position.weight + added.column.weight
    assert torch.equal(added(torch.arange(4)[None])[0], expected)


def test_text_gets_nothing_and_teaches_nothing():
    added = CodePositions(SPEC, 1, 6)
    found = added(torch.tensor([[TEXT, 4, TEXT]]))
    assert torch.equal(found[0, [0, 2]], torch.zeros(2, 6))
    found.sum().backward()
    assert added.position.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
    assert added.column.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(("per_step", "slots"), [(1, 12), (3, 4)])
def test_different_slots_differ(per_step, slots):
    found = CodePositions(SPEC, per_step, 6)(torch.arange(slots)[None])[0]
    assert len(torch.unique(found, dim=0)) == slots


def test_tokens_of_a_step_are_summed():
    table = torch.randn(9, 6)
    tokens = torch.tensor([[[3, 4, 8], [0, NONE, NONE]]])
    torch.testing.assert_close(embed_tokens(tokens, table)[0], torch.stack([table[3] + table[4] + table[8], table[0]]))
    assert torch.equal(embed_tokens(tokens[..., :1], table)[0], table[[3, 0]])
