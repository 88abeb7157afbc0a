"""Scale-by-scale decoding: what is cached is what one pass says, and a picture is its generator's alone."""

import pytest
import torch

from smalti.generation.pictures import seeded
from smalti.generation.var import ScaleSession, guided, write_scales
from smalti.lm.var import VAR, scale_slices
from smalti.tokenizers.blended import VARQuantizer
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.tokenizers.learned import GradientQuantizer

SIDES, CODES = [1, 2, 3], 12


def built(sides):
    """A small model with weights that matter."""
    quantizer = VARQuantizer(GradientQuantizer(3, CODES), sides)
    spec = CodeSpec(CodeLayout("scales", tuple(sides)), (Codebook("pixel", CODES),))
    made = VAR.build(quantizer, spec, classes=5, width=16, depth=2).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return made


@pytest.fixture
def model():
    return built(SIDES)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def test_cached_logits_are_those_of_one_pass(model):
    conditions = [2, None, 0]
    session, ids = ScaleSession(model, conditions), torch.randint(CODES, (3, 14, 1))
    whole = model(ids, conditions)
    for at in scale_slices(SIDES):
        torch.testing.assert_close(session.logits(), whole[:, at], rtol=1e-5, atol=1e-5)
        session.append(ids[:, at])
    assert [memory.filled for memory in session.memories] == [14, 14]


@torch.no_grad()
def test_what_it_writes_is_what_whole_passes_say(model):
    """A slow loop without a cache: later codes are whatever, since no scale sees them."""
    ids = torch.zeros(2, 14, 1, dtype=torch.int64)
    for scale, at in enumerate(scale_slices(SIDES)):
        conditional, free = model(ids, [1, 4])[:, at], model(ids, [None, None])[:, at]
        strength = 2.5 * scale / 2
        ids[:, at, 0] = ((1 + strength) * conditional - strength * free).argmax(-1)
    assert torch.equal(write_scales(model, [1, 4], seeded(0, 2), guidance=2.5, temperature=0.0).ids, ids)
    unguided = write_scales(model, [1, 4], seeded(0, 2), guidance=0.0, temperature=0.0)
    assert torch.equal(unguided.ids[..., 0], model(unguided.ids, [1, 4]).argmax(-1))
    assert not torch.equal(unguided.ids, ids)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_picture_is_its_generators_alone(model, guidance):
    together = write_scales(model, [0, 1, 2, 3, 1], generators(7, 8, 9, 8, 8), guidance=guidance).ids
    for row, (condition, seed) in enumerate([(0, 7), (1, 8), (2, 9), (3, 8), (1, 8)]):
        alone = write_scales(model, [condition], generators(seed), guidance=guidance).ids
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], write_scales(model, [0], generators(8), guidance=guidance).ids[0])


def test_filters_reach_the_drawing(model):
    greedy = write_scales(model, [3], generators(5), temperature=0.0).ids
    assert torch.equal(write_scales(model, [3], generators(5), top_k=1).ids, greedy)
    assert torch.equal(write_scales(model, [3], generators(5), top_p=1e-6).ids, greedy)
    assert not torch.equal(write_scales(model, [3], generators(5), temperature=5.0).ids, greedy)


def test_guidance_grows_with_the_scale():
    conditional, free = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert guided(conditional, free, 3.0, 0, 3).tolist() == [2.0, 0.0]
    assert guided(conditional, free, 3.0, 1, 3).tolist() == [2.5 * 2 - 1.5, -1.5]
    assert guided(conditional, free, 3.0, 2, 3).tolist() == [4 * 2 - 3, -3.0]


def test_nothing_stays_on_the_model(model):
    known, before = set(vars(model)), {name: weight.clone() for name, weight in model.state_dict().items()}
    first = write_scales(model, [0], generators(1))
    write_scales(model, [1, 2, 3], generators(1, 2, 3))
    assert torch.equal(write_scales(model, [0], generators(1)).ids, first.ids)
    assert set(vars(model)) == known
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_codes_and_progress(model):
    done = []
    codes = write_scales(model, [0, 1], generators(1, 2), progress=lambda step, steps: done.append((step, steps)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert codes.spec == model.spec
    assert codes.ids.shape == (2, 14, 1)


def test_one_scale_is_drawn_at_once():
    model = built([2])
    assert torch.equal(
        write_scales(model, [3], generators(1), temperature=0.0).ids[..., 0],
        model(torch.zeros(1, 4, 1, dtype=torch.int64), [3]).argmax(-1),
    )


@pytest.mark.parametrize(("conditions", "count"), [([0, 1], 1), ([0], 2), ([], 0)])
def test_one_generator_per_condition(model, conditions, count):
    said = f"at least one condition, got {count} generators for {len(conditions)} conditions; make one generator"
    with pytest.raises(ValueError, match=said):
        write_scales(model, conditions, seeded(0, count))


@pytest.mark.parametrize("setting", [{"guidance": -1.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_settings_have_ranges(model, setting):
    with pytest.raises(ValueError, match="drawing needs guidance, temperature and top_k >= 0 and 0 < top_p <= 1, got"):
        write_scales(model, [0], seeded(0, 1), **setting)
