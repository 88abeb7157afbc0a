"""Stable unCLIP behind codes: the real pipeline from its real folder, tiny and untrained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, StableUnCLIPImg2ImgPipeline
from safetensors.torch import load_file, save_file

from smalti.generation.detokenizers import load_decoder
from smalti.generation.slot_adapters import SlotAdapters
from smalti.generation.unclip import UnCLIPDecoder, UnCLIPSampling, unclip_decoder
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.slot import SlotTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

FAST = UnCLIPSampling(guidance=3.0, steps=3)


def seed_tokenizer(image_dim=5):
    torch.manual_seed(1)
    tower, qformer = VisionTower(16, 4, 16, 2, 2, 32, kind="blip2"), QFormer(3, 16, 1, 2, 32, 16, dropout=0.0)
    return SeedTokenizer(tower, qformer, GradientQuantizer(4, 16), image_dim=image_dim, placed=True).eval()


def slot_tokenizer(token_dim=16, queries=3):
    torch.manual_seed(1)
    tower, qformer = VisionTower(16, 4, 16, 2, 2, 32, kind="dinov2"), QFormer(queries, 16, 1, 2, 32, 6, dropout=0.0)
    released = {"patches_only": True, "narrowed": False, "from_restored": True, "token_dim": token_dim}
    quantizer = VectorQuantizer(16, 8, 2, 4, shared=True)
    return SlotTokenizer(tower, qformer, quantizer, image_dim=5, placed=True, heads=4, **released).eval()


def codes_of(tokenizer, count=3):
    torch.manual_seed(2)
    return tokenizer.encode(torch.rand(count, 3, 16, 16) * 2 - 1)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def decoder(unclip_folder):
    return unclip_decoder(unclip_folder, seed_tokenizer(), sampling=FAST)


@pytest.fixture
def slots(unclip_folder):
    """A decoder whose adapters do something."""
    tokenizer = slot_tokenizer()
    plain = unclip_decoder(unclip_folder, tokenizer, sampling=FAST)
    adapters = SlotAdapters.for_unet(plain.unet).eval()
    torch.manual_seed(3)
    for name, weight in adapters.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return UnCLIPDecoder(tokenizer, plain.pipeline, adapters, FAST)


def test_a_picture_depends_on_its_codes_and_its_seed_alone(decoder):
    codes = codes_of(decoder.tokenizer)
    images = decoder.decode(codes, generators(0, 1, 2))
    assert (images.shape, images.dtype, decoder.image_size) == ((3, 3, 16, 16), torch.float32, (16, 16))
    assert images.abs().max() <= 1
    assert images.std() > 0.1
    alone = decoder.decode(type(codes)(codes.ids[1:2], codes.mask[1:2], codes.spec), generators(1))
    assert torch.allclose(images[1:2], alone, atol=1e-5)
    assert torch.equal(images, decoder.decode(codes, generators(0, 1, 2)))
    assert not torch.allclose(images, decoder.decode(codes, generators(5, 6, 7)), atol=1e-2)


def test_one_generator_gives_a_seed_to_each_picture(decoder):
    codes = codes_of(decoder.tokenizer, 2)
    both = decoder.decode(codes, torch.Generator().manual_seed(0))
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(both, decoder.decode(codes, generators(*seeds)))
    with pytest.raises(ValueError, match="one generator per picture is needed, got 1 for 2 pictures"):
        decoder.decode(codes, generators(0))


def test_the_pipeline_is_asked_as_seed_does(decoder, unclip_folder):
    """Against the pipeline of diffusers with the embedding and nothing else."""
    codes = codes_of(decoder.tokenizer, 1)
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(unclip_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        image_embeds=decoder.tokenizer.image_embedding(codes).detach(),
        prompt=[""],
        generator=generators(4),
        guidance_scale=3.0,
        num_inference_steps=3,
        output_type="pt",
    ).images
    assert torch.allclose(decoder.decode(codes, generators(4)), expected * 2 - 1, atol=1e-5)


def test_guidance_1_is_the_plain_conditional_model(decoder):
    """Against a loop over the UNet alone, without an unconditional half."""
    decoder.sampling = UnCLIPSampling(guidance=1.0, steps=3)
    codes, pipeline = codes_of(decoder.tokenizer, 1), decoder.pipeline
    (generator,) = generators(4)
    with torch.no_grad():
        labels = pipeline.noise_image_embeddings(decoder.tokenizer.image_embedding(codes), 0, generator=generator)
        prompt = pipeline.text_encoder(pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids)[0]
        state = torch.randn(1, 4, 8, 8, generator=generator)
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(3)
        for time in scheduler.timesteps:
            found = decoder.unet(state, time, prompt, class_labels=labels, return_dict=False)[0]
            state = scheduler.step(found, time, state, return_dict=False)[0]
        expected = decoder.vae.decode(state / decoder.vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)
    assert torch.allclose(decoder.decode(codes, generators(4)), expected, atol=1e-5)
    decoder.sampling = UnCLIPSampling(guidance=4.0, steps=3)
    assert not torch.allclose(decoder.decode(codes, generators(4)), expected, atol=1e-2)


def test_a_saved_decoder_draws_the_same_and_keeps_the_layout_of_the_pipeline(decoder, unclip_folder, tmp_path):
    codes = codes_of(decoder.tokenizer, 2)
    decoder.sampling = UnCLIPSampling(guidance=2.0, steps=2, noise_level=5)
    decoder.save_pretrained(tmp_path / "saved")
    loaded = load_decoder(tmp_path / "saved", decoder.tokenizer)
    assert isinstance(loaded, UnCLIPDecoder)
    assert (loaded.sampling, loaded.fingerprint()) == (decoder.sampling, decoder.fingerprint())
    assert torch.equal(loaded.decode(codes, generators(0, 1)), decoder.decode(codes, generators(0, 1)))
    names = {path.name for path in (tmp_path / "saved" / "pipeline").iterdir()}
    assert names == {path.name for path in unclip_folder.iterdir()}
    plain = StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path / "saved" / "pipeline", local_files_only=True)
    for name, weight in decoder.unet.state_dict().items():
        assert torch.equal(weight, plain.unet.state_dict()[name])
    again = unclip_decoder(tmp_path / "saved" / "pipeline", decoder.tokenizer, sampling=decoder.sampling)
    assert torch.equal(again.decode(codes, generators(0, 1)), decoder.decode(codes, generators(0, 1)))


def test_slots_are_drawn_saved_and_loaded(slots, tmp_path):
    codes = codes_of(slots.tokenizer, 2)
    images = slots.decode(codes, generators(0, 1))
    assert torch.allclose(images[:1], slots.decode(first(codes), generators(0)), atol=1e-5)
    slots.save_pretrained(tmp_path / "saved")
    loaded = load_decoder(tmp_path / "saved", slots.tokenizer)
    assert torch.equal(loaded.decode(codes, generators(0, 1)), images)
    assert loaded.fingerprint() == slots.fingerprint()
    named = unclip_decoder(tmp_path / "saved" / "pipeline", slots.tokenizer, tmp_path / "saved" / "adapters", FAST)
    assert torch.equal(named.decode(codes, generators(0, 1)), images)
    shutil.rmtree(tmp_path / "saved" / "adapters")
    with pytest.raises(FileNotFoundError, match=r"SlotAdapters was expected in .*adapters, which has no config.jso"):
        load_decoder(tmp_path / "saved", slots.tokenizer)


def first(codes):
    return type(codes)(codes.ids[:1], codes.mask[:1], codes.spec)


def test_what_slots_are_compared_with(slots):
    """The mean and the slots with a condition; without, the empty prompt's first embedding and as many as slots."""
    codes, pipeline = codes_of(slots.tokenizer, 1), slots.pipeline
    with torch.no_grad():
        asked, free = slots._prompts(codes)
        empty = pipeline.text_encoder(pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids)[0]
        tokens = slots.tokenizer.token_embeddings(codes)
    assert torch.allclose(asked[:, 0], (tokens[:, 0] + tokens[:, 1] + tokens[:, 2]) / 3, atol=1e-6)
    assert torch.equal(asked[:, 1:], tokens)
    assert torch.equal(free, empty[:, [0, 0, 1, 2]])


def test_schedulers_of_the_same_prediction_type_may_take_its_place(decoder):
    codes, before = codes_of(decoder.tokenizer, 2), decoder.fingerprint()
    decoder.scheduler = EulerAncestralDiscreteScheduler.from_config(decoder.scheduler.config)
    drawn = decoder.decode(codes, generators(0, 1))
    assert torch.allclose(drawn[:1], decoder.decode(first(codes), generators(0)), atol=1e-5)
    assert decoder.fingerprint() != before
    with pytest.raises(ValueError, match="trained to predict 'v_prediction', got a DDIMScheduler of prediction type "):
        decoder.scheduler = DDIMScheduler()


def test_a_scheduler_that_was_changed_on_the_disk(decoder, tmp_path):
    decoder.save_pretrained(tmp_path / "saved")
    DDIMScheduler().save_pretrained(tmp_path / "saved" / "pipeline" / "scheduler")
    with pytest.raises(ValueError, match="trained to predict 'v_prediction', got a DDIMScheduler of prediction type "):
        load_decoder(tmp_path / "saved", decoder.tokenizer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance": 0.5}, "guidance must be finite and >= 1, got 0.5; 1 is off, 10 is SEED's"),
        ({"guidance": float("inf")}, "guidance must be finite and >= 1, got inf"),
        ({"steps": 0}, "pictures are drawn in steps >= 1, got 0; 20 is SEED's"),
        ({"noise_level": -1}, "noise_level must be >= 0, got -1; 0 is SEED's"),
    ],
)
def test_sampling_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        UnCLIPSampling(**options)


def test_tokenizers_that_do_not_fit(unclip_folder):
    wide = seed_tokenizer(6)
    with pytest.raises(ValueError, match="the width 5 that the pipeline's image_normalizer takes, got 6 from SeedTok"):
        unclip_decoder(unclip_folder, wide)
    with pytest.raises(ValueError, match="draws from image embeddings, got a SeedTokenizer without; take a SeedToken"):
        unclip_decoder(unclip_folder, seed_tokenizer(0))
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    plain = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=3, codebook_size=16), ConvDecoder(**parts), 8)
    with pytest.raises(ValueError, match="draws from image embeddings, got a VQTokenizer without; take a SeedTokeniz"):
        unclip_decoder(unclip_folder, plain)


def test_codes_and_decoders_of_another_tokenizer(decoder, tmp_path):
    with pytest.raises(ValueError, match="codes must keep this tokenizer's spec"):
        decoder.decode(codes_of(slot_tokenizer()), generators(0, 1, 2))
    decoder.save_pretrained(tmp_path / "saved")
    other = seed_tokenizer()
    with torch.no_grad():
        other.image.out.bias.add_(1)
    with pytest.raises(ValueError, match=r"this decoder was trained for the codes of tokenizer .*, got SeedTokenizer"):
        load_decoder(tmp_path / "saved", other)


def test_a_unet_that_takes_another_width(decoder, unclip_folder, tmp_path):
    shutil.copytree(unclip_folder, tmp_path / "odd")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(unclip_folder, local_files_only=True)
    unet = type(pipeline.unet)(**{**pipeline.unet.config, "projection_class_embeddings_input_dim": 14})
    unet.save_pretrained(tmp_path / "odd" / "unet")
    with pytest.raises(ValueError, match="must have the width 7 that the pipeline's unet takes, got 5 from SeedToken"):
        unclip_decoder(tmp_path / "odd", decoder.tokenizer)


def test_adapters_that_do_not_fit(slots, decoder):
    narrow = slot_tokenizer(token_dim=7)
    with pytest.raises(ValueError, match="token embeddings of the width 16 that the UNet attends to, got 7 from Slot"):
        UnCLIPDecoder(narrow, slots.pipeline, slots.adapters, FAST)
    with pytest.raises(ValueError, match="width 16 that the UNet attends to, got 0 from SeedTokenizer; build that w"):
        UnCLIPDecoder(decoder.tokenizer, slots.pipeline, slots.adapters, FAST)
    many = slot_tokenizer(queries=78)
    with pytest.raises(ValueError, match="an empty prompt has room for 77 slots, got 78; leave the adapters out"):
        UnCLIPDecoder(many, slots.pipeline, slots.adapters, FAST)


def test_numbers_that_do_not_fit(decoder, unclip_folder):
    with pytest.raises(ValueError, match="noise_level must be below 1000 here, got 1000; 0 is usual"):
        unclip_decoder(unclip_folder, decoder.tokenizer, sampling=UnCLIPSampling(noise_level=1000))
    with pytest.raises(ValueError, match="image_size must be a multiple of 8 here, got 12; change it"):
        unclip_decoder(unclip_folder, decoder.tokenizer, image_size=12)
    larger = unclip_decoder(unclip_folder, decoder.tokenizer, sampling=FAST, image_size=24)
    assert larger.decode(first(codes_of(decoder.tokenizer)), generators(0)).shape == (1, 3, 24, 24)


def test_folders_that_cannot_be_read(decoder, unclip_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"should hold a StableUnCLIPImg2ImgPipeline but lacks model_index.js"):
        unclip_decoder(tmp_path / "none", decoder.tokenizer)
    shutil.copytree(unclip_folder, tmp_path / "damaged")
    file = tmp_path / "damaged" / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"weights in .*text_encoder must match its configuration key by key, got .*"):
        unclip_decoder(tmp_path / "damaged", decoder.tokenizer)
    shutil.copytree(unclip_folder, tmp_path / "cut")
    unet = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:500])
    with pytest.raises(ValueError, match="unet does not hold a readable UNet2DConditionModel"):
        unclip_decoder(tmp_path / "cut", decoder.tokenizer)
    shutil.copytree(unclip_folder, tmp_path / "headless")
    (tmp_path / "headless" / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="headless does not hold a readable StableUnCLIPImg2ImgPipeline"):
        unclip_decoder(tmp_path / "headless", decoder.tokenizer)


def test_a_description_that_was_changed(decoder, tmp_path):
    decoder.save_pretrained(tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "decoder.json").read_text())
    del about["image_size"]
    (tmp_path / "saved" / "decoder.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"decoder.json does not describe a UnCLIPDecoder"):
        load_decoder(tmp_path / "saved", decoder.tokenizer)
