"""Directions beyond the first: the backbone some blocks deeper, and parts of the model like all others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smalti.generation.orders import Neighbouring, order_parts
from smalti.generation.session import unlearned
from smalti.lm import directions
from smalti.lm.directions import BothStates
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
IMAGE, VIDEO = (CodeSpec(CodeLayout("grid", shape), BOOKS) for shape in ((2, 3), (2, 2, 2)))
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
WORDS = ["a red circle"]


def model(spec, directions=None, layers=2, kind="llama", **parts) -> SharedLM:
    """In one direction where none are given, and otherwise as many as neighbours need."""
    fields = {} if directions is None else order_parts(Neighbouring(), spec)
    backbone = {"model_type": kind, **SIZES, "num_hidden_layers": layers}
    lm = SharedLM.build(backbone, Vocabulary.train(WORDS), spec, "f00d", {"kind": "depth"}, **fields, **parts).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 1:
                parameter.normal_(std=0.3)
    return lm


def batch(lm):
    ids = torch.stack([torch.randint(0, book.size, (lm.spec.positions,)) for book in lm.spec.columns], 1)
    plan = Neighbouring().plan(lm.spec.layout)
    return lm.layout.collate([lm.layout.text_to_image(caption, ids, rows=plan.rows()) for caption in ("a", "a red")])


def test_a_norm_hands_on_what_it_was_given():
    norm, states = nn.LayerNorm(4), torch.randn(2, 3, 4)
    assert torch.equal(BothStates(norm)(states), torch.cat([norm(states), states], -1))


@pytest.mark.parametrize("rotary", ["sequence", "axial"])
@pytest.mark.parametrize(("spec", "count"), [(IMAGE, 2), (VIDEO, 3)])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_each_direction_is_the_backbone_one_block_deeper(spec, count, kind, rotary):
    if spec is VIDEO and rotary == "axial":
        rotary = "none"
    lm = model(spec, count, kind=kind, rotary=rotary)
    given = batch(lm)
    with torch.no_grad():
        states = lm.directed(given)
    assert states.shape == (*given.slots.shape, count, 16)
    own = lm.backbone.base_model
    for direction in range(count):
        deeper = model(spec, layers=2 + direction, kind=kind, rotary=rotary)
        trunk = deeper.backbone.base_model
        trunk.embed_tokens.load_state_dict(own.embed_tokens.state_dict())
        deeper.positions.load_state_dict(lm.positions.state_dict())
        blocks = [*own.layers, *(part.block for part in lm.directions.parts)]
        norms = [own.norm.norm, *(part.norm for part in lm.directions.parts)]
        for block, source in zip(trunk.layers, blocks, strict=False):
            block.load_state_dict(source.state_dict())
        trunk.norm.load_state_dict(norms[direction].state_dict())
        with torch.no_grad():
            torch.testing.assert_close(deeper.directed(given)[..., 0, :], states[..., direction, :])
    assert not torch.allclose(states[..., 0, :], states[..., 1, :], atol=0.1)


def test_every_direction_has_a_head_and_rows_of_its_own():
    lm = model(VIDEO, 3)
    assert len(lm.heads) == 3
    assert len({id(head) for head, _ in lm.heads}) == 3
    for (head, table), part in zip(lm.heads[1:], lm.directions.parts, strict=True):
        assert head is part.head
        block = lm.vocabulary.block("pixel")
        assert torch.equal(table.parts(block)[0], part.rows[5:12])
        assert part.rows.shape == (12, 16)
        states = torch.randn(2, 16)
        assert torch.equal(table.logits(states, block), states @ part.rows[5:].T)


def test_every_direction_learns():
    lm = model(VIDEO, 3).train()
    lm(batch(lm)).loss.backward()
    still = [name for name, value in lm.directions.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_output_rows_are_drawn(monkeypatch):
    """Also where fresh memory is not what it should be."""
    empty = torch.empty
    monkeypatch.setattr(directions.torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(7.0))
    wide = {"model_type": "llama", **SIZES, "num_hidden_layers": 1, "hidden_size": 64}
    fields = order_parts(Neighbouring(), VIDEO)
    lm = SharedLM.build(wide, Vocabulary.train(WORDS), VIDEO, "f00d", {"kind": "depth"}, **fields)
    one, other = (part.rows.detach() for part in lm.directions.parts)
    for rows in (one, other):
        assert abs(float(rows.mean())) < 0.005
        assert 0.015 < float(rows.std()) < 0.025
    assert not torch.equal(one, other)


def test_directions_and_queries_are_saved_and_loaded(tmp_path):
    lm = model(IMAGE, 2)
    lm.save_pretrained(tmp_path)
    again = SharedLM.from_pretrained(tmp_path).eval()
    assert again.config.order == {"kind": "neighbouring"}
    assert (again.config.directions, again.config.queries) == (2, 0)
    state = again.state_dict()
    assert set(state) == set(lm.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in lm.state_dict().items())
    given = batch(lm)
    with torch.no_grad():
        assert torch.equal(again.directed(given), lm.directed(given))


def test_checkpointed_gradients_are_the_same():
    lm = model(IMAGE, 2).train()
    given = batch(lm)
    lm(given).loss.backward()
    plain = {name: value.grad.clone() for name, value in lm.named_parameters() if value.grad is not None}
    lm.zero_grad()
    lm.gradient_checkpointing_enable()
    lm(given).loss.backward()
    for name, value in lm.named_parameters():
        if name in plain:
            torch.testing.assert_close(value.grad, plain[name], rtol=1e-3, atol=1e-6)


def test_backbones_of_another_kind_are_an_error():
    backbone = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    message = "2 directions need a backbone with blocks like llama's or qwen2's, got gpt2; use one of those or an order"
    with pytest.raises(ValueError, match=message):
        SharedLM.build(backbone, Vocabulary.train(WORDS), IMAGE, "f00d", directions=2)


def test_models_without_queries_cannot_be_asked():
    lm = SharedLM.build({"model_type": "llama", **SIZES, "num_hidden_layers": 1}, Vocabulary(None), IMAGE, "f00d")
    rows, asked = torch.tensor([[[-1, 2]]]), torch.tensor([[True]])
    with pytest.raises(ValueError, match="built without queries, got steps that are asked for; build it with some"):
        lm.embed(unlearned(rows, asked=asked))
