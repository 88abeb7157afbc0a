"""ViLex: tokens and their prefixes, and prompts that a real Stable-Diffusion-shaped pipeline takes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from smalti.generation.loading import load_pipeline
from smalti.generation.vilex import ViLex, ViLexPrompts, tail_drop
from smalti.tokenizers.vision import VisionTower


@pytest.fixture(scope="module")
def pipeline(stable_diffusion_folder):
    found = load_pipeline(StableDiffusionPipeline, stable_diffusion_folder, {"text_encoder": CLIPTextModel})
    found.set_progress_bar_config(disable=True)
    return found


def build(count=4, dim=16, **options) -> ViLex:
    torch.manual_seed(0)
    return ViLex(VisionTower(16, 4, 16, 2, 2, 32), dim, count, 2, **options).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


def encode(pipeline, *prompts):
    ids = pipeline.tokenizer(list(prompts), padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(ids)[0]


def test_the_first_tokens_do_not_depend_on_their_number(images):
    vilex = build()
    tokens = vilex.tokens(images)
    assert tokens.shape == (2, 4, 16)
    for count in range(1, 5):
        assert torch.allclose(vilex.tokens(images, count), tokens[:, :count], atol=1e-6)
    assert torch.equal(vilex(images), tokens)
    assert tokens.std(-1).mean().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1], atol=1e-3)


def test_tail_drop_keeps_prefixes_of_every_length_alike():
    tokens = torch.arange(12.0).view(3, 4, 1)
    generator, lengths = torch.Generator().manual_seed(0), Counter[int]()
    for _ in range(400):
        kept = tail_drop(tokens, generator)
        assert all(torch.equal(part, row[: len(part)]) for part, row in zip(kept, tokens, strict=True))
        lengths.update(map(len, kept))
    assert sorted(lengths) == [1, 2, 3, 4]
    assert all(250 < count < 350 for count in lengths.values())  # 300 expected, deviation 15


def test_a_prompt_without_tokens_is_the_words_alone(pipeline):
    prompts = ViLexPrompts(build(), pipeline.tokenizer, pipeline.text_encoder)
    nothing = [torch.zeros(0, 16)] * 2
    assert torch.allclose(prompts.write(nothing, ["red box", ""]), encode(pipeline, "red box", ""), atol=1e-6)
    assert torch.allclose(prompts.write(nothing), encode(pipeline, "", ""), atol=1e-6)


def test_tokens_that_are_words_make_the_prompt_of_those_words(pipeline):
    """The input space: the embedding of a word in the place of a token reads as that word."""
    prompts = ViLexPrompts(build(), pipeline.tokenizer, pipeline.text_encoder)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    red, box = (pipeline.tokenizer(word, add_special_tokens=False).input_ids for word in ("red", "box"))
    assert (len(red), len(box)) == (1, 3)
    expected = encode(pipeline, "red box", "box red")
    found = prompts.write([table[red], table[box]], ["box", "red"])  # of different lengths in one batch
    assert torch.allclose(found, expected, atol=1e-6)


def test_words_change_nothing_before_them(pipeline, images):
    """The text encoder is causal: start token and tokens stay, what follows changes."""
    prompts = ViLexPrompts(build(), pipeline.tokenizer, pipeline.text_encoder)
    alone, mixed = prompts.prompt(images), prompts.prompt(images, ["red box", "box"])
    assert alone.shape == mixed.shape == (2, 77, 16)
    assert torch.allclose(alone[:, :5], mixed[:, :5], atol=1e-6)
    assert not torch.isclose(alone[:, 5:9], mixed[:, 5:9], atol=1e-4).all(-1).any()
    assert torch.allclose(alone[:, 0], encode(pipeline, "", "")[:, 0], atol=1e-6)
    fewer = prompts.prompt(images, count=2)
    assert torch.allclose(alone[:, :3], fewer[:, :3], atol=1e-6)
    assert not torch.isclose(alone[:, 3:], fewer[:, 3:], atol=1e-5).all(-1).any()


def test_the_text_encoder_stays_as_it_is(pipeline, images):
    before = encode(pipeline, "red")
    ViLexPrompts(build(), pipeline.tokenizer, pipeline.text_encoder).prompt(images)
    assert torch.equal(encode(pipeline, "red"), before)


def test_the_pipeline_draws_from_it(pipeline, images):
    prompts = ViLexPrompts(build(), pipeline.tokenizer, pipeline.text_encoder)

    def draw(states):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        options = {"num_inference_steps": 3, "generator": generators, "output_type": "pt", "guidance_scale": 5.0}
        return pipeline(prompt_embeds=states, negative_prompt=["", ""], **options).images

    with torch.no_grad():
        drawn, mixed = draw(prompts.prompt(images)), draw(prompts.prompt(images, ["red", "red"]))
    assert drawn.shape == (2, 3, 16, 16)
    assert not torch.allclose(drawn, mixed, atol=1e-4)


def test_gradients_reach_vilex_and_no_frozen_text_encoder(pipeline, images):
    vilex, encoder = build(), pipeline.text_encoder.requires_grad_(False)
    ViLexPrompts(vilex, pipeline.tokenizer, encoder).prompt(images, ["red", ""]).square().sum().backward()
    assert all(weight.grad is None for weight in encoder.parameters())
    idle = {name for name, weight in vilex.named_parameters() if weight.grad is None and weight.requires_grad}
    assert not idle
    assert vilex.queries.grad.abs().sum(-1).gt(0).all()
    resting = build(freeze_tower=True)
    assert not any(weight.requires_grad for weight in resting.tower.parameters())
    assert resting.queries.requires_grad


def test_prompts_that_are_too_long(pipeline, images):
    vilex = build(count=75)
    prompts = ViLexPrompts(vilex, pipeline.tokenizer, pipeline.text_encoder)
    assert prompts.room == 75
    assert prompts.prompt(images).shape == (2, 77, 16)
    said = "a prompt has room for 75 tokens, got 75 of a picture and 1 of words; ask for fewer with count or shorten t"
    with pytest.raises(ValueError, match=said):
        prompts.prompt(images, ["", "red"])
    assert prompts.prompt(images, ["", "red"], count=74).shape == (2, 77, 16)
    with pytest.raises(ValueError, match="got 76 of a picture and 0 of words"):
        ViLexPrompts(build(count=76), pipeline.tokenizer, pipeline.text_encoder).prompt(images)
    with pytest.raises(ValueError, match="one text per picture is needed, got 1 for 2 pictures; pass one each"):
        prompts.prompt(images, ["red"], count=1)


def test_a_text_encoder_that_was_told_to_mask_padding(pipeline, images):
    """As the pipeline does it where the configuration asks for it: padding changes nothing before it."""
    encoder = copy.deepcopy(pipeline.text_encoder)
    encoder.config.use_attention_mask = True
    vilex = build()
    found = ViLexPrompts(vilex, pipeline.tokenizer, encoder).prompt(images)
    plain = ViLexPrompts(vilex, pipeline.tokenizer, pipeline.text_encoder).prompt(images)
    assert torch.allclose(found[:, :6], plain[:, :6], atol=1e-6)
    assert not torch.allclose(found[:, 7:], plain[:, 7:], atol=1e-4)


def test_folder(images, tmp_path):
    vilex = build(scale=0.5, freeze_tower=True)
    vilex.save_pretrained(tmp_path / "vilex")
    loaded = ViLex.from_pretrained(tmp_path / "vilex")
    assert torch.equal(loaded.tokens(images), vilex.tokens(images))
    assert (loaded.count, loaded.dim) == (4, 16)
    assert not any(weight.requires_grad for weight in loaded.tower.parameters())
    (tmp_path / "vilex" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"ViLex was expected in .*vilex, which has no config.json; check t"):
        ViLex.from_pretrained(tmp_path / "vilex")


def test_what_does_not_fit(pipeline, images):
    vilex = build()
    with pytest.raises(ValueError, match=r"count must lie in \[1, 4\], the tokens that were learned, got 5"):
        vilex.tokens(images, 5)
    with pytest.raises(ValueError, match=r"count must lie in \[1, 4\], the tokens that were learned, got 0"):
        vilex.tokens(images, 0)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 16, 16\] for this tower, got \[2, 3, 8, 8\]; resiz"):
        vilex.tokens(images[..., :8, :8])
    with pytest.raises(ValueError, match=r"ViLex needs count >= 1 and scale > 0, got 0 and 0.02; 75 and 0.02 are usu"):
        build(count=0)
    with pytest.raises(ValueError, match=r"got 4 and 0; 75 and 0.02 are usual"):
        build(scale=0)
    with pytest.raises(ValueError, match="these tokens have the width 12, got a text encoder of width 16; take the t"):
        ViLexPrompts(build(dim=12), pipeline.tokenizer, pipeline.text_encoder)
