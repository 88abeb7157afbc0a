"""Loss per vocabulary block, against a loop over single tokens; the depth head's order of dependence."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.lm.heads import CodeHead, DepthHead, FlatHead, code_head, default_head
from smalti.lm.layout import SequenceLayout
from smalti.lm.losses import BlockLoss, block_losses, merged
from smalti.lm.sequences import TEXT
from smalti.lm.tables import Table
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (1, 2)), BOOKS)
VOCABULARY = Vocabulary.train(["a red circle", "how many ? two"]).with_codebooks(BOOKS)
IDS = torch.tensor([[4, 6, 0], [0, 1, 6]])
NAMES = ["semantic", "pixel", "pixel"]  #: of the columns
TABLE, WEIGHT = torch.randn(2, VOCABULARY.size, 8, generator=torch.Generator().manual_seed(0))
KINDS = ["flat", "parallel", "depth", "apart"]
INPUTS, OUTPUTS = Table(TABLE), Table(WEIGHT)


def head(kind) -> CodeHead:
    torch.manual_seed(1)
    return code_head({"kind": kind}, VOCABULARY, SPEC, 8)


def batch(per_step):
    layout = SequenceLayout(VOCABULARY, SPEC, per_step)
    read = layout.image_to_text(IDS, "a circle", [("how many", "two")])
    return layout.collate([layout.text_to_image("a red circle", IDS), read])


def test_blocks_of_slots():
    end = VOCABULARY.text_size + 8
    semantic, pixel = range(end, end + 5), range(end + 5, end + 12)
    found = {kind: [[block.ids for block in head(kind).at(slot)] for slot in range(6)] for kind in KINDS}
    assert found["flat"] == [[semantic], [pixel], [pixel]] * 2
    assert found["parallel"][:2] == found["depth"][:2] == found["apart"][:2] == [[semantic, pixel, pixel]] * 2
    assert all([block.ids for block in head(kind).at(TEXT)] == [range(end)] for kind in KINDS)


def test_logits_are_a_part_of_all_logits():
    hidden = torch.randn(2, 3, 8)
    every = hidden @ WEIGHT.T
    ids = head("flat").at(1)[0].ids
    torch.testing.assert_close(head("flat").column_logits(hidden, OUTPUTS, 1), every[..., ids.start : ids.stop])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_loop_over_tokens(kind):
    codes = head(kind)
    found = batch(codes.per_step)
    hidden = torch.randn(*found.slots.shape, 8)
    expected: dict[str, list[torch.Tensor]] = {"text": [], "semantic": [], "pixel": []}
    for row in range(2):
        for place in range(1, found.slots.shape[1]):
            if not found.learned[row, place]:
                continue
            slot = int(found.slots[row, place])
            state, before = hidden[row, place - 1], torch.empty(1, 0, 8)
            for column in range(1 if slot == TEXT else codes.per_step):
                name = "text" if slot == TEXT else NAMES[(slot * codes.per_step + column) % 3]
                ids = range(VOCABULARY.text_size + 8) if name == "text" else VOCABULARY.block(name)
                reads = state if slot == TEXT else codes(state[None], before)[0, -1]
                rows = WEIGHT[ids.start : ids.stop]
                if slot != TEXT and (own := codes.classifier((slot * codes.per_step + column) % 3)) is not None:
                    rows = own
                token = found.tokens[row, place, column]
                expected[name].append(-(rows @ reads).log_softmax(0)[token - ids.start])
                before = torch.cat([before, TABLE[token][None, None]], 1)
    losses = block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, found)
    assert list(losses) == list(expected)
    assert {name: int(loss.tokens) for name, loss in losses.items()} == {"text": 5, "semantic": 2, "pixel": 4}
    for name, values in expected.items():
        torch.testing.assert_close(losses[name].mean, torch.stack(values).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_without_tokens_costs_nothing(kind):
    codes = head(kind)
    layout = SequenceLayout(VOCABULARY, SPEC, codes.per_step)
    only_text = layout.collate([layout.image_to_text(IDS, "a circle")])
    hidden = torch.randn(*only_text.slots.shape, 8, requires_grad=True)
    losses = block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, only_text)
    assert losses["pixel"].mean.item() == 0
    assert int(losses["pixel"].tokens) == 0
    losses["pixel"].mean.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_attention_is_never_given_no_rows_at_all():  # on CUDA it then returns nothing
    codes, seen = head("depth"), []
    for layer in codes.layers.layers:
        layer.self_attn.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    found = codes(torch.empty(0, 8), torch.empty(0, 2, 8))
    assert found.shape == (0, 3, 8)
    assert seen == [1]
    found.sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in codes.layers.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_predict_nothing_learned_get_no_gradient(kind):
    codes = head(kind)
    found = batch(codes.per_step)
    hidden = torch.randn(*found.slots.shape, 8, requires_grad=True)
    sum(loss.mean for loss in block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, found).values()).backward()
    predicts = F.pad(found.learned[:, 1:], (0, 1))
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, predicts)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_states_give_float32_losses(kind):
    codes = head(kind)
    found = batch(codes.per_step)
    hidden = torch.randn(*found.slots.shape, 8)
    exact = block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, found)["pixel"].mean
    heads = [(codes.bfloat16(), Table(WEIGHT.bfloat16()))]
    half = block_losses(heads, hidden.bfloat16()[..., None, :], Table(TABLE.bfloat16()), found)["pixel"].mean
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=0.05)


def test_a_column_depends_on_the_state_and_the_columns_before_only():
    codes = code_head({"kind": "depth", "inputs": "sum"}, VOCABULARY, SPEC, 8)
    assert isinstance(codes, DepthHead)
    hidden, before = torch.randn(2, 8), torch.randn(2, 2, 8)
    zeros = torch.zeros_like(before)
    zeros[:, 1] = before.sum(1)
    zeros[:, 0] = -zeros[:, 1]  # the last column reads a sum of zero
    torch.testing.assert_close(codes(hidden, zeros)[:, 0], codes(hidden, before)[:, 0])
    nothing = codes.enter_code(zeros.cumsum(1))[:, 1]
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-5, rtol=0)
    codes = head("depth")
    hidden, before = torch.randn(2, 8), torch.randn(2, 2, 8)
    whole = codes(hidden, before)
    for length in range(3):
        torch.testing.assert_close(codes(hidden, before[:, :length]), whole[:, : length + 1])
    later = before.clone()
    later[:, 1] += 1
    torch.testing.assert_close(codes(hidden, later)[:, :2], whole[:, :2])
    assert not torch.allclose(codes(hidden, later)[:, 2], whole[:, 2])
    assert not torch.allclose(codes(hidden + 1, before)[:, 0], whole[:, 0])


def test_losses_of_parts_are_those_of_the_whole():
    codes = head("flat")
    found = batch(1)
    hidden = torch.randn(*found.slots.shape, 8)
    rows = [type(found)(found.tokens[i : i + 1], found.slots[i : i + 1], found.learned[i : i + 1]) for i in range(2)]
    parts = [block_losses([(codes, OUTPUTS)], hidden[i : i + 1][..., None, :], INPUTS, rows[i]) for i in range(2)]
    for name, whole in block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, found).items():
        torch.testing.assert_close(merged(parts)[name].mean, whole.mean)
        assert int(merged(parts)[name].tokens) == int(whole.tokens)
    nothing = {"text": BlockLoss(torch.tensor(0.0), torch.tensor(0))}
    assert float(merged([nothing, nothing])["text"].mean) == 0


def test_heads_by_name():
    assert isinstance(code_head({}, VOCABULARY, SPEC, 8), FlatHead)
    found = code_head({"kind": "depth", "width": 16, "layers": 2, "heads": 2}, VOCABULARY, SPEC, 8)
    assert isinstance(found, DepthHead)
    assert found(torch.zeros(3, 8), torch.zeros(3, 2, 8)).shape == (3, 3, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dept"}, "the code head must be one of flat, parallel, depth, apart, got 'dept'; choose one"),
        ({"layers": 2}, "a flat head takes no options, got layers; correct or remove them"),
        ({"kind": "depth", "layer": 2}, "depth head takes width, layers, heads, classifiers, inputs, got layer; corr"),
        ({"kind": "depth", "heads": 3}, "width must be a multiple of its heads, got 8 and 3"),
    ],
)
def test_unknown_heads_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        code_head(fields, VOCABULARY, SPEC, 8)


def test_the_head_follows_from_the_codes():
    assert default_head(SPEC) == {"kind": "depth"}
    assert default_head(CodeSpec(SPEC.layout, BOOKS[:1])) == {"kind": "flat"}


def test_parallel_columns_know_nothing_of_each_other():
    codes = head("parallel")
    hidden, before = torch.randn(2, 8), torch.randn(2, 2, 8)
    assert torch.equal(codes(hidden, before), codes(hidden, before + 1))
    logits = [codes.column_logits(codes(hidden, before)[:, column], OUTPUTS, column) for column in (1, 2)]
    assert logits[0].shape == logits[1].shape == (2, 7)
    assert not torch.allclose(*logits)  # one codebook, a classifier for each depth


def test_codebooks_apart_know_nothing_of_each_other():
    codes = head("apart")
    hidden, before = torch.randn(2, 8), torch.randn(2, 2, 8)
    whole = codes(hidden, before)
    assert whole.shape == (2, 3, 8)
    for length in range(3):
        torch.testing.assert_close(codes(hidden, before[:, :length]), whole[:, : length + 1])
    other = before.clone()
    other[:, 0] += 1  # the semantic code
    assert torch.equal(codes(hidden, other), whole)
    other[:, 1] += 1  # the first pixel code
    assert torch.equal(codes(hidden, other)[:, :2], whole[:, :2])
    assert not torch.allclose(codes(hidden, other)[:, 2], whole[:, 2])


@pytest.mark.parametrize("kind", ["flat", "depth"])
def test_dynamic_codes_compete_with_the_end_of_the_image(kind):
    spec = CodeSpec(CodeLayout("sequence", (4,)), BOOKS, dynamic=True)
    codes = code_head({"kind": kind}, VOCABULARY, spec, 8)
    layout = SequenceLayout(VOCABULARY, spec, codes.per_step)
    found = layout.collate([layout.text_to_image("a circle", torch.cat([IDS, torch.full((2, 3), -1)]))])
    hidden = torch.randn(*found.slots.shape, 8)
    losses = block_losses([(codes, OUTPUTS)], hidden[..., None, :], INPUTS, found)
    assert {name: int(loss.tokens) for name, loss in losses.items()} == {"text": 0, "semantic": 3, "pixel": 4}
    end, block = VOCABULARY.special("</image>"), VOCABULARY.block("semantic")
    expected, first = [], codes.per_step  # first columns stand every so many steps
    places = [4, 4 + 3 // first, 4 + 6 // first]
    for place in places:
        state = codes(hidden[0, place - 1 : place], torch.empty(1, 0, 8))[0, 0]
        rows = torch.cat([WEIGHT[block.start : block.stop], WEIGHT[end][None]])
        token = int(found.tokens[0, place, 0])
        expected.append(-(rows @ state).log_softmax(0)[5 if token == end else token - block.start])
    torch.testing.assert_close(losses["semantic"].mean, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    (first_block,) = codes.at(0)[:1]
    assert first_block.tokens(torch.tensor([0, 4, 5])).tolist() == [block.start, block.start + 4, end]
    assert first_block.choices(torch.tensor([block.start, end])).tolist() == [0, 5]


@pytest.mark.parametrize(
    "fields", [{"kind": "parallel"}, {"kind": "apart"}, {"kind": "depth", "classifiers": "column"}]
)
def test_heads_that_cannot_end_an_image(fields):
    spec = CodeSpec(CodeLayout("sequence", (4,)), BOOKS, dynamic=True)
    with pytest.raises(ValueError, match=r"cannot end an image, which codes of dynamic length need; use a flat or dep"):
        code_head(fields, VOCABULARY, spec, 8)
