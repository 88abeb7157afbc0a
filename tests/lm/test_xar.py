"""xAR's network: what entities see, that a memory changes nothing, its loss, its sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.lm.vocabulary import Vocabulary
from smalti.lm.xar import XAR
from smalti.lm.xar_layers import GatedFeedForward, TimeEmbedding
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

SIZES = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "channels": 3, "grid": (4, 4)}
KINDS = [{"kind": "cell", "side": 2}, {"kind": "scale"}, {"kind": "token"}, {"kind": "image"}]


def model(**changes) -> XAR:
    """A small model of 5 classes, all of whose weights are random."""
    torch.manual_seed(3)
    found = XAR.build(Vocabulary(), "abc", **SIZES | {"entity": KINDS[0], "classes": 5} | changes).eval()
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(std=0.2)
    return found


def test_a_new_model_gives_nothing_and_its_loss_is_that_of_noise_and_latents():
    fresh = XAR.build(Vocabulary(), **SIZES | {"entity": KINDS[0], "classes": 5})
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 16, 3)
    flow = fresh(latents, [1, None], torch.rand(2, 4), noise)
    assert not flow.velocity.any()
    torch.testing.assert_close(flow.loss, (noise - fresh.entities.cut(latents)).square().mean())
    flow.loss.backward()
    assert fresh.leave.weight.grad.any()


def test_the_loss_by_hand():
    found = model()
    latents, noise, times = torch.randn(2, 3, 4, 4), torch.randn(2, 16, 3), torch.rand(2, 4)
    clean = found.entities.cut(latents)
    each = times.repeat_interleave(4, dim=1)[..., None]  # cells of four tokens
    velocity = found.velocity((1 - each) * clean + each * noise, times, found.condition([1, None]))
    flow = found(latents, [1, None], times, noise)
    torch.testing.assert_close(flow.velocity, velocity)
    torch.testing.assert_close(flow.loss, F.mse_loss(velocity, noise - clean))


def test_times_and_noise_are_drawn_for_every_entity():
    found, seen = model(), []
    found.velocity = lambda tokens, times, condition: seen.append((tokens, times)) or tokens  # of clean zeros: t noise
    found(torch.zeros(64, 3, 4, 4), [None] * 64)
    tokens, times = seen[0]
    assert times.shape == (64, 4)
    assert len(times.unique()) == 256
    logits = times.logit()
    assert abs(float(logits.mean())) < 0.25
    assert abs(float(logits.std()) - 1) < 0.15
    noise = tokens / times.repeat_interleave(4, dim=1)[..., None]
    assert abs(float(noise.std()) - 1) < 0.05


@pytest.mark.parametrize("entity", KINDS, ids=lambda entity: entity["kind"])
def test_an_entity_sees_itself_and_those_before(entity):
    found = model(entity=entity)
    owners, count = found.entities.owners(), found.entities.count
    tokens, times = torch.randn(1, len(owners), 3), torch.rand(1, count)
    condition = found.condition([2])
    before = found.velocity(tokens, times, condition)
    for changed in {0, count // 2, count - 1}:
        other = tokens.clone()
        other[:, owners == changed] += 1
        moved = (found.velocity(other, times, condition) - before).abs().amax((0, 2)) > 1e-6
        assert torch.equal(moved, owners >= changed)


@pytest.mark.parametrize("entity", KINDS, ids=lambda entity: entity["kind"])
def test_a_memory_gives_what_a_whole_pass_gives(entity):
    found = model(entity=entity)
    cut = found.entities
    tokens, times = torch.randn(2, cut.starts[-1], 3), torch.rand(2, cut.count)
    condition, memory = found.condition([1, None]), found.memory(3)
    whole = found.velocity(tokens, times, condition)
    for first in range(cut.count):
        part = slice(cut.starts[first], cut.starts[first + 1])
        noisy = found.velocity(tokens[:, part] + 1, times[:, first : first + 1], condition, first, memory)
        assert not torch.allclose(noisy, whole[:, part])
        if first + 1 < cut.count:  # once more with its lasting values, beside the next
            both = slice(part.start, cut.starts[first + 2])
            found.velocity(tokens[:, both], times[:, first : first + 2], condition, first, memory)
        last = found.velocity(tokens[:, part], times[:, first : first + 1], condition, first, memory)
        torch.testing.assert_close(last, whole[:, part], atol=1e-4, rtol=1e-4)


def test_time_is_read_in_whole_thousandths():
    embedding = TimeEmbedding(8, waves=4)
    found = embedding(torch.tensor([0.5001, 0.5009, 0.501]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    waves = torch.tensor([500.0, 5.0])  # frequencies 1 and 1 / 100
    by_hand = embedding.second(F.silu(embedding.first(torch.cat([waves.cos(), waves.sin()]))))
    torch.testing.assert_close(found[0], by_hand, atol=1e-4, rtol=1e-4)


def test_the_feed_forward_layer_is_gated_with_gelu():
    layer = GatedFeedForward(48, 0.0)
    assert layer.gate.out_features == 128
    given = torch.randn(2, 48)
    by_hand = layer.leave(F.gelu(layer.gate(given)) * layer.value(given))
    torch.testing.assert_close(layer(given), by_hand)


@pytest.mark.parametrize(("width", "heads", "layers", "millions"), [(768, 12, 8, 172.6), (1024, 16, 16, 608.4)])
def test_sizes_are_the_published_ones(width, heads, layers, millions):
    sizes = {"width": width, "heads": heads, "encoder_layers": layers, "decoder_layers": layers}
    with torch.device("meta"):
        found = XAR.build(Vocabulary(), classes=1000, **sizes)
    assert round(sum(weight.numel() for weight in found.parameters()) / 1e6, 1) == millions


def test_dropout_is_for_training_alone():
    found = model(dropout=0.5)
    arguments = torch.randn(1, 16, 3), torch.rand(1, 4), found.condition([1])
    assert torch.equal(found.velocity(*arguments), found.velocity(*arguments))
    found.train()
    assert not torch.equal(found.velocity(*arguments), found.velocity(*arguments))


def test_a_saved_model_is_read_as_it_was(tmp_path):
    words = Vocabulary.train(["a red circle", "a blue square"])
    saved = XAR.build(words, "abc", **SIZES | {"entity": {"kind": "scale"}, "sampling": {"steps": 3}}).eval()
    torch.nn.init.normal_(saved.leave.weight)
    saved.save_pretrained(tmp_path / "model")
    read = XAR.from_pretrained(tmp_path / "model")
    assert (read.entities, read.config.sampling) == (saved.entities, {"steps": 3})
    latents, wanted = torch.randn(2, 3, 4, 4), ["a red circle", None]
    times, noise = torch.rand(2, 3), torch.randn(2, 21, 3)
    assert torch.equal(read(latents, wanted, times, noise).velocity, saved(latents, wanted, times, noise).velocity)


def test_weights_of_other_entities_are_not_loaded(tmp_path):
    model().save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"kind": "cell"', '"kind": "scale"'))
    with pytest.raises(ValueError, match=r"must match its configuration key by key, got .*positions"):
        XAR.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 20}, "every head of xAR needs a multiple of 4 channels, got width 20 for 2 heads; .* multiple of 8"),
        ({"heads": 0}, "heads of xAR must be >= 1, got 0; the published B has 12"),
        ({"decoder_layers": 0}, "decoder_layers of xAR must be >= 1, got 0; the published B has 8"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0; 0.1 is usual"),
        ({"entity": {"kind": "cell", "side": 3}}, "a cell of 3x3 tokens must be smaller than the 4x4 grid and divide"),
        ({"classes": 0}, "a model draws for classes or for words, got 0 classes and no text"),
    ],
)
def test_what_cannot_be_built(changes, said):
    with pytest.raises(ValueError, match=said):
        model(**changes)


def test_another_vocabulary():
    found = model()
    with pytest.raises(ValueError, match=r"the model was built for \d+ ids, its vocabulary has \d+; load both"):
        XAR(found.config, Vocabulary.train(["a red circle"]))


def test_other_latents():
    found = model()
    found.check_latents("abc", 3, (4, 4))
    with pytest.raises(
        ValueError, match="draws latents of 3 channels and 4x4 tokens, got a latent space of 4 channels"
    ):
        found.check_latents("abc", 4, (4, 4))
    with pytest.raises(ValueError, match="was trained on the latents of abc, got those of def; take the latent space"):
        found.check_latents("def", 3, (4, 4))
    found.config.tokenizer_fingerprint = ""
    with pytest.raises(ValueError, match="does not say which latent space it was trained on, got def; if that is"):
        found.check_latents("def", 3, (4, 4))


def test_codes_are_not_its_matter():
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8)
    with pytest.raises(ValueError, match="a model of latents knows no codes, got a VQTokenizer; give check_latents"):
        model().check_tokenizer(tokenizer)
