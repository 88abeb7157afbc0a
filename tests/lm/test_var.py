"""VAR: the quantizer's sums, who sees whom, what a condition decides, saving; answers by slow loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from smalti.lm.var import VAR, CosineAttention, scale_slices
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.blended import VARQuantizer
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.quantizers import FiniteScalarQuantizer, VectorQuantizer

SIDES, CODES, WIDTH = [1, 2, 4], 12, 16
SPEC = CodeSpec(CodeLayout("scales", tuple(SIDES)), (Codebook("pixel", CODES),))


def pyramid(**options):
    """A quantizer whose codes are far apart, in eval mode."""
    inner = GradientQuantizer(3, CODES)
    torch.nn.init.normal_(inner.table)
    return VARQuantizer(inner, SIDES, **options).eval()


def var(spec=SPEC, vocabulary=None, **options):
    return VAR.build(pyramid(), spec, vocabulary, "abc", **{"classes": 5, "width": WIDTH, "depth": 2} | options).eval()


def awake(model):
    """The model with weights that matter: those it starts with nearly leave the condition and the blocks out."""
    for name, weight in model.named_parameters():
        if not name.startswith("quantizer."):
            torch.nn.init.normal_(weight, std=0.3)
    return model


def drawn_ids(count=2):
    return torch.randint(CODES, (count, SPEC.positions, 1))


def test_attention_by_a_slow_loop():
    layer, states = CosineAttention(6, 2), torch.randn(6) + 0.05 * torch.randn(1, 3, 6)  # much alike: soft weights
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([3.0, 100.0]).log())
    found = layer(states, None, None)
    query, key, value = (part(states)[0].view(3, 2, 3) for part in (layer.query, layer.key, layer.value))
    mixed = torch.empty(3, 2, 3)
    for head, factor in enumerate((3.0, 100.0)):
        cosine = F.cosine_similarity(query[:, None, head], key[None, :, head], dim=-1)
        mixed[:, head] = (factor * cosine).softmax(-1) @ value[:, head]
    torch.testing.assert_close(found, layer.out(mixed.view(1, 3, 6)))
    assert layer.key.bias is None
    with torch.no_grad():
        layer.scale[1] = 9.0  # beyond the cap
    torch.testing.assert_close(layer(states, None, None), found)


@pytest.mark.parametrize("scale", range(len(SIDES)))
def test_a_scale_is_predicted_from_those_before_alone(scale):
    model, ids = awake(var()), drawn_ids(1)
    at = scale_slices(SIDES)[scale]
    other = ids.clone()
    other[:, at.stop - 1] = (ids[:, at.stop - 1] + 1) % CODES
    before, after = model(ids, [3]), model(other, [3])
    torch.testing.assert_close(after[:, : at.stop], before[:, : at.stop], rtol=0, atol=1e-6)
    changed = (after - before)[:, at.stop :].abs().amax(-1)
    assert bool((changed > 1e-4).all())


def test_every_code_depends_on_the_condition():
    model, ids = awake(var()), drawn_ids(1)
    for other in (1, None):
        assert float((model(ids, [3]) - model(ids, [other])).detach().abs().amax(-1).min()) > 1e-3


def test_rows_of_a_batch_do_not_mix():
    model, ids = awake(var()), drawn_ids(3)
    together = model(ids, [0, None, 4])
    for row, condition in enumerate((0, None, 4)):
        torch.testing.assert_close(model(ids[row : row + 1], [condition])[0], together[row])


def test_a_new_model_knows_nothing():
    model, ids = var(), drawn_ids()
    logits = model(ids, [0, 1])
    assert logits.shape == (2, 21, CODES)
    loss = model.loss(ids, [0, 1])
    assert loss.item() == pytest.approx(math.log(CODES), abs=0.01)
    torch.testing.assert_close(loss, -logits.log_softmax(-1).gather(-1, ids).mean())


def test_it_learns_pictures_by_their_class_and_leaves_the_quantizer_alone():
    model, ids = var().train(), drawn_ids()
    before = {name: weight.clone() for name, weight in model.quantizer.state_dict().items()}
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids, [0, 1])
        loss.backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in learned)
    assert loss.item() < 0.2
    assert model.loss(ids, [1, 0]).item() > 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.quantizer.state_dict().items())


def test_it_draws_for_sentences():
    words = Vocabulary.train(["a red circle", "a blue square"])
    model = awake(var(vocabulary=words, classes=0))
    ids = drawn_ids(1)
    assert not torch.allclose(model(ids, ["a red circle"]), model(ids, ["a blue circle"]))
    with pytest.raises(ValueError, match="this model draws what sentences say, got 3"):
        model(ids, [3])


@pytest.mark.parametrize(
    "inner", [GradientQuantizer(3, CODES), VectorQuantizer(3, CODES), FiniteScalarQuantizer(3, [4, 3])]
)
def test_saved_and_loaded(tmp_path, inner):
    quantizer, ids = VARQuantizer(inner, SIDES).eval(), drawn_ids()
    model = awake(VAR.build(quantizer, SPEC, None, "abc", classes=5, width=WIDTH, depth=2)).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = VAR.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(ids, [4, None]), model(ids, [4, None]))
    assert (loaded.spec, loaded.config.tokenizer_fingerprint) == (SPEC, "abc")
    assert not any(weight.requires_grad for weight in loaded.quantizer.parameters())


def test_the_quantizer_is_never_rounded(tmp_path):
    model, ids = awake(var()), drawn_ids()
    model.save_pretrained(tmp_path / "model")
    loaded = VAR.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.quantizer.inputs(ids), model.quantizer.inputs(ids))
    assert (loaded(ids, [0, 1]) - model(ids, [0, 1])).abs().mean().item() < 0.2


def test_codes_must_be_laid_out_as_scales():
    grid = CodeSpec(CodeLayout("grid", (4, 4)), SPEC.codebooks)
    with pytest.raises(ValueError, match=r"VAR needs codes laid out as scales, got a grid of \(4, 4\)"):
        var(grid)


@pytest.mark.parametrize(
    ("shape", "book", "told"),
    [
        ((1, 2), Codebook("pixel", CODES), r"sides \[1, 2\] and sizes \[12\]"),
        ((1, 2, 4), Codebook("pixel", 9), r"sides \[1, 2, 4\] and sizes \[9\]"),
        ((1, 2, 4), Codebook("pixel", CODES, 2), r"sides \[1, 2, 4\] and sizes \[12, 12\]"),
    ],
)
def test_codes_must_be_those_of_the_quantizer(shape, book, told):
    said = rf"one per position: sides \[1, 2, 4\] and sizes \[12\], got {told}; take both from one tokenizer"
    with pytest.raises(ValueError, match=said):
        var(CodeSpec(CodeLayout("scales", shape), (book,)))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide the width, got 3 heads and width 16; change either"):
        var(heads=3)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the model was built for 0 ids, its vocabulary has 12; load both"):
        VAR(var().config, Vocabulary(None, SPEC.codebooks))


@pytest.mark.parametrize("shape", [(2, 21), (2, 20, 1), (1, 21, 1)])
def test_ids_of_another_shape_are_refused(shape):
    said = r"ids must be \[2, 21, 1\] for 2 conditions, got .*; give the codes of as many pictures"
    with pytest.raises(ValueError, match=said):
        var()(torch.zeros(shape, dtype=torch.int64), [0, 1])
