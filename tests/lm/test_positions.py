"""Where steps stand: written out by hand, and the rotation against its formula."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3_5TextConfig

from smalti.lm.positions import (
    AXIS,
    NOWHERE,
    AxialPlaces,
    AxialRotary,
    MultimodalPlaces,
    SequencePlaces,
    places,
)
from smalti.lm.sequences import CLASS, EXTRA, TEXT, VECTOR
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

GRID = CodeSpec(CodeLayout("grid", (2, 3)), (Codebook("pixel", 7),))
IMAGE = [0, 1, 2, 3, 4, 5]


def slots(*rows) -> torch.Tensor:
    return torch.tensor(rows)


def pairs(ids) -> list[tuple[int, int]]:
    return [divmod(i, AXIS) for i in ids.tolist()]


def test_sequence_places_count_what_is_present():
    present = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    places = SequencePlaces(GRID, 1)
    assert places(torch.full((2, 5), TEXT), present)[:, 2:].tolist() == [[0, 1, 2], [2, 3, 4]]


def test_documents_count_anew():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2]])
    found = SequencePlaces(GRID, 1)(torch.full((1, 6), TEXT), torch.ones(1, 6).bool(), documents)
    assert found.tolist() == [[0, 1, 2, 0, 1, 0]]
    codes = SequencePlaces(GRID, 1)(slots([TEXT, *IMAGE[:2], *IMAGE[:3]]), torch.ones(1, 6).bool(), documents)
    assert codes.tolist() == [[0, 1, 2, 0, 1, 2]]  # images cut short, each in a document of its own


def test_places_of_codes_are_those_of_raster_order_however_they_are_written():
    row = slots([TEXT, EXTRA, 3, 0, 0, 5, 1, 4, 2, TEXT])  # one of them twice, as a query and as a code
    present = torch.ones_like(row).bool()
    assert SequencePlaces(GRID, 1)(row, present)[0].tolist() == [0, 1, 4, 1, 1, 6, 2, 5, 3, 7]
    found = AxialPlaces(GRID, 1)(row, present)[0]
    assert found[1] == NOWHERE
    assert pairs(found[2:]) == [(2, 1), (1, 1), (1, 1), (2, 3), (1, 2), (2, 2), (1, 3), (4, 4)]


def test_an_image_opens_where_the_text_ends_and_the_text_goes_on_behind_its_longer_side():
    row = slots([TEXT, TEXT, *IMAGE, TEXT, TEXT])
    found = AxialPlaces(GRID, 1)(row, torch.ones_like(row).bool())[0]
    cells = [(2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (3, 4)]
    assert pairs(found) == [(0, 0), (1, 1), *cells, (5, 5), (6, 6)]


def test_cells_of_coarse_scales_stand_in_the_middle_of_what_they_cover():
    spec = CodeSpec(CodeLayout("scales", (1, 2, 4)), GRID.codebooks)
    row = slots([TEXT, *range(21), TEXT])
    found = pairs(AxialPlaces(spec, 1)(row, torch.ones_like(row).bool())[0])
    assert found[1:2] == [(3, 3)]  # one cell of 4 x 4, behind one step of text
    assert found[2:6] == [(2, 2), (2, 4), (4, 2), (4, 4)]
    assert found[6:22] == [(1 + i, 1 + j) for i in range(4) for j in range(4)]
    assert found[22] == (5, 5)


def test_conditions_stand_nowhere_and_take_no_place():
    row = slots([CLASS, *IMAGE], [VECTOR, VECTOR, *IMAGE[:5]])
    found = AxialPlaces(GRID, 1)(row, torch.ones_like(row).bool())
    cells = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert found[0, 0] == NOWHERE
    assert pairs(found[0, 1:]) == cells
    assert found[1, :2].tolist() == [NOWHERE, NOWHERE]
    assert pairs(found[1, 2:]) == cells[:5]


def test_places_do_not_depend_on_what_comes_later():
    row = slots([TEXT, *IMAGE, TEXT, *IMAGE, TEXT])
    present = torch.ones_like(row).bool()
    for family in (AxialPlaces(GRID, 1), MultimodalPlaces(GRID, 1)):
        whole = family(row, present)
        for length in range(1, row.shape[1]):
            found = family(row[:, :length], present[:, :length])
            assert torch.equal(found[..., -1], whole[..., length - 1])


def test_padding_on_the_left_and_documents():
    row = slots([TEXT, TEXT, *IMAGE])
    present = torch.tensor([[False, True, *[True] * 6]])
    assert pairs(AxialPlaces(GRID, 1)(row, present)[0, 1:3]) == [(0, 0), (1, 1)]
    twice = slots([TEXT, *IMAGE, TEXT, *IMAGE])
    documents = torch.tensor([[0] * 7 + [1] * 7])
    found = AxialPlaces(GRID, 1)(twice, torch.ones_like(twice).bool(), documents)[0]
    assert torch.equal(found[:7], found[7:])


def test_multimodal_places_keep_an_image_at_one_time():
    row = slots([TEXT, *IMAGE, TEXT])
    time, rows, columns = MultimodalPlaces(GRID, 1)(row, torch.ones_like(row).bool())[:, 0].tolist()
    assert time == [0, 1, 1, 1, 1, 1, 1, 4]
    assert rows == [0, 1, 1, 1, 2, 2, 2, 4]
    assert columns == [0, 1, 2, 3, 1, 2, 3, 4]


def test_columns_of_a_position_share_its_place():
    row = slots([TEXT, *range(12)])
    found = AxialPlaces(GRID, 2)(row, torch.ones_like(row).bool())[0]
    assert torch.equal(found[1::2], found[2::2])


def test_axial_rotary_turns_half_the_pairs_by_the_row_and_half_by_the_column():
    ids = torch.tensor([[3 * AXIS + 5, NOWHERE]])
    cos, sin = AxialRotary(8, 100.0)(torch.zeros(1, 2, 8), ids)
    angles = torch.tensor([3 * 1.0, 3 * 100.0**-0.5, 5 * 1.0, 5 * 100.0**-0.5])
    torch.testing.assert_close(cos[0, 0], angles.cos().repeat(2))
    torch.testing.assert_close(sin[0, 0], angles.sin().repeat(2))
    assert torch.equal(cos[0, 1], torch.zeros(8))
    assert torch.equal(sin[0, 1], torch.zeros(8))
    assert AxialRotary(8)(torch.zeros(1, 2, 8, dtype=torch.bfloat16), ids)[0].dtype == torch.bfloat16


def backbone(**fields) -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**sizes, "num_attention_heads": 2, **fields}))


def test_kinds_by_name():
    llama = backbone(rope_theta=50.0)
    assert isinstance(places("sequence", GRID, 1, llama), SequencePlaces)
    assert isinstance(places("axial", GRID, 1, llama), AxialPlaces)
    assert (llama.model.rotary_emb.head_dim, llama.model.rotary_emb.base) == (8, 50.0)


def test_multimodal_rotary_where_the_backbone_has_it():
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10, "head_dim": 32}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [6, 5, 5], "partial_rotary_factor": 1.0}
    config = Qwen3_5TextConfig(**sizes, **heads, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config)
    family = places("multimodal", GRID, 1, model)
    row = slots([TEXT, *IMAGE, TEXT])
    ids = family(row, torch.ones_like(row).bool())
    inputs = torch.randn(1, 8, 32)
    plain = model.model(inputs_embeds=inputs).last_hidden_state
    placed = model.model(inputs_embeds=inputs, position_ids=ids).last_hidden_state
    assert not torch.allclose(plain, placed, atol=1e-4)
    torch.testing.assert_close(placed[:, :2], plain[:, :2])  # before the image's second cell nothing differs


@pytest.mark.parametrize(
    ("kind", "spec", "fields", "message"),
    [
        ("spiral", GRID, {}, "rotary must be one of sequence, axial, multimodal, none, got 'spiral'; choose"),
        (
            "axial",
            CodeSpec(CodeLayout("sequence", (6,)), GRID.codebooks),
            {},
            "needs codes laid out as grid or scales, got a seq",
        ),
        ("axial", CodeSpec(CodeLayout("grid", (2, 2, 2)), GRID.codebooks), {}, r"grid of \(h, w\), got \(2, 2, 2\)"),
        ("axial", GRID, {"hidden_size": 12}, "channels of a head four by four, got 6 channels; change hidden_size"),
        ("multimodal", GRID, {}, "takes time, row and column, got llama; use sequence or axial"),
    ],
)
def test_places_that_do_not_fit(kind, spec, fields, message):
    with pytest.raises(ValueError, match=message):
        places(kind, spec, 1, backbone(**fields))


def test_axial_places_need_a_rotary_embedding():
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="plain rotary embedding, such as llama or qwen2, got gpt2; use sequence"):
        places("axial", GRID, 1, gpt2)
