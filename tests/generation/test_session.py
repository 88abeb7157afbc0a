"""Text, an image in any order, and text again, pass by pass, against one pass over the whole sequence."""

from __future__ import annotations

import pytest
import torch

from smalti.generation.orders import Grouped, Masked, Neighbouring, NextScale, Random, Raster, order_parts
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling
from smalti.generation.session import Session, left_padded, unlearned
from smalti.lm.model import SharedLM
from smalti.lm.sequences import EXTRA, NONE, TEXT, Caption, Picture, Words
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
CAPTIONS = ["a red circle", "a"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
ORDERS = [Raster(), Neighbouring(), Grouped(2), Random(3), NextScale()]
NAMES = [order.fields()["kind"] for order in ORDERS]


def model(order, **parts) -> SharedLM:
    layout = CodeLayout("scales", (1, 2)) if isinstance(order, NextScale) else CodeLayout("grid", (2, 4))
    spec = CodeSpec(layout, BOOKS)
    words = Vocabulary.train(["a red circle", "how many ?"])
    lm = SharedLM.build(LLAMA, words, spec, "f00d", {"kind": "depth"}, **order_parts(order, spec), **parts).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return lm


def pictures(lm, count: int) -> torch.Tensor:
    return torch.stack([torch.randint(0, book.size, (count, lm.spec.positions)) for book in lm.spec.columns], -1)


def rows_of(lm, plan, step, ids) -> torch.Tensor | None:
    """What a pass reads, one row for each code and each extra."""
    codes, found = torch.stack([lm.layout.codes(one) for one in ids]), []
    for source in plan.inputs(step):
        if source < plan.count:
            found.append(codes[:, plan.positions[source]])
        else:
            found.append(torch.tensor([source - plan.count, NONE, NONE, EXTRA]).expand(len(ids), -1))
    return torch.stack(found, 1) if found else None


@pytest.mark.parametrize("rotary", ["sequence", "axial"])
@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_text_and_image_and_text_are_one_pass(order, rotary):
    if isinstance(order, NextScale):
        rotary = "none"
    lm = model(order, rotary=rotary)
    plan, ids = order.plan(lm.spec.layout), pictures(lm, 2)
    rows = plan.rows()
    asked, place = rows.asked, rows.positions
    pictured = zip(CAPTIONS, [Picture(one, rows=rows) for one in ids], strict=True)
    parts = [[Words(caption, learned=False), one, Caption("a red")] for caption, one in pictured]
    prompts = [lm.layout.prompt(caption) for caption in CAPTIONS]
    session = Session(lm, prompts, lm.layout.steps + 5, plan.extras)
    batch = lm.layout.collate([lm.layout.build(part) for part in parts])

    def prove(states, indices, beyond=0):
        for row, prompt in enumerate(prompts):
            expected = whole[row, [len(prompt) + beyond + index for index in indices]]
            torch.testing.assert_close(states[row, states.shape[1] - len(indices) :], expected, rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        whole = lm.directed(batch)
        session.open_image()
        for step in range(len(plan.sizes) + 1):  # the last one reads what the last pass wrote
            queries = None
            read = [int(((place == plan.positions[k]) & ~asked).nonzero()) for k in plan.inputs(step) if k < plan.count]
            read += (place < 0).nonzero().flatten().tolist()[: max(0, len(plan.inputs(step)) - len(read))]
            if plan.asks == "step" and step < len(plan.sizes):
                queries = plan.steps()[step].expand(2, -1)
                read += [int(((place == at) & asked).nonzero()) for at in plan.steps()[step]]
            states = session.read(rows_of(lm, plan, step, ids), queries)
            extras = plan.extras if step >= plan.extras_pass else 0
            assert session.cache.get_seq_length() == len(prompts[0]) + plan.starts[step] + extras
            prove(states, [*range(-2, 0), *read] if step == 0 else read)
        session.close_image()
        first = len(prompts[0]) + len(rows)
        said = batch.tokens[0, first:, 0].tolist()  # </image> <caption> a red <eos>
        for token in said[:2]:
            session.text(torch.tensor([token, token]))
        prove(session.read(), [0, 1], len(rows))
        for index, token in enumerate(said[2:], start=2):
            session.text(torch.tensor([token, token]))
            prove(session.read(), [index], len(rows))


@pytest.mark.parametrize("order", [Raster(), Neighbouring(), Random(3)], ids=["raster", "neighbouring", "random"])
def test_some_sequences_go_on(order):
    lm = model(order)
    plan, ids = order.plan(lm.spec.layout), pictures(lm, 2)
    with torch.no_grad():
        sessions = [Session(lm, [lm.layout.prompt(caption) for caption in CAPTIONS], 8) for _ in range(2)]
        for session in sessions:
            session.open_image()
        for step in range(len(plan.sizes)):
            if step == 2:
                sessions[1].keep(1)
            count = 2 if step < 2 else 1
            given = rows_of(lm, plan, step, ids)
            queries = plan.steps()[step].expand(2, -1) if plan.asks == "step" else None
            both = sessions[0].read(given, queries)
            some = [part if part is None else part[:count] for part in (given, queries)]
            few = sessions[1].read(*some)
            torch.testing.assert_close(few, both[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [*ORDERS[:3], Random(3), Masked(3)], ids=[*NAMES[:3], "random", "masked"])
def test_passes_without_padding_need_no_mask(order):
    """But for those that read codes and ask at once: codes do not see queries."""
    lm, masks = model(order), []
    hook = lm.backbone.base_model.register_forward_hook(
        lambda module, args, kwargs, output: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    sample_codes(lm, ["a red", "a circle"], [torch.Generator() for _ in range(2)], Sampling(1.0))
    hook.remove()
    needed = [mask is not None for mask in masks]
    assert needed == [order.plan(lm.spec.layout).asks != "nothing"] * len(masks)


def test_sequences_that_have_ended_are_not_seen():
    lm = model(Raster())
    ids = pictures(lm, 2)
    codes = torch.stack([lm.layout.codes(one) for one in ids])
    with torch.no_grad():
        together = Session(lm, [lm.layout.prompt("a")] * 2, 8)
        alone = Session(lm, [lm.layout.prompt("a")], 8)
        for session in (together, alone):
            session.open_image()
        together.read()
        alone.read()
        together.read(codes[:, :1], present=torch.tensor([False, True]))
        found = together.read(codes[:, 1:2], present=torch.tensor([True, True]))
        expected = alone.read(codes[:1, 1:2])  # which never read the first code
    torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)


def test_prompts_are_padded_on_the_left():
    lm = model(Raster())
    found = left_padded(lm, [lm.layout.prompt(caption) for caption in CAPTIONS])
    assert found.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert found.rows.shape == (2, 5, 4)
    assert torch.equal(found.rows[1, 2:], lm.layout.prompt("a").rows)
    assert found.rows[1, :2, -1].tolist() == [TEXT, TEXT]
    assert found.vectors is None


def test_vectors_of_prompts_are_joined():
    lm = model(Raster(), vectors={"dim": 3})
    one, two = torch.randn(2, 3), torch.randn(1, 3)
    found = left_padded(lm, [lm.layout.prompt(one), lm.layout.prompt(two)])
    assert torch.equal(found.vectors, torch.cat([one, two]))
    assert found.mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_rows_that_are_only_read():
    rows = torch.tensor([[[3, NONE, 0], [NONE, NONE, 1]]])
    batch = unlearned(rows, asked=torch.tensor([[False, True]]))
    assert batch.tokens.tolist() == [[[3, NONE], [NONE, NONE]]]
    assert batch.slots.tolist() == [[0, 1]]
    assert batch.codes.tolist() == [[True, False]]
    assert not batch.learned.any()
    assert unlearned(rows).ordering is None


def test_sessions_longer_than_the_backbone_are_an_error():
    lm = model(Raster())
    Session(lm, [lm.layout.prompt("a")], 29)
    with pytest.raises(ValueError, match="have at most 32 tokens, got 33; raise max_position_embeddings"):
        Session(lm, [lm.layout.prompt("a")], 30)
