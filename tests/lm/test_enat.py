"""ENAT's network: who sees whom, what is kept from pass to pass, its sizes, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from smalti.lm.enat import ENAT, ContextBlock, Pass
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

GRID = CodeSpec(CodeLayout("grid", (2, 3)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))
SIZES = {"width": 16, "heads": 2, "encoder_blocks": 2, "decoder_blocks": 2}
IMAGENET = CodeSpec(CodeLayout("grid", (16, 16)), (Codebook("pixel", 1024),))


def model(spec: CodeSpec = GRID, **options) -> ENAT:
    """With every weight away from where training begins."""
    torch.manual_seed(0)
    found = ENAT.build(spec, "f00d", **{"classes": 3, **SIZES, **options}).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def drawn(spec: CodeSpec = GRID, count: int = 2) -> torch.Tensor:
    return torch.stack([torch.randint(book.size, (count, spec.positions)) for book in spec.columns], -1)


def places(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def moved(first: torch.Tensor, second: torch.Tensor) -> list[bool]:
    """Per position, whether features of the first picture differ."""
    return ((first - second)[0].abs().amax(-1) > 1e-5).tolist()


@pytest.mark.parametrize(
    ("width", "heads", "blocks", "here", "reference"),
    [(366, 6, (15, 1), 49.31, 50.38), (768, 8, (15, 1), 214.92, 219.65), (1024, 16, (22, 2), 565.90, 574.30)],
    ids=["S", "B", "L"],
)
def test_sizes_are_the_published_ones_but_for_what_is_never_used(width, heads, blocks, here, reference):
    with torch.device("meta"):
        sizes = {"encoder_blocks": blocks[0], "decoder_blocks": blocks[1]}
        found = ENAT.build(IMAGENET, "", classes=1000, width=width, heads=heads, **sizes)
    count = sum(parameter.numel() for parameter in found.parameters())
    unused = 8 * width * width + 5 * width + 1  # a feed-forward layer, and the mask's own bias
    assert round(count / 1e6, 2) == here
    assert round((count + unused) / 1e6, 2) == reference


def test_a_block_is_attention_over_its_context_and_its_own_tokens():
    block = ContextBlock(8, 2)
    torch.nn.init.normal_(block.modulation.weight, std=0.3)
    tokens, context, given = torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.randn(2, 8)

    def normed(values, shift, scale):
        return F.layer_norm(values, (8,), eps=1e-6) * (1 + scale) + shift

    expected = torch.empty_like(tokens)
    for row in range(2):
        parts = block.modulation(F.silu(given[row])).view(8, 8)  # in the order of the released weights
        own, seen = normed(tokens[row], parts[0], parts[1]), normed(context[row], parts[2], parts[3])
        key, value = torch.cat([block.context(seen), block.own(own)]).split(8, -1)
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (block.query(own)[:, head] @ key[:, head].T / 2).softmax(-1)
            mixed.append(weights @ value[:, head])
        middle = tokens[row] + parts[4] * block.out(torch.cat(mixed, -1))
        expected[row] = middle + parts[7] * block.mlp(normed(middle, parts[5], parts[6]))
    torch.testing.assert_close(block(tokens, given, context), expected)
    torch.testing.assert_close(block(tokens, given, context[:, :0]), block(tokens, given))


def test_a_new_model_passes_embeddings_through():
    torch.manual_seed(0)
    found = ENAT.build(GRID, "", classes=3, **SIZES).eval()
    ids, shown = drawn(), places([1, 4], [5, 0])
    passed = found(ids, shown, found.conditions([0, 1]))
    for row in range(2):
        for place in range(6):
            visible = place in shown[row].tolist()
            rows = [t.weight[ids[row, place, c] if visible else -1] for c, t in enumerate(found.words)]
            embedded = found.entry(torch.stack([*rows, found.places.weight[place]]).sum(0))
            torch.testing.assert_close(passed.features[row, place], embedded)


def test_hidden_codes_are_not_read_and_visible_positions_see_one_another_alone():
    net = model()
    ids, shown, given = drawn(), places([1, 4], [5, 0]), net.conditions([0, 1])
    passed = net(ids, shown, given)
    assert passed.hidden.tolist() == [[0, 2, 3, 5], [1, 2, 3, 4]]
    other = ids.clone()
    other[0, [0, 2, 3, 5]] = (other[0, [0, 2, 3, 5]] + 1) % 5
    assert torch.equal(net(other, shown, given).features, passed.features)
    other[0, 4, 2] = (other[0, 4, 2] + 1) % 7
    assert moved(net(other, shown, given).features, passed.features) == [True] * 6
    with torch.no_grad():
        net.words[0].weight[-1] += torch.randn(16)  # of hidden positions
    assert moved(net(ids, shown, given).features, passed.features) == [True, False, True, True, False, True]


def test_neither_the_order_of_positions_nor_the_batch_matters():
    net = model()
    ids, shown, given = drawn(), places([1, 4, 3], [5, 0, 2]), net.conditions([0, None])
    passed = net(ids, shown, given)
    torch.testing.assert_close(net(ids, shown.flip(1), given).features, passed.features)
    torch.testing.assert_close(net(ids[1:], shown[1:], given[1:]).features, passed.features[1:])
    assert moved(net(ids, shown, net.conditions([2, None])).features, passed.features) == [True] * 6


def test_what_was_found_is_kept_and_only_new_positions_are_encoded():
    net = model()
    ids, given = drawn(), net.conditions([0, 1])
    before = net(ids, places([1, 4], [5, 0]), given)
    after = net(ids, places([2], [3]), given, before)
    assert after.visible.tolist() == [[1, 4, 2], [5, 0, 3]]
    for row, old in enumerate([[1, 4], [5, 0]]):
        torch.testing.assert_close(after.features[row, old], net.renewal(before.features[row, old]))
    other = ids.clone()
    other[0, [1, 4]] = (other[0, [1, 4]] + 1) % 5
    assert torch.equal(net(other, places([2], [3]), given, before).features, after.features)
    changed = Pass(before.features + 1e-1 * torch.randn_like(before.features), before.visible, before.hidden)
    assert moved(net(ids, places([2], [3]), given, changed).features, after.features) == [True] * 6


def test_a_pass_that_saw_nothing_leaves_nothing_to_keep():
    net = model()
    ids, given = drawn(), net.conditions([0, 1])
    nothing = net(ids, places([], []), given)
    assert nothing.hidden.tolist() == [[*range(6)]] * 2
    shown = places([2, 3], [3, 1])
    assert torch.equal(net(ids, shown, given, nothing).features, net(ids, shown, given).features)


def test_a_step_without_new_positions_and_one_without_hidden_ones_are_legal():
    net = model()
    ids, given = drawn(), net.conditions([0, 1])
    before = net(ids, places([1, 4], [5, 0]), given)
    assert net(ids, places([], []), given, before).features.shape == (2, 6, 16)
    whole = net(ids, places([*range(6)], [*range(6)]), given)
    assert whole.of_hidden().shape == (2, 0, 16)


def test_no_gradient_goes_through_the_earlier_pass():
    net = model()
    ids, given = drawn(), net.conditions([0, 1])
    before = net(ids, places([1, 4], [5, 0]), given)
    features = before.features.detach().requires_grad_()
    found = net(ids, places([2], [3]), given, Pass(features, before.visible, before.hidden))
    found.features.sum().backward()
    assert features.grad is None
    assert net.renewal.mlp[0].weight.grad.any()


def test_a_pass_leaves_nothing_on_the_model():
    net = model()
    before = {name: id(value) for name, value in vars(net).items()}
    net(drawn(), places([1], [5]), net.conditions([0, 1]))
    assert {name: id(value) for name, value in vars(net).items()} == before


def test_classifiers_are_the_rows_of_the_codes_without_gradient():
    net = model()
    features = torch.randn(2, 4, 16)
    logits = net.logits(features)
    assert [found.shape[-1] for found in logits] == [5, 7, 7]
    states = net.head(net.norm(features))
    torch.testing.assert_close(logits[2], states @ net.words[2].weight[:7].T + net.biases[2])
    sum(found.sum() for found in logits).backward()
    assert all(table.weight.grad is None for table in net.words)
    assert net.biases[2].grad.any()


def test_a_grid_may_have_frames():
    spec = CodeSpec(CodeLayout("grid", (2, 2, 2)), (Codebook("pixel", 4),))
    net = model(spec)
    assert net(drawn(spec), places([7, 1], [0, 2]), net.conditions([0, None])).features.shape == (2, 8, 16)


@pytest.mark.parametrize("words", [False, True], ids=["classes", "sentences"])
def test_saved_and_loaded_is_the_same(tmp_path, words):
    vocabulary = Vocabulary.train(["a red circle"]) if words else None
    net = model(vocabulary=vocabulary, classes=0 if words else 3, sampling={"steps": 3})
    net.save_pretrained(tmp_path)
    loaded = ENAT.from_pretrained(tmp_path)
    assert (loaded.spec, loaded.config.sampling, loaded.training) == (GRID, {"steps": 3}, False)
    wanted = ["a circle", None] if words else [2, None]
    ids, shown = drawn(), places([1, 4], [5, 0])
    assert torch.equal(
        loaded(ids, shown, loaded.conditions(wanted)).features, net(ids, shown, net.conditions(wanted)).features
    )


def test_weights_that_do_not_match_are_named(tmp_path):
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["renewal.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"key by key, got missing_keys renewal\.norm\.weight"):
        ENAT.from_pretrained(tmp_path)


def test_another_vocabulary_is_an_error(tmp_path):
    model().save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"text_size": 4}))
    with pytest.raises(ValueError, match="built for 4 text pieces, its vocabulary has 0; load both from the same"):
        ENAT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("layout", "dynamic", "told"),
    [
        (CodeLayout("sequence", (6,)), False, r"a sequence of \(6,\); legal here are tokenizers with a grid"),
        (CodeLayout("set", (6,)), False, r"a set of \(6,\); legal"),
        (CodeLayout("scales", (1, 2)), False, r"a scales of \(1, 2\); legal"),
        (CodeLayout("grid", (2, 3)), True, r"a grid of \(2, 3\) of a size that varies; legal"),
    ],
)
def test_codes_that_are_no_grid_of_a_fixed_size_are_an_error(layout, dynamic, told):
    with pytest.raises(ValueError, match="masked generation needs a grid of codes of a fixed size, got " + told):
        model(CodeSpec(layout, (Codebook("pixel", 5),), dynamic))


def test_sizes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="heads must divide the width, got 3 heads and width 16; change either"):
        model(heads=3)
    with pytest.raises(ValueError, match="at least 1 block to encode and 1 to decode, got 2 and 0; 15 and 1 are"):
        model(decoder_blocks=0)
