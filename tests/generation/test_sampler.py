"""Cached decoding against passes over whole sequences, guidance and its schedules, seeds, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smalti.generation import sampler
from smalti.generation.orders import Grouped, Masked, Neighbouring, NextScale, Random, Raster, order_parts
from smalti.generation.sampler import Progress, model_order, plan_of, sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.lm.sequences import Batch, Rows
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (2, 2)), BOOKS)
LARGER = CodeSpec(CodeLayout("grid", (2, 4)), BOOKS)
SCALES = CodeSpec(CodeLayout("scales", (1, 2)), BOOKS)
CAPTIONS = ["a red circle", "a", "how many red circle ?"]
MORE = [*CAPTIONS, "two blue square", "a red circle", "a blue", "red", "how many ?"]
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
BACKBONES = {
    "llama": {"model_type": "llama", **WIDTHS, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
ORDERS = [Raster(), Neighbouring(), Grouped(2), Random(4), Masked(4), NextScale()]
EVERY = pytest.mark.parametrize("order", ORDERS, ids=[order.fields()["kind"] for order in ORDERS])


def model(kind="llama", spec=SPEC, head="flat", **parts) -> SharedLM:
    vocabulary = Vocabulary.train(["a red circle", "a blue square", "how many ? two"])
    built = SharedLM.build(BACKBONES[kind], vocabulary, spec, "f00d", {"kind": head}, **parts).eval()
    torch.manual_seed(1)
    with torch.no_grad():  # sharp predictions that depend on what came before
        for name, parameter in built.named_parameters():
            if parameter.ndim == 2:
                rows = any(part in name for part in ("embed", "wte", "lm_head", "queries", "rows"))
                parameter.normal_(std=0.6 if rows else 0.3)
    return built


def ordered(order, head="depth", **parts) -> SharedLM:
    spec = SCALES if isinstance(order, NextScale) else LARGER
    return model(spec=spec, head=head, **order_parts(order, spec), **parts)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def outputs(lm) -> torch.Tensor:
    (matrix,) = lm.outputs.pieces
    return matrix


class Seen:
    """The logits that the sampler computes from here on: guided, of both halves, and the scale."""

    def __init__(self, monkeypatch) -> None:
        self.guided, self.both, self.scales = list[torch.Tensor](), list[torch.Tensor](), list[float | None]()
        function = sampler.mean_logits

        def record(heads, states, shares, column, guidance=None):
            self.guided.append(function(heads, states, shares, column, guidance))
            self.both.append(function(heads, states, shares, column))
            self.scales.append(guidance)
            return self.guided[-1].clone()

        monkeypatch.setattr(sampler, "mean_logits", record)


def batches(lm, *args, **kwargs) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """Rows and steps of every forward pass of a sampling, and its ids."""
    sizes = []
    hook = lm.backbone.base_model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    ids = sample_codes(lm, *args, **kwargs).ids
    hook.remove()
    return sizes, ids


@pytest.mark.parametrize("head", ["flat", "depth"])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_cached_logits_equal_a_pass_over_the_whole_sequence(monkeypatch, kind, head):
    lm = model(kind, head=head)
    seen = Seen(monkeypatch)
    codes = sample_codes(lm, CAPTIONS, generators(3, 5), Sampling(guidance=2.0))
    assert [found.shape for found in seen.guided] == [(3, 5), (3, 7), (3, 7)] * 4
    width, logged = lm.layout.per_step, list(zip(seen.both, seen.guided, strict=True))
    halves = {}
    for row, caption in enumerate([*CAPTIONS, None, None, None]):
        prompt = lm.layout.prompt(caption).rows
        rows = torch.cat([prompt, lm.layout.codes(codes.ids[row % 3])])[None]  # alone, without padding or cache
        with torch.no_grad():
            hidden = lm.hidden(Batch.of(Rows(rows[0])))
            for index, (both, _) in enumerate(logged):
                slot, column = divmod(index, width)
                place = len(prompt) - 1 + slot
                halves[row, index] = lm.logits(hidden[:, place], rows[:, place + 1, :column], slot)[0]
                torch.testing.assert_close(both[row], halves[row, index], rtol=1e-4, atol=1e-4)
    for index, (_, guided) in enumerate(logged):
        for row in range(3):
            given, free = halves[row, index], halves[row + 3, index]
            torch.testing.assert_close(guided[row], free + 2 * (given - free), rtol=1e-4, atol=1e-4)


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


@EVERY
def test_guidance_moves_away_from_the_unconditional(monkeypatch, order):
    lm, seen = ordered(order), Seen(monkeypatch)
    sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5))
    for both, guided in zip(seen.both, seen.guided, strict=True):
        given, free = both.chunk(2)
        torch.testing.assert_close(guided, free + 2.5 * (given - free), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(given, free)


def test_the_guided_logits_are_drawn_from(monkeypatch):
    lm, seen = model(), Seen(monkeypatch)
    ids = sample_codes(lm, CAPTIONS, generators(3), Sampling(guidance=2.5, temperature=0.0)).ids.flatten(1)
    assert all(torch.equal(ids[:, slot], found.argmax(-1)) for slot, found in enumerate(seen.guided))
    assert any(not torch.equal(found[:3].argmax(-1), ids[:, slot]) for slot, found in enumerate(seen.both))


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (1.5, 4), (0.0, 4)])
def test_guidance_one_runs_no_second_branch(guidance, rows):
    sizes, _ = batches(model(), ["a red circle", "a"], generators(2), Sampling(guidance=guidance))
    assert sizes == [(rows, 5), *[(rows, 1)] * 11]  # the prompt, then one token at a time


@EVERY
def test_guidance_may_end_early(monkeypatch, order):
    lm, seen = ordered(order), Seen(monkeypatch)
    sizes, some = batches(lm, CAPTIONS, seeds(3), Sampling(2.5, temperature=0.8, guided_steps=2))
    steps = len(sizes)
    assert [rows for rows, _ in sizes] == [6, 6, *[3] * (steps - 2)]
    assert seen.scales == [2.5] * 6 + [None] * 3 * (steps - 2)  # three columns a step
    told = []
    sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.5, temperature=0.8), progress=told.append)
    written = told[1].ids >= 0
    assert torch.equal(some[written], told[1].ids[written])
    assert torch.equal(
        sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.5, guided_steps=0)).ids,
        sample_codes(lm, CAPTIONS, seeds(3), Sampling(1.0)).ids,
    )


def test_what_follows_guidance_is_given_the_prompt(monkeypatch):
    lm, seen = model(), Seen(monkeypatch)
    ids = sample_codes(lm, CAPTIONS, generators(3), Sampling(2.5, temperature=0.0, guided_steps=5)).ids
    logged = seen.guided[5:]
    for row, caption in enumerate(CAPTIONS):
        prompt = lm.layout.prompt(caption).rows
        with torch.no_grad():
            hidden = lm.hidden(Batch.of(Rows(torch.cat([prompt, lm.layout.codes(ids[row])]))))[0]
        for slot, found in enumerate(logged, start=5):
            (block,) = lm.head.at(slot)
            expected = outputs(lm)[block.ids.start : block.ids.stop] @ hidden[len(prompt) - 1 + slot]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


@EVERY
def test_guidance_may_grow_and_begin_late(monkeypatch, order):
    lm, seen = ordered(order), Seen(monkeypatch)
    steps = len(order.plan(lm.spec.layout).sizes)
    ramp = [1 + 3 * step / (steps - 1) for step in range(steps)]
    sizes, _ = batches(lm, CAPTIONS, seeds(3), Sampling(4.0, guidance_start=1.0))
    assert [rows for rows, _ in sizes] == [6] * steps
    assert seen.scales == [scale for scale in ramp for _ in range(3)]
    for both, guided, scale in zip(seen.both, seen.guided, seen.scales, strict=True):
        given, free = both.chunk(2)
        torch.testing.assert_close(guided, free + scale * (given - free), rtol=1e-4, atol=1e-4)
    seen.scales.clear()
    sizes, late = batches(lm, CAPTIONS, seeds(3), Sampling(4.0, guided_from=1, guided_steps=2))
    assert [rows for rows, _ in sizes] == [6, 6, *[3] * (steps - 2)]
    assert seen.scales == [1.0] * 3 + [4.0] * 3 + [None] * 3 * (steps - 2)
    told = []
    sample_codes(lm, CAPTIONS, seeds(3), Sampling(1.0), progress=told.append)
    written = told[0].ids >= 0  # the first step is as if nothing guided
    assert torch.equal(late[written], told[0].ids[written])


@pytest.mark.parametrize("head", ["flat", "depth"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(guidance, head):
    lm = model(head=head)
    sampling = Sampling(guidance=guidance, top_k=4, top_p=0.95)
    together = sample_codes(lm, MORE, seeds(8), sampling)
    for row, caption in enumerate(MORE):
        alone = sample_codes(lm, [caption], generators(1, row), sampling)
        assert torch.equal(alone.ids[0], together.ids[row])
    assert len(torch.unique(together.ids, dim=0)) > 1


@EVERY
def test_a_picture_is_the_same_alone_and_in_a_batch_in_every_order(order):
    lm, sampling = ordered(order, "parallel"), Sampling(2.0, top_k=4, top_p=0.95, guided_steps=3, guidance_start=1.5)
    together = sample_codes(lm, MORE, seeds(8), sampling)
    assert len(torch.unique(together.ids, dim=0)) > 4
    for row, caption in enumerate(MORE):
        assert torch.equal(sample_codes(lm, [caption], generators(1, row), sampling).ids[0], together.ids[row])


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


@EVERY
def test_candidates_are_drawn_one_after_the_other(order):
    lm, sampling = ordered(order), Sampling(guidance=1.5)
    kept = sample_codes(lm, CAPTIONS, seeds(3), replace(sampling, candidates=3)).ids
    for row, caption in enumerate(CAPTIONS):
        (stream,) = generators(1, row)
        drawn = torch.cat([sample_codes(lm, [caption], [stream], sampling).ids for _ in range(3)])
        assert any(torch.equal(kept[row], ids) for ids in drawn)
        assert len(torch.unique(drawn, dim=0)) == 3


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_codebooks_may_have_temperatures_of_their_own(monkeypatch, head):
    lm, seen = model(head=head), Seen(monkeypatch)
    mixed = Sampling(1.0, temperature=5.0, temperatures={"pixel": 0.0})
    ids = sample_codes(lm, CAPTIONS, generators(3), mixed).ids.flatten(1)
    for column, logits in enumerate(seen.guided):
        best = torch.equal(ids[:, column], logits.argmax(-1))
        assert best or column % 3 == 0  # the semantic column
    assert any(not torch.equal(ids[:, column], seen.guided[column].argmax(-1)) for column in (0, 3, 6, 9))
    with pytest.raises(ValueError, match="which are semantic, pixel, got 'pixels'; correct the name"):
        sample_codes(lm, CAPTIONS, generators(3), Sampling(temperatures={"pixels": 1.0}))


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_dynamic_codes_end_when_the_model_says_so(head):
    spec = CodeSpec(CodeLayout("sequence", (6,)), SPEC.codebooks, dynamic=True)
    lm, sampling = model(head=head, spec=spec), Sampling(guidance=1.5, temperature=3.0)
    found = sample_codes(lm, CAPTIONS * 4, seeds(12), sampling)
    lengths = found.mask.sum(1)
    assert len(lengths.unique()) > 1
    assert int(lengths.min()) >= 1
    for row, caption in enumerate(CAPTIONS * 4):
        length = int(lengths[row])
        assert bool((found.ids[row, :length] >= 0).all())
        assert bool((found.ids[row, length:] == -1).all())
        alone = sample_codes(lm, [caption], seeds(12)[row : row + 1], sampling)
        assert torch.equal(alone.ids, found.ids[row : row + 1])


def test_candidates_are_ranked_by_captions_alone():
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7),))
    lm = SharedLM.build(BACKBONES["llama"], Vocabulary(None), spec, "f00d", classes=3).eval()
    assert sample_codes(lm, [0, 2], generators(2), Sampling()).ids.shape == (2, 4, 1)
    with pytest.raises(ValueError, match="ranks candidates by their captions, got int; draw one each"):
        sample_codes(lm, [0], generators(1), Sampling(candidates=2))


@EVERY
def test_codes_keep_the_spec_and_seeds_matter(order):
    lm = ordered(order)
    one, same, other = (sample_codes(lm, ["a red circle"], generators(1, seed)) for seed in (1, 1, 2))
    assert one.spec == lm.spec
    assert torch.equal(one.ids, same.ids)
    assert not torch.equal(one.ids, other.ids)
    sizes = torch.tensor([book.size for book in lm.spec.columns])
    assert bool(((one.ids >= 0) & (one.ids < sizes)).all())


@EVERY
def test_progress_shows_what_is_written_so_far(order):
    lm, told = ordered(order), list[Progress]()
    codes = sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0), progress=told.append).ids
    plans = [order.plan(lm.spec.layout, stream) for stream in seeds(3)]
    count = len(plans[0].sizes)
    assert [(done.done, done.total) for done in told] == [(step, count) for step in range(1, count + 1)]
    for done in told:
        written = done.ids >= 0
        assert torch.equal(written.all(-1), written.any(-1))
        assert torch.equal(done.ids[written], codes[written])
        assert bool((done.ids[~written] == -1).all())
        for row, plan in enumerate(plans):
            assert int(written[row, :, 0].sum()) == plan.starts[done.done]
            if not plan.adaptive:
                places = set(plan.positions[: plan.starts[done.done]].tolist())
                assert set(written[row, :, 0].nonzero().flatten().tolist()) == places
    assert torch.equal(told[-1].ids, codes)


def test_single_columns_are_told_one_by_one():
    told = []
    codes = sample_codes(model(), ["a"], generators(1), progress=told.append).ids.flatten()
    assert [(done.done, done.total) for done in told] == [(step, 12) for step in range(1, 13)]
    for done in told:
        assert done.ids.flatten().tolist() == [*codes[: done.done].tolist(), *[-1] * (12 - done.done)]


def test_what_is_told_is_nobody_elses():
    codes = sample_codes(model(), ["a"], generators(1)).ids
    again = sample_codes(model(), ["a"], generators(1), progress=lambda done: done.ids.fill_(0)).ids
    assert torch.equal(codes, again)


def test_masked_keeps_what_is_surest(monkeypatch):
    """Without noise: those whose codes, all columns together, were likeliest under the guided logits."""
    order = Masked(4, noise=0.0)
    lm, seen, told = ordered(order), Seen(monkeypatch), list[Progress]()
    drawn, function = list[torch.Tensor](), sampler.draw

    def record(*args):
        drawn.append(function(*args))
        return drawn[-1]

    monkeypatch.setattr(sampler, "draw", record)
    sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0), progress=told.append)
    sizes, before = order.plan(lm.spec.layout).sizes, torch.zeros(3, 8, dtype=torch.bool)
    for step, done in enumerate(told):
        columns = range(step * 3, step * 3 + 3)
        sure = sum(seen.guided[c].log_softmax(-1).gather(1, drawn[c][:, None])[:, 0] for c in columns).view(3, -1)
        now = done.ids[..., 0] >= 0
        for row in range(3):
            left = (~before[row]).nonzero().flatten()
            best = left[sure[row].argsort(descending=True)[: sizes[step]]]
            assert set(best.tolist()) == set((now[row] & ~before[row]).nonzero().flatten().tolist())
        before = now


def test_noise_makes_masked_choose_otherwise():
    lm, first = ordered(Masked(4)), {}
    for noise in (0.0, 100.0):
        told = []
        sample_codes(lm, ["a"] * 8, seeds(8), Sampling(1.0, 0.0), order=Masked(4, noise), progress=told.append)
        first[noise] = told[0].ids[..., 0] >= 0
    assert len(first[0.0].unique(dim=0)) == 1  # all eight alike, at temperature 0
    assert len(first[100.0].unique(dim=0)) > 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@EVERY
def test_attention_of_transformers_gives_the_same(order, attention):
    lm = ordered(order)
    own = sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0)).ids
    lm.backbone.set_attn_implementation(attention)
    assert lm.backbone.config._attn_implementation == attention
    assert torch.equal(sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0)).ids, own)
    alone = [sample_codes(one, CAPTIONS[:1], seeds(1), Sampling(1.0)).ids for one in (lm, ordered(order))]
    assert torch.equal(*alone)  # without padding, and so without a mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@EVERY
def test_models_of_other_types_write_too(order, dtype):
    lm = ordered(order).to(dtype)
    ids = sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0)).ids
    sizes = torch.tensor([book.size for book in lm.spec.columns])
    assert bool(((ids >= 0) & (ids < sizes)).all())


@EVERY
def test_models_write_in_their_own_order(order):
    lm = ordered(order)
    assert model_order(lm).fields() == order.fields()
    own = sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0)).ids
    assert torch.equal(own, sample_codes(lm, CAPTIONS, seeds(3), Sampling(2.0), order=order).ids)


def test_the_plan_of_a_model_is_that_of_its_order():
    lm, order = ordered(Random(4)), Random(4)
    plan, expected = plan_of(lm, generator=seeds(2)[1]), order.plan(LARGER.layout, seeds(2)[1])
    assert torch.equal(plan.positions, expected.positions)
    assert (plan.sizes, plan.asks) == (expected.sizes, "step")
    assert plan_of(lm, Raster()).positions.tolist() == list(range(8))
    assert plan_of(model()).sizes == (1,) * 12  # a flat head, three columns a position


@EVERY
def test_nothing_is_stored_on_the_model(order):
    lm = ordered(order)
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
    lm.config.sampling = {"guidance": 1.5, "temperature": 0.0}
    own = sample_codes(lm, CAPTIONS, generators(3))
    assert torch.equal(own.ids, sample_codes(lm, CAPTIONS, generators(3), Sampling(1.5, 0.0)).ids)
    assert not torch.equal(own.ids, sample_codes(lm, CAPTIONS, generators(3), Sampling(1.5, 3.0)).ids)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="got 'purple'"):
        sample_codes(model(), ["a purple circle"], generators(1))


def test_scales_cannot_be_written_in_raster_order():
    lm = model(spec=SCALES)
    with pytest.raises(ValueError, match=r"raster order writes a grid .*, got a scales of \(1, 2\); legal for it are"):
        sample_codes(lm, ["a"], generators(1))


def test_images_longer_than_the_backbone_are_refused():
    lm = model("gpt2", spec=CodeSpec(CodeLayout("grid", (6, 10)), BOOKS[:1]))  # 64 places, 3 of them for the prompt
    assert sample_codes(lm, ["a"], generators(1)).ids.shape == (1, 60, 1)
    with pytest.raises(ValueError, match=r"have at most 64 tokens, got 65; raise max_position_embeddings"):
        sample_codes(lm, ["a red circle"], generators(1))


def test_queries_that_do_not_see_each_other_may_be_asked_in_parts(monkeypatch):
    lm = ordered(Masked(3))
    whole = sample_codes(lm, ["a red circle", "a"], [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    monkeypatch.setitem(sampler._TOGETHER, "cpu", 1)  # one query of every image at a time
    parts = sample_codes(lm, ["a red circle", "a"], [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(parts.ids, whole.ids)
