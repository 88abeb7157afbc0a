"""Logits, their mean over directions, guidance and cross-entropy against loops over single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from smalti.generation.orders import Grouped, Masked, Neighbouring, Random, Raster, order_parts
from smalti.lm.heads import FlatHead
from smalti.lm.losses import BlockLoss, Predictors, mean_logits, merged, predictors_of
from smalti.lm.model import SharedLM
from smalti.lm.ordering import Ordering
from smalti.lm.plans import ABSENT
from smalti.lm.sequences import Batch, Caption, Picture, Words
from smalti.lm.tables import Table
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (2, 4)), BOOKS)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ORDERS = [Raster(), Neighbouring(), Grouped(2), Random(3), Masked(3)]
EVERY = pytest.mark.parametrize("order", ORDERS, ids=[order.fields()["kind"] for order in ORDERS])


def two_heads() -> list[tuple[FlatHead, Table]]:
    """Of three codes, whose rows are 0 and 1 in two channels."""
    book = (Codebook("pixel", 3),)
    spec, vocabulary = CodeSpec(CodeLayout("grid", (1, 2)), book), Vocabulary(None, book)
    right, below = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]]
    return [(FlatHead(vocabulary, spec), Table(torch.tensor(rows))) for rows in (right, below)]


def model(order, head="depth") -> SharedLM:
    words = Vocabulary.train(["a red circle", "how many ?"])
    lm = SharedLM.build(LLAMA, words, SPEC, "f00d", {"kind": head}, **order_parts(order, SPEC)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return lm


def picture() -> torch.Tensor:
    return torch.stack([torch.randint(0, book.size, (8,)) for book in SPEC.columns], 1)


def example(lm, order, caption="a red", beyond="circle"):
    rows = order.plan(SPEC.layout).rows()
    return lm.layout.build([Words(caption, learned=False), Picture(picture(), rows=rows), Caption(beyond)])


STATES = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]


def test_logits_are_the_mean_of_the_directions_that_predict():
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    found = mean_logits(two_heads(), STATES, shares, 0)
    assert found.tolist() == [[(1 + 12) / 2, (2 + 10) / 2, (3 + 0) / 2], [3, 4, 7]]
    alone = mean_logits(two_heads(), STATES, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0)
    assert alone.tolist() == [[12, 10, 0], [16, 14, 0]]
    assert mean_logits(two_heads()[:1], STATES[:1], None, 0).tolist() == [[1, 2, 3], [3, 4, 7]]
    assert found.dtype == torch.float32


def test_guidance_leads_away_in_every_direction():
    shares = torch.full((2, 2), 0.5)
    given, free = mean_logits(two_heads(), STATES, shares, 0)
    found = mean_logits(two_heads(), STATES, shares, 0, guidance=3.0)
    torch.testing.assert_close(found, (free + 3 * (given - free))[None])
    one = mean_logits(two_heads()[:1], STATES[:1], None, 0, guidance=0.0)
    assert one.tolist() == [[3, 4, 7]]  # nothing of what was given


def test_logits_of_narrow_types_are_float32():
    heads = [(head, Table(table.pieces[0].bfloat16())) for head, table in two_heads()]
    states = [state.bfloat16() for state in STATES]
    assert mean_logits(heads, states, torch.full((2, 2), 0.5), 0, guidance=2.0).dtype == torch.float32


def test_each_direction_has_its_head_for_its_state():
    lm, states = model(Neighbouring()), torch.randn(3, 2, 16)
    before = torch.randn(3, 1, 16)
    found = Predictors(states, None).leaving(lm.heads, before)
    assert [part.shape for part in found] == [(3, 2, 16)] * 2
    for direction, part in enumerate(found):
        assert torch.equal(part, lm.heads[direction][0](states[:, direction], before))


def test_what_predicts_a_step():
    ordering = Ordering(
        torch.tensor([[0, 2, 2, 3]]),
        torch.zeros(1, 4).bool(),
        torch.tensor([[[-1, ABSENT], [0, 0], [ABSENT, 1], [2, 1]]]),
    )
    tokens, slots, learned = torch.zeros(1, 4, 1).long(), torch.zeros(1, 4).long(), torch.ones(1, 4).bool()
    hidden = torch.arange(8.0).view(1, 4, 2, 1)
    batch = Batch(tokens, slots, learned, ordering=ordering)
    found = predictors_of(torch.tensor([[False, True, True, True]]), hidden, batch)
    assert found.shares.tolist() == [[0.5, 0.5], [0, 1], [0.5, 0.5]]
    assert found.states[0].flatten().tolist() == [0, 1]
    assert found.states[1, 1].tolist() == [3]
    assert found.states[2].flatten().tolist() == [4, 3]


def test_causal_steps_are_predicted_by_those_before():
    hidden, zeros = torch.randn(2, 3, 1, 4), torch.zeros(2, 3).long()
    batch = Batch(zeros[..., None], zeros, zeros.bool())
    found = predictors_of(torch.tensor([[False, True, False], [False, False, True]]), hidden, batch)
    assert torch.equal(found.states, torch.stack([hidden[0, 0], hidden[1, 1]]))
    assert found.shares is None


@pytest.mark.parametrize("head", ["depth", "parallel"])
@EVERY
def test_the_loss_is_the_mean_over_all_that_is_learned(order, head):
    """Step by step, column by column and direction by direction."""
    lm = model(order, head)
    examples = [example(lm, order), example(lm, order, "a", "a red circle")]
    batch = lm.layout.collate(examples)
    with torch.no_grad():
        found, states = lm(batch), lm.directed(batch)
        nats: dict[str, list[torch.Tensor]] = {"text": [], "semantic": [], "pixel": []}
        for row, one in enumerate(examples):
            for step in one.learned.nonzero().flatten().tolist():
                sources, tokens = one.ordering.sources[step].tolist(), one.tokens[step]
                if one.slots[step] < 0:
                    logits = lm.outputs.logits(states[row, step - 1, 0], lm.head.text.ids)
                    nats["text"].append(F.cross_entropy(logits, tokens[0]))
                    continue
                for column, book in enumerate(SPEC.columns):
                    logits = []
                    for direction, (part, table) in enumerate(lm.heads):
                        if sources[direction] != ABSENT:
                            state = states[row, sources[direction], direction]
                            leaving = part(state[None], lm.inputs.embed(tokens[:column])[None])
                            logits.append(part.column_logits(leaving[0, -1], table, column))
                    target = tokens[column] - lm.vocabulary.block(book.name).start
                    nats[book.name].append(F.cross_entropy(torch.stack(logits).mean(0), target))
    assert set(found.blocks) == set(nats)
    for name, parts in nats.items():
        assert int(found.blocks[name].tokens) == len(parts)
        torch.testing.assert_close(found.blocks[name].mean, torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)
    total = sum(torch.stack(parts).mean() for parts in nats.values())
    torch.testing.assert_close(found.loss, total, rtol=1e-4, atol=1e-5)


@EVERY
def test_batches_padded_packed_and_apart_lose_the_same(order):
    lm = model(order)
    plain = lm.layout.build([Words("how many red ?")])  # causal, beside those in an order
    examples = [example(lm, order), example(lm, order, "a", "a red circle"), plain]
    longest = max(map(len, examples))
    with torch.no_grad():
        apart = merged([lm(lm.layout.collate([one])).blocks for one in examples])
        padded = lm(lm.layout.collate(examples)).blocks
        packed = lm.layout.pack(examples, 3 * longest)
        assert packed.tokens.shape[0] == 1
        together = lm(packed).blocks
    for name, block in apart.items():
        for other in (padded[name], together[name]):
            assert int(other.tokens) == int(block.tokens)
            torch.testing.assert_close(other.mean, block.mean, rtol=1e-4, atol=1e-5)


def test_masked_learns_what_is_asked_for_alone():
    lm, plan = model(Masked(3)), Masked(3).plan(SPEC.layout)
    batch = lm.layout.collate([lm.layout.text_to_image("a", picture(), rows=plan.rows())])
    blocks = lm(batch).blocks
    assert (int(blocks["semantic"].tokens), int(blocks["pixel"].tokens)) == (8, 16)
    tokens = batch.tokens.clone()
    tokens[batch.learned] = tokens[batch.learned].flip(0)
    assert torch.equal(lm.directed(replace(batch, tokens=tokens)), lm.directed(batch))  # no query reads its codes


def test_merged_losses_are_means_over_the_tokens_of_all():
    known = ((1.0, 3), (5.0, 1), (0.0, 0))
    parts = [{"text": BlockLoss(torch.tensor(mean), torch.tensor(count))} for mean, count in known]
    found = merged(parts)["text"]
    assert (float(found.mean), int(found.tokens)) == (2.0, 4)
    assert merged(parts[:1]) == parts[0]
    nothing = merged([parts[2], parts[2]])["text"]
    assert (float(nothing.mean), int(nothing.tokens)) == (0.0, 0)
