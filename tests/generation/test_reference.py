"""The plain sampler and the fast one write the same ids, whatever the order, the head, the prompts and the filters."""

from __future__ import annotations

import pytest
import torch

from smalti.generation.filters import draw
from smalti.generation.orders import Grouped, Masked, Neighbouring, NextScale, Random, Raster, order_parts
from smalti.generation.reference import pick, sample_plainly
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

CAPTIONS = ["a red circle", "a", "how many red circle ?"]
BACKBONE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
ONE, THREE = (Codebook("pixel", 11),), (Codebook("semantic", 5), Codebook("pixel", 7, 2))
GRID, SCALES = CodeLayout("grid", (4, 4)), CodeLayout("scales", (1, 2, 3))
ORDERS = [Raster(), Neighbouring(), Grouped(2), Random(6), Masked(5), NextScale()]


def name(order) -> str:
    return order.fields()["kind"]


def model(order, head="depth", books=None, layout=None, dynamic=False, **parts) -> SharedLM:
    torch.manual_seed(0)
    layout = layout or (SCALES if isinstance(order, NextScale) else GRID)
    spec = CodeSpec(layout, books or (ONE if head == "flat" else THREE), dynamic)
    vocabulary = Vocabulary(None) if "classes" in parts else Vocabulary.train([*CAPTIONS, "two blue"])
    parts = order_parts(order, spec) | parts
    built = SharedLM.build(BACKBONE, vocabulary, spec, "f00d", {"kind": head}, **parts).eval().double()
    with torch.no_grad():  # sharp predictions that depend on what came before
        for label, parameter in built.named_parameters():
            if parameter.ndim == 2:
                rows = any(part in label for part in ("embed", "lm_head", "rows", "queries"))
                parameter.normal_(std=0.6 if rows else 0.15)
    return built


def both(lm, sampling, conditions=CAPTIONS, **options) -> torch.Tensor:
    """What both write, which is the same."""
    found = []
    for sample in (sample_codes, sample_plainly):
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(conditions))]
        found.append(sample(lm, conditions, generators, sampling, **options))
    assert torch.equal(found[0].ids, found[1].ids)
    assert found[0].spec == found[1].spec
    return found[1].ids


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("head", ["flat", "parallel", "depth"])
@pytest.mark.parametrize("order", ORDERS, ids=name)
def test_ids_are_those_of_the_fast_sampler(order, head, guidance):
    lm = model(order, head)
    found = both(lm, Sampling(guidance, temperature=1.3))
    assert int(found.min()) >= 0
    assert len(found.unique(dim=0)) == 3
    streams = [torch.Generator().manual_seed(seed) for seed in range(3)]
    assert not torch.equal(found, sample_codes(lm, CAPTIONS, streams, Sampling(3.5 - guidance, temperature=1.3)).ids)


@pytest.mark.parametrize("order", ORDERS[:-1], ids=name)
def test_classes_stand_nowhere_and_codes_in_rows_and_columns(order):
    lm = model(order, "flat", classes=3, rotary="axial", embedding={"places": False})
    assert len(both(lm, Sampling(2.0), [2, 0, 1, 2]).unique(dim=0)) == 4


@pytest.mark.parametrize("order", ORDERS, ids=name)
def test_filters_temperatures_and_the_schedule_of_guidance_are_the_same(order):
    lm = model(order)
    heats = {"semantic": 0.0, "pixel": 2.0}
    both(lm, Sampling(3.0, top_k=4, top_p=0.9, temperatures=heats, guidance_start=0.5, guided_from=1, guided_steps=3))


def test_columns_are_steps_of_their_own_with_a_flat_head():
    assert both(model(Raster(), "flat", THREE), Sampling(2.0, temperature=2.0)).shape == (3, 16, 3)


@pytest.mark.parametrize("head", ["flat", "depth"])
def test_dynamic_codes_end_together(head):
    lm = model(Raster(), head, THREE, CodeLayout("sequence", (9,)), dynamic=True)
    lengths = (both(lm, Sampling(1.5, temperature=3.0), CAPTIONS * 3) >= 0)[..., 0].sum(1)
    assert len(lengths.unique()) > 1
    assert int(lengths.min()) >= 1


def test_vectors_may_be_the_prompt():
    lm = model(Neighbouring(), vectors={"dim": 3, "null": 4}, rotary="axial")
    given = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 4, 2)]
    assert len(both(lm, Sampling(2.0), given).unique(dim=0)) == 3


def test_the_slots_that_a_pass_attends_to_are_all_there_are(monkeypatch):
    lm, sizes = model(Grouped(2), "flat"), []
    through = lm.through
    monkeypatch.setattr(lm, "through", lambda *args: sizes.append(args[2].shape) or through(*args))
    sample_plainly(lm, ["a red circle"], [torch.Generator()], Sampling(2.0, guided_steps=1))
    assert sizes == [(2, 1, rows, 5 + 16 + 3) for rows in (5, 1, 1, 1, 4, 4, 4)]


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.8}, {"temperature": 0.0}])
def test_ids_are_picked_as_they_are_drawn(how):
    stream = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (500, 9), generator=stream).float()  # with ties
    uniform = torch.rand(500, generator=stream, dtype=torch.float64)
    assert torch.equal(pick(logits, uniform, Sampling(**how)), draw(logits, uniform, **how))


def test_filters_by_hand():  # of 0.5 and 0.3 the first is 0.625
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    for uniform, how, expected in [(0.62, {"top_k": 2}, 1), (0.63, {"top_k": 2}, 2), (0.99, {"top_p": 0.4}, 1)]:
        assert pick(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(**how)).tolist() == [expected]


def test_candidates_are_not_ranked():
    with pytest.raises(ValueError, match="draws 1 candidate, got 2; rank them with sample_codes"):
        sample_plainly(model(Raster()), ["a"], [torch.Generator()], Sampling(candidates=2))
