"""Drawing ids against cases computed by hand, and cached decoding against passes over whole sequences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from smalti.generation.sampler import Sampling, draw, model_sampling, sample_codes
from smalti.lm.model import SharedLM
from smalti.lm.sequences import Batch, Rows
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (2, 2)), BOOKS)
CAPTIONS = ["a red circle", "a", "how many red circle ?"]
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
BACKBONES = {
    "llama": {"model_type": "llama", **WIDTHS, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


def model(kind="llama", spec=SPEC, head="flat") -> SharedLM:
    vocabulary = Vocabulary.train(["a red circle", "a blue square", "how many ? two"])
    built = SharedLM.build(BACKBONES[kind], vocabulary, spec, "f00d", {"kind": head}).eval()
    with torch.no_grad():  # sharp predictions that depend on what came before
        for name, parameter in built.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(30 if "embed" in name or "wte" in name or "lm_head" in name else 5)
    return built


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


def drawn(probabilities: list[float], uniform: list[float], **sampling) -> list[int]:
    logits = torch.tensor(probabilities).log().expand(len(uniform), -1)
    return draw(logits, Sampling(**sampling), torch.tensor(uniform, dtype=torch.float64)).tolist()


def test_draw_inverts_the_cumulative_distribution():  # most likely first: 1 (0.5), 2 (0.3), 0 (0.2)
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.49, 0.51, 0.79, 0.81, 0.999]) == [1, 1, 2, 2, 0, 0]


def test_top_k_renormalizes():  # 0.5 / 0.8 = 0.625
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.62, 0.63, 0.999], top_k=2) == [1, 1, 2, 2]
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999], top_k=1) == [1, 1]
    assert drawn([0.2, 0.5, 0.3], [0.81], top_k=9) == [0]


def test_edges_belong_to_the_next_id():  # exact in binary
    assert drawn([0.25] * 4, [0.0, 0.25, 0.5, 0.75]) == [0, 1, 2, 3]
    assert drawn([0.25] * 4, [0.999], top_p=0.5) == [1]  # two of them reach one half


def test_top_p_keeps_until_p_is_reached():
    quarters = [0.125, 0.5, 0.25, 0.125]
    assert drawn(quarters, [0.0, 0.999], top_p=0.499) == [1, 1]
    assert drawn(quarters, [0.66, 0.67, 0.999], top_p=0.7) == [1, 2, 2]  # 0.5 / 0.75
    assert drawn(quarters, [0.999], top_p=1.0) == [3]
    assert drawn(quarters, [0.999], top_p=1e-9) == [1]


def test_top_p_counts_within_top_k():  # of 0.5 and 0.3 the first is 0.625
    assert drawn([0.2, 0.5, 0.3], [0.999], top_k=2, top_p=0.6) == [1]
    assert drawn([0.2, 0.5, 0.3], [0.999], top_k=2, top_p=0.65) == [2]


def test_temperature_sharpens_and_zero_takes_the_best():
    assert drawn([0.2, 0.8], [0.65, 0.67], temperature=2.0) == [1, 0]  # sqrt(0.8) against sqrt(0.2): 2 to 1
    assert drawn([0.2, 0.8], [0.94, 0.95], temperature=0.5) == [1, 0]  # 16 to 1
    assert drawn([0.2, 0.5, 0.3], [0.999], temperature=0.0) == [1]


def test_ties_go_to_the_lower_id():
    quarter = [0.25] * 4
    assert drawn(quarter, [0.0, 0.3, 0.6, 0.9]) == [0, 1, 2, 3]
    assert drawn(quarter, [0.999], top_k=2) == [1]
    assert drawn(quarter, [0.999], temperature=0.0) == [0]
    assert drawn([0.1, 0.45, 0.45], [0.3, 0.6], top_k=1) == [1, 1]
    assert drawn([1.0] * 5000, [0.5], top_k=1) == [0]  # sorting that many is not stable by itself


def test_impossible_ids_are_never_drawn():
    assert drawn([0.0, 0.5, 0.5, 0.0], [0.0, math.nextafter(1, 0)]) == [1, 2]
    assert drawn([0.2, 0.5, 0.3], [1.0], top_k=2) == [2]  # where rounding reaches the end


def test_draws_follow_softmax():
    logits = torch.randn(6)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = draw(logits.expand(len(uniform), -1), Sampling(temperature=0.7), uniform)
    expected = (logits / 0.7).softmax(0)
    found = torch.bincount(ids, minlength=6) / len(uniform)
    spread = (expected * (1 - expected) / len(uniform)).sqrt()
    assert bool(((found - expected).abs() < 4 * spread).all())


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_sampling_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got .*; 1, 0 and 1"):
        Sampling(**wrong)


def outputs(lm) -> torch.Tensor:
    (matrix,) = lm.outputs.pieces
    return matrix


def recorded(monkeypatch, lm) -> list[torch.Tensor]:
    """The logits that are computed from here on."""
    kept, logits = [], lm.logits
    monkeypatch.setattr(lm, "logits", lambda *args: kept.append(logits(*args)) or kept[-1])
    return kept


@pytest.mark.parametrize("head", ["flat", "depth"])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_cached_logits_equal_a_pass_over_the_whole_sequence(monkeypatch, kind, head):
    lm = model(kind, head=head)
    kept = recorded(monkeypatch, lm)
    codes = sample_codes(lm, CAPTIONS, generators(3, 5), Sampling(guidance=2.0))
    assert [found.shape for found in kept] == [(6, 5), (6, 7), (6, 7)] * 4
    width, logged = lm.layout.per_step, list(kept)
    for row, caption in enumerate([*CAPTIONS, None, None, None]):
        prompt = lm.layout.prompt(caption).rows
        rows = torch.cat([prompt, lm.layout.codes(codes.ids[row % 3])])[None]  # alone, without padding or cache
        with torch.no_grad():
            hidden = lm.hidden(Batch.of(Rows(rows[0])))
            for index, found in enumerate(logged):
                slot, column = divmod(index, width)
                place = len(prompt) - 1 + slot
                expected = lm.logits(hidden[:, place], rows[:, place + 1, :column], slot)[0]
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_one_position_per_step_is_plain_next_token_prediction():
    lm = model()
    found = sample_codes(lm, ["a red circle"], generators(1), Sampling(guidance=1.0, temperature=0.0)).ids[0]
    rows = lm.layout.prompt("a red circle").rows
    for slot in range(12):
        with torch.no_grad():
            hidden = lm.hidden(Batch.of(Rows(rows)))[0, -1]
        (block,) = lm.head.at(slot)
        best = int((outputs(lm) @ hidden)[block.ids.start : block.ids.stop].argmax())
        assert int(found.flatten()[slot]) == best
        rows = torch.cat([rows, torch.tensor([[block.ids.start + best, slot]])])


def test_guidance_moves_away_from_the_unconditional(monkeypatch):
    lm = model()
    kept = recorded(monkeypatch, lm)
    codes = sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5, temperature=0.0))
    for slot, found in enumerate(kept):
        guided = found[3:] + 2.5 * (found[:3] - found[3:])
        assert torch.equal(codes.ids.flatten(1)[:, slot], guided.argmax(-1))
    assert any(not torch.equal(found[:3].argmax(-1), codes.ids.flatten(1)[:, s]) for s, found in enumerate(kept))


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (1.5, 4), (0.0, 4)])
def test_guidance_one_runs_no_second_branch(guidance, rows):
    lm, sizes = model(), []
    hook = lm.backbone.base_model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    sample_codes(lm, ["a red circle", "a"], generators(2), Sampling(guidance=guidance))
    hook.remove()
    assert sizes == [(rows, 5), *[(rows, 1)] * 11]  # the prompt, then one token at a time


@pytest.mark.parametrize("head", ["flat", "depth"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(guidance, head):
    lm = model(head=head)
    captions = [*CAPTIONS, "two blue square", "a red circle", "a blue", "red", "how many ?"]
    sampling = Sampling(guidance=guidance, top_k=4, top_p=0.95)
    together = sample_codes(lm, captions, [torch.Generator().manual_seed(s) for s in range(8)], sampling)
    for row, caption in enumerate(captions):
        alone = sample_codes(lm, [caption], generators(1, row), sampling)
        assert torch.equal(alone.ids[0], together.ids[row])
    assert len(torch.unique(together.ids, dim=0)) > 1


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_of_several_candidates_the_one_is_kept_that_the_prompt_is_read_from_most_surely(head):
    lm, sampling = model(head=head), Sampling(guidance=1.0)
    kept = sample_codes(lm, CAPTIONS, generators(3, 4), replace(sampling, candidates=5)).ids
    for row, caption in enumerate(CAPTIONS):
        (stream,) = generators(1, 4)  # every drawing goes on where the last one left the generator
        drawn = torch.cat([sample_codes(lm, [caption], [stream], sampling).ids for _ in range(5)])
        read = []
        for ids in drawn:
            rows = torch.cat([lm.layout.image(ids), lm.layout.caption_opener(), lm.layout.prompt(caption).rows[1:-1]])
            said = [*rows[-len(lm.vocabulary.encode(caption)) :, 0].tolist(), lm.vocabulary.special("<eos>")]
            with torch.no_grad():
                hidden = lm.hidden(Batch.of(Rows(rows)))[0, -len(said) :]
                logits = hidden @ outputs(lm)[: len(lm.head.text)].T
            read.append(float(logits.log_softmax(-1)[range(len(said)), said].sum()))
        assert torch.equal(kept[row], drawn[read.index(max(read))])
        assert max(read) - min(read) > 0.1


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_codebooks_may_have_temperatures_of_their_own(monkeypatch, head):
    lm = model(head=head)
    kept, mixed = recorded(monkeypatch, lm), Sampling(1.0, temperature=5.0, temperatures={"pixel": 0.0})
    ids = sample_codes(lm, CAPTIONS, generators(3), mixed).ids.flatten(1)
    for column, logits in enumerate(kept):
        best = torch.equal(ids[:, column], logits.argmax(-1))
        assert best or column % 3 == 0  # the semantic column
    assert any(not torch.equal(ids[:, column], kept[column].argmax(-1)) for column in (0, 3, 6, 9))
    with pytest.raises(ValueError, match="which are semantic, pixel, got 'pixels'; correct the name"):
        sample_codes(lm, CAPTIONS, generators(3), Sampling(temperatures={"pixels": 1.0}))
    with pytest.raises(ValueError, match=r"needs temperature >= 0.*got -1.0, 0"):
        Sampling(temperatures={"pixel": -1.0})


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_dynamic_codes_end_when_the_model_says_so(head):
    spec = CodeSpec(CodeLayout("sequence", (6,)), SPEC.codebooks, dynamic=True)
    lm = model(head=head, spec=spec)
    found = sample_codes(lm, CAPTIONS * 4, generators(12), Sampling(guidance=1.5, temperature=3.0))
    lengths = found.mask.sum(1)
    assert len(lengths.unique()) > 1
    assert int(lengths.min()) >= 1
    for row, caption in enumerate(CAPTIONS * 4):
        alone = sample_codes(lm, [caption], generators(12)[row : row + 1], Sampling(guidance=1.5, temperature=3.0))
        assert torch.equal(alone.ids, found.ids[row : row + 1])


def test_guidance_may_end_early(monkeypatch):
    lm = model()
    kept = recorded(monkeypatch, lm)
    some = sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5, temperature=0.0, guided_steps=5)).ids
    assert [len(found) for found in kept] == [6] * 5 + [3] * 7
    every = sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5, temperature=0.0)).ids
    assert torch.equal(some.flatten(1)[:, :5], every.flatten(1)[:, :5])
    assert torch.equal(some.flatten(1)[:, 5], kept[5].argmax(-1))
    assert torch.equal(
        sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5, guided_steps=0)).ids,
        sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=1.0)).ids,
    )
    with pytest.raises(ValueError, match="sampling needs guided_steps >= 0, got -1; None guides all of them"):
        Sampling(guided_steps=-1)


def test_candidates_are_ranked_by_captions_alone():
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7),))
    lm = SharedLM.build(BACKBONES["llama"], Vocabulary(None), spec, "f00d", classes=3).eval()
    assert sample_codes(lm, [0, 2], generators(2), Sampling()).ids.shape == (2, 4, 1)
    with pytest.raises(ValueError, match="ranks candidates by their captions, got int; draw one each"):
        sample_codes(lm, [0], generators(1), Sampling(candidates=2))


def test_candidates_are_at_least_one():
    with pytest.raises(ValueError, match=r"sampling needs candidates >= 1, got 0; 1 keeps the first drawing"):
        Sampling(candidates=0)


def test_codes_keep_the_spec_and_seeds_matter():
    lm = model()
    one, same, other = (sample_codes(lm, ["a red circle"], generators(1, seed)).ids for seed in (1, 1, 2))
    assert sample_codes(lm, ["a"], generators(1)).spec == SPEC
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("head", "steps"), [("flat", 12), ("depth", 4)])
def test_progress_is_told(head, steps):
    told = []
    sample_codes(model(head=head), ["a"], generators(1), progress=lambda done, total: told.append((done, total)))
    assert told == [(step, steps) for step in range(1, steps + 1)]


def test_nothing_is_stored_on_the_model():
    lm = model()
    weights = {name: value.clone() for name, value in lm.state_dict().items()}
    before = [(name, set(vars(module))) for name, module in lm.named_modules()]
    buffers = {name for name, _ in lm.named_buffers()}
    first = sample_codes(lm, CAPTIONS, generators(3))
    assert [(name, set(vars(module))) for name, module in lm.named_modules()] == before
    assert {name for name, _ in lm.named_buffers()} == buffers
    assert all(torch.equal(weights[name], value) for name, value in lm.state_dict().items())
    assert torch.equal(sample_codes(lm, CAPTIONS, generators(3)).ids, first.ids)


@pytest.mark.parametrize(("captions", "count"), [(["a", "a"], 1), ([], 0)])
def test_one_generator_per_caption(captions, count):
    message = f"and at least one caption, got {count} generators for {len(captions)} captions; make one"
    with pytest.raises(ValueError, match=message):
        sample_codes(model(), captions, generators(count))


def test_a_model_draws_its_own_way_where_nobody_says_otherwise():
    lm = model()
    assert model_sampling(lm) == Sampling()
    lm.config.sampling = {"guidance": 1.5, "temperature": 0.0}
    assert model_sampling(lm) == Sampling(guidance=1.5, temperature=0.0)
    own = sample_codes(lm, CAPTIONS, generators(3))
    assert torch.equal(own.ids, sample_codes(lm, CAPTIONS, generators(3), Sampling(1.5, 0.0)).ids)
    assert not torch.equal(own.ids, sample_codes(lm, CAPTIONS, generators(3), Sampling(1.5, 3.0)).ids)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="got 'purple'"):
        sample_codes(model(), ["a purple circle"], generators(1))


def test_scales_cannot_be_written_in_raster_order():
    lm = model(spec=CodeSpec(CodeLayout("scales", (1, 2)), BOOKS))
    with pytest.raises(ValueError, match="raster order needs codes laid out as grid or sequence or set"):
        sample_codes(lm, ["a"], generators(1))


def test_orders_of_several_positions_per_step_are_refused():
    class Pairs:
        def steps(self, layout):
            return list(torch.arange(layout.positions).view(-1, 2))

    with pytest.raises(ValueError, match="one position per step, got an order with steps of 2 positions; use raster"):
        sample_codes(model(), ["a"], generators(1), order=Pairs())
