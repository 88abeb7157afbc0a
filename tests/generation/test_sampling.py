"""What may be asked of the sampler, and the scale of guidance at every step."""

from __future__ import annotations

import pytest

from smalti.generation.sampling import Sampling, model_sampling
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (1, 2)), (Codebook("semantic", 5), Codebook("pixel", 7, 2)))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperatures": {"pixel": -1.0}}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_sampling_out_of_range_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got .*; 1, 0 and 1"):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guided_steps": -1}, "sampling needs guided_steps >= 0, got -1; None guides all of them"),
        ({"guided_from": -2}, "sampling needs guided_from >= 0, got -2; 0 guides from the first step"),
        ({"candidates": 0}, "sampling needs candidates >= 1, got 0; 1 keeps the first drawing"),
    ],
)
def test_steps_and_candidates_out_of_range_are_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("sampling", "scales"),
    [
        (Sampling(3.0), [3, 3, 3, 3, 3]),
        (Sampling(1.0), [1, 1, 1, 1, 1]),
        (Sampling(3.0, guided_steps=2), [3, 3, 1, 1, 1]),
        (Sampling(3.0, guided_steps=0), [1, 1, 1, 1, 1]),
        (Sampling(3.0, guided_steps=9), [3, 3, 3, 3, 3]),
        (Sampling(3.0, guided_from=2), [1, 1, 3, 3, 3]),
        (Sampling(3.0, guided_from=1, guided_steps=3), [1, 3, 3, 1, 1]),
        (Sampling(3.0, guided_from=3, guided_steps=1), [1, 1, 1, 1, 1]),
        (Sampling(3.0, guidance_start=1.0), [1, 1.5, 2, 2.5, 3]),
        (Sampling(2.0, guidance_start=4.0), [4, 3.5, 3, 2.5, 2]),
        (Sampling(3.0, guidance_start=1.0, guided_from=1, guided_steps=4), [1, 1.5, 2, 2.5, 1]),
    ],
)
def test_guidance_at_every_step(sampling, scales):
    assert sampling.scales(5) == scales


def test_guidance_of_a_single_step_is_that_of_the_first():
    assert Sampling(3.0, guidance_start=2.0).scales(1) == [2.0]
    assert Sampling(3.0).scales(1) == [3.0]


def test_codebooks_may_have_temperatures_of_their_own():
    sampling = Sampling(temperature=0.7, top_k=3, temperatures={"pixel": 0.0})
    sampling.check(SPEC)
    assert sampling.of("pixel") == Sampling(temperature=0.0, top_k=3)
    assert sampling.of("semantic") == Sampling(temperature=0.7, top_k=3)


def test_temperatures_of_unknown_codebooks_are_an_error():
    with pytest.raises(ValueError, match="which are semantic, pixel, got 'pixels'; correct the name"):
        Sampling(temperatures={"pixels": 1.0}).check(SPEC)


def test_a_model_draws_its_own_way_where_nobody_says_otherwise():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = SharedLM.build({"model_type": "llama", **sizes}, Vocabulary(None), SPEC, "f00d", classes=2)
    assert model_sampling(lm) == Sampling()
    lm.config.sampling = {"guidance": 1.5, "guidance_start": 1.0, "temperatures": {"pixel": 0.0}}
    assert model_sampling(lm) == Sampling(1.5, guidance_start=1.0, temperatures={"pixel": 0.0})
