"""Loss per vocabulary block, against a loop over single tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.lm.heads import FlatHead
from smalti.lm.layout import TEXT, SequenceLayout
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (1, 2)), BOOKS)
VOCABULARY = Vocabulary.train(["a red circle", "how many ? two"]).with_codebooks(BOOKS)
LAYOUT, HEAD = SequenceLayout(VOCABULARY, SPEC), FlatHead(VOCABULARY, SPEC)
IDS = torch.tensor([[4, 6, 0], [0, 1, 6]])
NAMES = ["semantic", "pixel", "pixel"] * 2  #: of the slots


def batch():
    read = LAYOUT.image_to_text(IDS, "a circle", [("how many", "two")])
    return LAYOUT.collate([LAYOUT.text_to_image("a red circle", IDS), read])


def test_blocks_of_slots():
    end = VOCABULARY.text_size + 8
    assert HEAD.block(TEXT) == range(end)
    blocks = [HEAD.block(slot) for slot in range(6)]
    assert blocks == [range(end, end + 5), range(end + 5, end + 12), range(end + 5, end + 12)] * 2


def test_logits_are_a_part_of_all_logits():
    hidden, weight = torch.randn(2, 3, 8), torch.randn(VOCABULARY.size, 8)
    block = HEAD.block(1)
    every = hidden @ weight.T
    torch.testing.assert_close(HEAD.logits(hidden, weight, block), every[..., block.start : block.stop])


def test_losses_equal_a_loop_over_tokens():
    found = batch()
    hidden, weight = torch.randn(*found.tokens.shape, 8), torch.randn(VOCABULARY.size, 8)
    expected: dict[str, list[torch.Tensor]] = {"text": [], "semantic": [], "pixel": []}
    for row in range(2):
        for place in range(1, found.tokens.shape[1]):
            if not found.learned[row, place]:
                continue
            slot = int(found.slots[row, place])
            name = "text" if slot == TEXT else NAMES[slot]
            allowed = torch.full((VOCABULARY.size,), -torch.inf)
            ids = range(VOCABULARY.text_size + 8) if name == "text" else VOCABULARY.block(name)
            allowed[list(ids)] = 0
            logits = weight @ hidden[row, place - 1] + allowed
            expected[name].append(-logits.log_softmax(0)[found.tokens[row, place]])
    losses = HEAD.losses(hidden, weight, found)
    assert list(losses) == list(expected)
    assert {name: int(loss.tokens) for name, loss in losses.items()} == {"text": 5, "semantic": 2, "pixel": 4}
    for name, values in expected.items():
        torch.testing.assert_close(losses[name].mean, torch.stack(values).mean())


def test_a_block_without_tokens_costs_nothing():
    only_text = LAYOUT.collate([LAYOUT.image_to_text(IDS, "a circle")])
    hidden = torch.randn(*only_text.tokens.shape, 8, requires_grad=True)
    losses = HEAD.losses(hidden, torch.randn(VOCABULARY.size, 8), only_text)
    assert losses["pixel"].mean.item() == 0
    assert int(losses["pixel"].tokens) == 0
    losses["pixel"].mean.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_states_that_predict_nothing_learned_get_no_gradient():
    found = batch()
    hidden = torch.randn(*found.tokens.shape, 8, requires_grad=True)
    losses = HEAD.losses(hidden, torch.randn(VOCABULARY.size, 8), found)
    sum(loss.mean for loss in losses.values()).backward()
    predicts = F.pad(found.learned[:, 1:], (0, 1))
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, predicts)


def test_half_precision_states_give_float32_losses():
    found = batch()
    hidden, weight = torch.randn(*found.tokens.shape, 8), torch.randn(VOCABULARY.size, 8)
    exact = HEAD.losses(hidden, weight, found)["pixel"].mean
    half = HEAD.losses(hidden.bfloat16(), weight.bfloat16(), found)["pixel"].mean
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=0.05)
