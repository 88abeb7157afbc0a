"""What a step wrote, summed, and where in the image it wrote it."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.embedding import (
    CodebookEmbedding,
    CodePositions,
    ConcatEmbedding,
    VectorProjector,
    code_embedding,
    embed_tokens,
    local_ids,
)
from smalti.lm.sequences import NONE, TEXT
from smalti.lm.tables import Table
from smalti.lm.vocabulary import Vocabulary
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
    torch.testing.assert_close(
        embed_tokens(tokens, Table(table))[0], torch.stack([table[3] + table[4] + table[8], table[0]])
    )
    assert torch.equal(embed_tokens(tokens[..., :1], Table(table))[0], table[[3, 0]])


def test_columns_side_by_side():
    module = ConcatEmbedding(SPEC, 3, 6)
    ids = torch.tensor([[4, 6, 0], [0, 1, 6]])
    found = module(ids, torch.arange(2), None)
    parts = [module.tables[column].weight[ids[1, column]] for column in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    torch.testing.assert_close(found[1], module.join(torch.cat(parts)))
    with pytest.raises(ValueError, match=r"concat embeddings look codes up, got vectors \[2, 5\]; use kind codebook"):
        module(ids, torch.arange(2), torch.zeros(2, 5))


def test_vectors_of_the_tokenizer():
    module = CodebookEmbedding(SPEC, 3, 6, {"semantic": 2, "pixel": 4})
    tables = {"semantic": torch.randn(5, 2), "pixel": torch.randn(7, 4)}
    module.set_vectors(tables)
    found = module(torch.tensor([[4, 6, 0]]), torch.arange(1), None)
    read = torch.cat([tables["semantic"][4], tables["pixel"][6] + tables["pixel"][0]])  # depths are added
    torch.testing.assert_close(found[0], module.leave(torch.nn.functional.gelu(module.enter(read))))
    given = read[None].requires_grad_()
    torch.testing.assert_close(module(torch.zeros(1, 3).long(), torch.arange(1), given), found)
    module(torch.zeros(1, 3).long(), torch.arange(1), given).sum().backward()
    assert given.grad.abs().sum() > 0
    assert {name for name, _ in module.named_parameters()} == {
        f"{x}.{y}" for x in ("enter", "leave") for y in ("weight", "bias")
    }
    assert set(module.state_dict()) > {"vectors_semantic", "vectors_pixel"}


def test_continuous_features():
    module = VectorProjector(3, 6, bias=False, activation="gelu_tanh", null=2)
    values = torch.randn(4, 3)
    inner = torch.nn.functional.gelu(values @ module.first.weight.T, approximate="tanh")
    torch.testing.assert_close(module(values), inner @ module.second.weight.T)
    assert module.null.shape == (2, 3)
    assert "null" not in dict(module.named_parameters())
    with pytest.raises(ValueError, match="vectors of this model have 3 channels, got 5; use its encoder"):
        module(torch.zeros(2, 5))


def test_codes_counted_from_zero():
    vocabulary = Vocabulary.train(["a b"]).with_codebooks(SPEC.codebooks)
    semantic, pixel = vocabulary.block("semantic").start, vocabulary.block("pixel").start
    whole = local_ids(torch.tensor([[semantic + 4, pixel + 6, pixel]]), torch.tensor([2]), vocabulary, SPEC)
    assert whole.tolist() == [[4, 6, 0]]
    flat = local_ids(torch.tensor([[semantic + 4], [pixel + 6]]), torch.tensor([3, 5]), vocabulary, SPEC)
    assert flat.tolist() == [[4], [6]]


def test_kinds_by_name():
    assert code_embedding({}, SPEC, 1, 6) is None
    assert code_embedding({"kind": "sum", "places": False}, SPEC, 3, 6) is None
    assert isinstance(code_embedding({"kind": "concat", "dim": 5}, SPEC, 3, 6), ConcatEmbedding)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "add"}, "codes enter as one of sum, concat, codebook, got 'add'; choose one"),
        ({"dim": 3}, "codes that enter by sum take places, got dim; correct it"),
        ({"kind": "codebook", "dims": {"pixel": 2}}, "need the width of semantic, pixel, got pixel; give that of"),
    ],
)
def test_unknown_ways_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        code_embedding(fields, SPEC, 3, 6)


def test_single_columns_have_nothing_beside_them():
    with pytest.raises(ValueError, match="where a step writes all 3 columns of a position, got 1; use a depth"):
        code_embedding({"kind": "concat"}, SPEC, 1, 6)
