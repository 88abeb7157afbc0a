"""Sampling of xAR: the published equations, caches and halves that change nothing, pictures, and what is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from smalti.generation.latents import TokenizerLatents
from smalti.generation.pictures import seeded
from smalti.generation.xar import (
    DrawnNoise,
    RecordedNoise,
    XARPipeline,
    XARSampling,
    model_sampling,
    sample_latents,
)
from smalti.lm.vocabulary import Vocabulary
from smalti.lm.xar import XAR
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

SIZES = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "channels": 3, "grid": (4, 4)}
KINDS = [{"kind": "cell", "side": 2}, {"kind": "subsample"}, {"kind": "scale"}, {"kind": "image"}]
WORDS = ["a red circle", "a blue square", "two red square"]


def model(**changes) -> XAR:
    """A small model all of whose weights are random, of 5 classes by default."""
    torch.manual_seed(3)
    vocabulary = changes.pop("vocabulary", Vocabulary())
    found = XAR.build(vocabulary, **SIZES | {"entity": KINDS[0], "classes": 5} | changes).eval()
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(std=0.2)
    return found


def drawn(found: XAR, count: int, seed: int = 1) -> DrawnNoise:
    """A seed of its own for every picture."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    return DrawnNoise(generators, found.entities.sizes, found.config.channels)


def recorded(found: XAR, count: int, steps: int) -> RecordedNoise:
    shapes = [(count, size, found.config.channels) for size in found.entities.sizes]
    return RecordedNoise([torch.randn(s) for s in shapes], [torch.randn(steps - 1, *s) for s in shapes])


@torch.no_grad()
def by_hand(found: XAR, wanted, noise: RecordedNoise, steps: int, guidance: float) -> torch.Tensor:
    """Whole passes without a memory, both halves always, score and drift as they are published."""
    times = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    halves = [found.condition(wanted), found.condition([None] * len(wanted))]
    done = torch.zeros(len(wanted), 0, 3, dtype=torch.float64)
    count = found.entities.count
    for entity in range(count):
        state = noise.start[entity].double()
        scale = 1 + (guidance - 1) * entity / (count - 1) if count > 1 else guidance
        for step in range(steps):
            time, dt = times[step], times[step + 1] - times[step]
            each = torch.tensor([[0.0] * entity + [time]]).expand(len(wanted), -1)
            tokens = torch.cat([done, state], dim=1).float()
            drifts = []
            for half in halves:
                velocity = found.velocity(tokens, each, half)[:, done.shape[1] :].double()
                score = -((1 - time) * velocity + state) / time
                drifts.append(velocity - 0.5 * 2 * time * score)
            state = state + (drifts[1] + scale * (drifts[0] - drifts[1])) * dt
            if step < steps - 1:
                state = state + math.sqrt(2 * time) * math.sqrt(-dt) * noise.steps[entity][step]
        done = torch.cat([done, state], dim=1)
    return found.entities.join(done).float()


@pytest.mark.parametrize("guidance", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("entity", KINDS, ids=lambda entity: entity["kind"])
def test_it_is_the_published_equation_on_whole_passes(entity, guidance):
    found, wanted = model(entity=entity), [1, None]
    noise = recorded(found, 2, 3)
    latents = sample_latents(found, wanted, noise, XARSampling(3, guidance))
    assert (latents.shape, latents.dtype) == ((2, 3, 4, 4), torch.float32)
    torch.testing.assert_close(latents, by_hand(found, wanted, noise, 3, guidance), atol=2e-4, rtol=2e-4)


def evaluations(found: XAR, guidance: float, steps: int) -> list[tuple[int, int]]:
    """Rows and tokens of every evaluation, for two pictures."""
    seen, whole = [], found.velocity

    def watched(tokens, *rest):
        seen.append(tuple(tokens.shape[:2]))
        return whole(tokens, *rest)

    found.velocity = watched
    sample_latents(found, [1, 2], drawn(found, 2), XARSampling(steps, guidance))
    return seen


def test_the_half_without_condition_is_left_out_where_it_counts_for_nothing():
    assert evaluations(model(), 1.0, 2) == [(2, 4), (2, 4)] + [(2, 8), (2, 4)] * 3
    assert evaluations(model(), 2.0, 2) == [(2, 4), (2, 4)] + [(4, 8), (4, 4)] * 3
    assert evaluations(model(entity={"kind": "image"}), 2.0, 2) == [(4, 16)] * 2


@pytest.mark.parametrize("entity", KINDS, ids=lambda entity: entity["kind"])
def test_a_picture_does_not_depend_on_its_batch(entity):
    found, wanted, sampling = model(entity=entity), [1, 2, None, 4], XARSampling(2, 2.0)
    together = sample_latents(found, wanted, drawn(found, 4), sampling)
    for number in (0, 3):
        alone = sample_latents(found, wanted[number : number + 1], drawn(found, 1, 1 + number), sampling)
        torch.testing.assert_close(alone[0], together[number], atol=1e-4, rtol=1e-4)
    again = sample_latents(found, wanted, drawn(found, 4), sampling)
    assert torch.equal(again, together)
    assert not torch.allclose(sample_latents(found, wanted, drawn(found, 4, 9), sampling), together)


def test_guidance_grows_from_entity_to_entity():
    sampling = XARSampling(40, 2.5)
    assert [sampling.scale(entity, 4) for entity in range(4)] == [1.0, 1.5, 2.0, 2.5]
    assert sampling.scale(0, 1) == 2.5
    found = model()
    first = [sample_latents(found, [1], drawn(found, 1), XARSampling(2, guidance)) for guidance in (1.0, 3.0)]
    torch.testing.assert_close(first[0][..., :2, :2], first[1][..., :2, :2])  # the first cell is not guided
    assert not torch.allclose(first[0][..., :2, 2:], first[1][..., :2, 2:])


def test_times_are_the_published_ones():
    times = XARSampling(4).times()
    assert [int(1000 * torch.tensor(time)) for time in times] == [1000, 680, 360, 40, 0]
    assert XARSampling() == XARSampling(40, 2.7)
    assert XARSampling(2).times() == [1.0, 0.04, 0.0]


def test_an_exact_velocity_leads_to_the_latents():
    """Where one picture is all there is, ``v = (x_t - x) / t`` is known, and every step ends on the picture."""
    found, latents = model(entity={"kind": "image"}), torch.randn(1, 3, 4, 4)
    clean = found.entities.cut(latents)
    found.velocity = lambda tokens, times, *rest: (tokens - clean) / times[..., None]
    reached = sample_latents(found, [1], drawn(found, 1), XARSampling(100, 1.0))
    torch.testing.assert_close(reached, latents, atol=0.2, rtol=0)


def test_a_model_draws_with_its_own_settings():
    assert model_sampling(model(sampling={"steps": 3, "guidance": 1.5})) == XARSampling(3, 1.5)
    found = model(sampling={"steps": 3, "guidance": 1.5})
    own = sample_latents(found, [1], drawn(found, 1))
    assert torch.equal(own, sample_latents(found, [1], drawn(found, 1), XARSampling(3, 1.5)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 1}, "sampling of xAR needs steps >= 2, got 1; 40 is usual"),
        ({"guidance": -1.0}, "needs a finite guidance >= 0, got -1.0; 1 is off"),
        ({"guidance": math.inf}, "needs a finite guidance >= 0, got inf"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        XARSampling(**settings)


def test_noise_that_does_not_fit():
    found = model()
    with pytest.raises(ValueError, match=r"noise of an entity must be \[2, 4, 3\] here, got \[1, 4, 3\]; draw it for"):
        sample_latents(found, [1, 2], drawn(found, 1), XARSampling(2))
    with pytest.raises(
        ValueError, match="must be recorded for all entities and steps, got none for step 2 of entity 0"
    ):
        sample_latents(found, [1], recorded(found, 1, 2), XARSampling(3))
    short = recorded(found, 1, 2)
    with pytest.raises(ValueError, match="got none for step 0 of entity 1; record a run of the same sampling"):
        sample_latents(found, [1], RecordedNoise(short.start[:1], short.steps), XARSampling(2))


def space() -> TokenizerLatents:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    coded = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=3, codebook_size=16), ConvDecoder(**parts), 8)
    return TokenizerLatents(coded, [0.1, 0.0, -0.1], [0.5, 1.0, 2.0])


def named(found: XAR) -> XAR:
    """With the fingerprint of the latent space."""
    found.config.tokenizer_fingerprint = space().fingerprint()
    found.config.sampling = {"steps": 2, "guidance": 2.0}
    return found


def pipeline() -> XARPipeline:
    """Of sentences."""
    return XARPipeline(space(), named(model(vocabulary=Vocabulary.train(WORDS), classes=0)))


def test_pictures_of_sentences_do_not_depend_on_the_batch():
    pipe = pipeline()
    together = pipe.generate(WORDS, 3, progress=False)
    assert (together.shape, together.dtype) == ((3, 3, 8, 8), torch.float32)
    assert -1 <= float(together.min()) <= float(together.max()) <= 1
    torch.testing.assert_close(pipe.generate(WORDS, 3, batch_size=1, progress=False), together, atol=1e-4, rtol=1e-4)
    assert not torch.equal(pipe.generate(WORDS, 4, progress=False), together)
    assert pipe(WORDS[0], progress=False)[0].size == (8, 8)


def test_prompts_that_the_model_cannot_read():
    with pytest.raises(ValueError, match="zebra"):
        pipeline().generate([WORDS[0], "a zebra"], progress=False)
    pipe = XARPipeline(space(), named(model()))
    assert len(pipe.generate(["1", "4"], progress=False)) == 2
    with pytest.raises(ValueError, match=r"draws classes in \[0, 5\), got '5'; pass a number of those"):
        pipe.generate(["1", "5"], progress=False)
    with pytest.raises(ValueError, match=r"draws classes in \[0, 5\), got 'red'"):
        pipe.generate("red", progress=False)


def test_a_saved_pipeline_draws_the_same(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "model")
    assert set(json.loads((tmp_path / "model" / "model_index.json").read_text())) >= {"latents", "xar"}
    read = XARPipeline.from_pretrained(tmp_path / "model")
    before = pipe.generate(WORDS, seeded(5, 3), progress=False)
    assert torch.equal(read.generate(WORDS, seeded(5, 3), progress=False), before)
    shutil.rmtree(tmp_path / "model" / "latents")
    with pytest.raises(FileNotFoundError, match="should hold an xAR model but lacks latents; check the path or train"):
        XARPipeline.from_pretrained(tmp_path / "model")


def test_a_model_of_other_latents():
    found = named(model())
    other = TokenizerLatents(space().tokenizer, [0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match=r"was trained on the latents of \w+, got those of \w+; take the latent space"):
        XARPipeline(other, found)
