"""Masked generation: its schedule, the published loop written out, batches that do not matter, and its folder."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch

from smalti.generation.enat import ENATPipeline, MaskedSampling, hidden_counts, model_sampling, write_masked
from smalti.lm.enat import ENAT
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

ONE = CodeSpec(CodeLayout("grid", (4, 4)), (Codebook("pixel", 12),))
THREE = CodeSpec(CodeLayout("grid", (3, 3)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))
SIZES = {"width": 16, "heads": 2, "encoder_blocks": 2, "decoder_blocks": 1}
GREEDY = {"sampling_temperature": 0.0, "mask_temperature": 0.0}


def model(spec: CodeSpec = ONE, **options) -> ENAT:
    """With every weight away from where training begins."""
    torch.manual_seed(0)
    found = ENAT.build(spec, "f00d", **{"classes": 5, **SIZES, **options}).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture
def passes(monkeypatch):
    """What each pass is asked to encode, and from what it goes on: ``(new, earlier)``."""
    kept = []
    forward = ENAT.forward

    def noted(self, ids, new, conditions, earlier=None):
        kept.append((new, earlier))
        return forward(self, ids, new, conditions, earlier)

    monkeypatch.setattr(ENAT, "forward", noted)
    return kept


def test_the_cosine_schedule():
    assert hidden_counts(256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert hidden_counts(16, 4) == [14, 11, 6, 0]
    assert hidden_counts(9, 1) == [0]


@pytest.mark.parametrize("spec", [ONE, THREE], ids=["one column", "three columns"])
@pytest.mark.parametrize("reuse", [True, False])
def test_codes_are_those_of_the_published_loop(spec, reuse):
    """Conditional and unconditional passes apart, over whole grids, one picture at a time."""
    net, sampling = model(spec), MaskedSampling(steps=5, reuse=reuse)
    found = write_masked(net, [3, 1], seeds(7, 8), sampling).ids
    positions, steps = spec.positions, sampling.steps
    for row, (number, seed) in enumerate([(3, 7), (1, 8)]):
        noise = torch.rand(steps, positions, spec.depth + 1, generator=seeds(seed)[0], dtype=torch.float64)
        given, nothing = net.conditions([number]), net.conditions([None])
        ids, hidden = torch.zeros(positions, spec.depth, dtype=torch.int64), torch.ones(positions, dtype=torch.bool)
        states, before, weight = (None, None), hidden, 0.0
        for step in range(steps):
            ratio = (step + 1) / steps
            shown = before & ~hidden if reuse else ~hidden
            new = shown.nonzero().T
            states = tuple(
                net(ids[None], new, condition, state if reuse else None)
                for condition, state in zip((given, nothing), states, strict=True)
            )
            before = hidden.clone()
            sure = torch.zeros(positions)
            for column, (led, free) in enumerate(zip(*(net.logits(s.features[0]) for s in states), strict=True)):
                likelihoods = (led + weight * (led - free)).log_softmax(-1)
                heated = (likelihoods / max(6 * (1 - ratio), 1e-3)).softmax(-1)
                for place in hidden.nonzero()[:, 0].tolist():
                    total, limit = heated[place].double().sum(), noise[step, place, column]
                    drawn = int((heated[place].double().cumsum(0) <= limit * total).sum())
                    ids[place, column] = drawn
                    sure[place] += likelihoods[place, drawn] / spec.depth
            gumbel = -(-noise[step, :, -1].log()).log()
            sure = torch.where(hidden, sure + 1.5 * (1 - ratio) * gumbel, torch.inf)
            hidden[:] = False
            hidden[sure.argsort()[: math.floor(positions * math.cos(ratio * math.pi / 2))]] = True
            weight = ratio * 2.5
        assert torch.equal(found[row], ids)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_a_picture_does_not_depend_on_its_batch(reuse, guidance):
    net, wanted = model(), [0, 1, 2, 3, 4, None, 1, 1]
    sampling = MaskedSampling(reuse=reuse, guidance=guidance)
    together = write_masked(net, wanted, seeds(*range(8)), sampling).ids
    for row, one in enumerate(wanted):
        assert torch.equal(write_masked(net, [one], seeds(row), sampling).ids[0], together[row])
    assert not torch.equal(together[6], together[7])


def test_every_position_is_written_once_and_encoded_once(passes):
    net, told = model(), []
    found = write_masked(net, [0, 1], seeds(0, 1), progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 8) for step in range(1, 9)]
    assert len(passes) == MaskedSampling().forwards == 8
    counts = [16, *hidden_counts(16, 8)]
    assert [new.shape for new, _ in passes] == [(2, 0)] + [(4, counts[at] - counts[at + 1]) for at in range(7)]
    encoded = torch.cat([new[:2] for new, _ in passes], dim=1)
    assert all(len(set(row)) == len(row) == 16 - counts[7] for row in encoded.tolist())  # the last are not read again
    assert 0 <= int(found.ids.min()) <= int(found.ids.max()) < 12


def test_codes_that_are_kept_stay_as_they_are(monkeypatch):
    seen = []
    forward = ENAT.forward

    def noted(self, ids, new, conditions, earlier=None):
        seen.append(ids.clone())
        return forward(self, ids, new, conditions, earlier)

    monkeypatch.setattr(ENAT, "forward", noted)
    seen.append(write_masked(model(), [0], seeds(0), MaskedSampling(guidance=0.0)).ids)
    for before, after in pairwise(seen):
        written = before >= 0
        assert torch.equal(after[written], before[written])
        assert int((after >= 0).sum()) > int(written.sum())


def test_without_reuse_every_pass_encodes_all_that_is_visible(passes):
    write_masked(model(), [0], seeds(0), MaskedSampling(reuse=False))
    visible = [16 - count for count in [16, *hidden_counts(16, 8)[:-1]]]
    assert [(new.shape[1], earlier) for new, earlier in passes] == [(count, None) for count in visible]


def test_without_guidance_nothing_is_asked_for_nothing(passes):
    write_masked(model(), [0, 1], seeds(0, 1), MaskedSampling(guidance=0.0))
    assert {len(new) for new, _ in passes} == {2}


def test_one_step_takes_the_likeliest_codes():
    net = model(THREE)
    found = write_masked(net, [2], seeds(0), MaskedSampling(steps=1)).ids[0]
    passed = net(torch.zeros(1, 9, 3, dtype=torch.int64), torch.empty(1, 0, dtype=torch.int64), net.conditions([2]))
    assert torch.equal(found, torch.stack([logits[0].argmax(-1) for logits in net.logits(passed.features)], -1))


def test_cold_settings_leave_nothing_to_chance():
    cold = MaskedSampling(**GREEDY)
    found = [write_masked(model(), [2], seeds(seed), cold).ids for seed in (0, 1)]
    assert torch.equal(*found)
    warm = [write_masked(model(), [2], seeds(seed)).ids for seed in (0, 1)]
    assert not torch.equal(*warm)


def test_the_models_own_settings_are_the_default():
    net = model(sampling={"steps": 2, **GREEDY})
    assert model_sampling(net) == MaskedSampling(steps=2, **GREEDY)
    assert torch.equal(write_masked(net, [1], seeds(0)).ids, write_masked(net, [1], seeds(1)).ids)


@pytest.mark.parametrize("count", [0, 17])
def test_steps_out_of_range_are_an_error(count):
    with pytest.raises(ValueError, match=f"of 16 positions takes 1 to 16 steps, got {count}; each should reveal"):
        hidden_counts(16, count)
    with pytest.raises(ValueError, match=rf"(steps >= 1, got 0; 8 is usual|1 to 16 steps, got {count})"):
        write_masked(model(), [0], seeds(0), MaskedSampling(steps=count))


@pytest.mark.parametrize("name", ["guidance", "sampling_temperature", "mask_temperature"])
def test_settings_out_of_range_are_an_error(name):
    with pytest.raises(ValueError, match=r">= 0, got .*-1.*; 2.5, 6 and 1.5 are usual"):
        MaskedSampling(**{name: -1.0})


def test_generators_and_conditions_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match=r"one generator per condition is needed .* got 1 generators for 2 conditions"):
        write_masked(model(), [0, 1], seeds(0))
    with pytest.raises(ValueError, match="got 0 generators for 0 conditions; make one generator for each"):
        write_masked(model(), [], [])


def test_settings_of_another_kind_of_model_are_an_error():
    with pytest.raises(TypeError, match="draws with MaskedSampling, got dict; pass one, or None for the model's own"):
        write_masked(model(), [0], seeds(0), {"steps": 2})


def tokenizer(seed: int = 0) -> VQTokenizer:
    torch.manual_seed(seed)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8).eval()


def pipeline(words: bool = True) -> ENATPipeline:
    codes, vocabulary = tokenizer(), Vocabulary.train(["a red circle", "a blue square"]) if words else None
    fingerprint, classes = codes.fingerprint(), 0 if words else 5
    net = ENAT.build(codes.spec, fingerprint, vocabulary, classes=classes, **SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ENATPipeline(codes, net)


def test_sentences_are_drawn():
    pipe = pipeline()
    prompts = ["a red circle", "a blue square", "a square"]
    images = pipe.generate(prompts, 3, progress=False)
    assert images.shape == (3, 3, 8, 8)
    torch.testing.assert_close(pipe.generate(prompts, 3, batch_size=2, progress=False), images)
    expected = pipe.tokenizer.decode(write_masked(pipe.model, prompts, seeds(3, 3, 3)))
    assert torch.equal(images, expected)
    few = pipe.generate(prompts, 3, MaskedSampling(steps=1), progress=False)
    assert not torch.equal(few, images)
    with pytest.raises(ValueError, match="got 'cirkle'"):
        pipe(["a red cirkle"], progress=False)


def test_classes_are_drawn_by_their_numbers():
    pipe = pipeline(words=False)
    expected = pipe.tokenizer.decode(write_masked(pipe.model, [4], seeds(1)))
    assert torch.equal(pipe.generate("4", 1, progress=False), expected)
    for prompt, told in (("5", "got '5'"), ("four", "got 'four'")):
        with pytest.raises(ValueError, match=r"draws classes in \[0, 5\), " + told):
            pipe.generate(prompt, progress=False)


def test_saved_and_loaded_is_the_same(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model", "model_index.json", "tokenizer"]
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert (index["_class_name"], index["model"][1]) == ("ENATPipeline", "ENAT")
    loaded = ENATPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.generate("a circle", 1, progress=False), pipe.generate("a circle", 1, progress=False))


@pytest.mark.parametrize("part", ["model_index.json", "tokenizer", "model"])
def test_a_missing_part_is_named(tmp_path, part):
    pipeline().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match=f"a model of masked generation but lacks {part}; check the path"):
        ENATPipeline.from_pretrained(tmp_path / "model")


def test_another_tokenizer_is_an_error():
    with pytest.raises(ValueError, match=r"was trained with tokenizer .* load the tokenizer it was trained with"):
        ENATPipeline(tokenizer(1), pipeline().model)


def test_an_untrained_one_has_the_same_shape_and_other_weights():
    pipe = pipeline()
    state = torch.get_rng_state()
    first, same, other = pipe.untrained(1), pipe.untrained(1), pipe.untrained(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.tokenizer is pipe.tokenizer
    assert first.model.config.to_dict() == pipe.model.config.to_dict()
    weights = [each.model.places.weight for each in (first, same, other, pipe)]
    assert [torch.equal(weights[0], weight) for weight in weights] == [True, True, False, False]
    assert not first.model.encoder[0].modulation.weight.any()
