"""Diffusion decoders: guidance, seeds, padding, what rests, folders, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from smalti.generation.conditioning import CodeCondition
from smalti.generation.detokenizers import Detokenizer, each, load_decoder, normal
from smalti.generation.diffusion import DecoderSampling, DiffusionDecoder, embedding_width
from smalti.generation.latents import AutoencoderLatents
from smalti.tokenizers.codes import PADDING, Codes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.features import GridReader
from smalti.tokenizers.lavit import LavitTokenizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.slot import SlotTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

SIDE = 16
SHAPE = {"width": 8, "multipliers": (1, 1, 2), "blocks": 1}
FLOW = FlowMatchEulerDiscreteScheduler


def tower(layers=2):
    return VisionTower(SIDE, patch_size=4, width=16, layers=layers, heads=2)


def queries(family, quantizer):
    """Without pixels of their own, as released."""
    return family(tower(), QFormer(6, 16, 2, 2, 32, 16, reading="attention", dropout=0.0), quantizer)


def lavit():
    reader = GridReader(16, 16, 4, layers=1, heads=2)
    return LavitTokenizer(tower(), GradientQuantizer(4, 16), reader, ConvDecoder(8, **SHAPE), 2, 2)


FAMILIES = {
    "vq": lambda: VQTokenizer(ConvEncoder(8, **SHAPE), VectorQuantizer(4, 16), ConvDecoder(8, **SHAPE), SIDE),
    "dual": lambda: DualTokenizer(
        tower(4), VectorQuantizer(8, 16), VectorQuantizer(8, 12), ConvDecoder(16, **SHAPE), 3, 2
    ),
    "seed": lambda: queries(SeedTokenizer, VectorQuantizer(4, 16)),
    "slot": lambda: queries(SlotTokenizer, VectorQuantizer(4, 16, depth=2)),
    "lavit": lavit,
}


def coded(family):
    torch.manual_seed(0)
    return FAMILIES[family]().eval().requires_grad_(False)


def transformer(side=SIDE, channels=3, patch=4, **options):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "norm_num_groups": 1}
    shape = {"in_channels": channels, "out_channels": channels, "sample_size": side, "patch_size": patch}
    found = PixArtTransformer2DModel(**(sizes | shape | {"cross_attention_dim": 16} | options))
    torch.nn.init.normal_(found.proj_out.weight, std=0.2)
    return found


def unet(side=SIDE, channels=3):
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 4}
    shape = {"sample_size": side, "in_channels": channels, "out_channels": channels, "cross_attention_dim": 16}
    return UNet2DConditionModel(**blocks, **sizes, **shape)


def codes_of(tokenizer, count=3):
    if tokenizer.spec.dynamic:
        return dynamic(tokenizer, [5, 9, 7][:count])
    return tokenizer.encode(torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def dynamic(tokenizer, lengths, positions=None):
    """Codes of pictures with so many positions each, in no more positions than asked for."""
    ids = torch.full((len(lengths), positions or max(lengths), tokenizer.spec.depth), PADDING)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.arange(length)[:, None] % 16
    return Codes(ids, (ids != PADDING).all(-1), tokenizer.spec)


def decoder(family="seed", denoiser=None, scheduler=None, **options):
    tokenizer = coded(family)
    torch.manual_seed(1)
    return DiffusionDecoder.build(tokenizer, denoiser or transformer(), scheduler or FLOW(), **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("denoiser", [transformer, unet])
def test_any_family_and_network_draws_pictures(family, denoiser):
    model = decoder(family, denoiser(), sampling=DecoderSampling(3, 2.0))
    codes, generator = codes_of(model.tokenizer), torch.Generator().manual_seed(0)
    pictures = model.decode(codes, generator)
    assert pictures.shape == (3, 3, SIDE, SIDE)
    assert pictures.dtype == torch.float32
    assert -1 <= float(pictures.min()) < float(pictures.max()) <= 1
    assert not torch.equal(pictures, model.decode(codes, generator))  # other noise
    again = model.decode(codes, torch.Generator().manual_seed(0))
    assert torch.equal(pictures, again)


@pytest.mark.parametrize("scheduler", [FLOW(), EulerAncestralDiscreteScheduler(), DDIMScheduler()])
def test_a_picture_does_not_depend_on_its_batch(scheduler):
    model = decoder(scheduler=scheduler)
    codes = codes_of(model.tokenizer)
    together = model.decode(codes, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    alone = torch.cat([model.decode(codes[at : at + 1], generator) for at in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    chosen = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    named = model.decode(codes, chosen)
    other = model.decode(codes[1:2], [torch.Generator().manual_seed(8)])
    torch.testing.assert_close(named[1:2], other, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="one generator per picture is needed, got 1 for 3 pictures; pass one"):
        model.decode(codes, [torch.Generator()])


def test_torchs_own_numbers_decide_where_no_generator_does():
    model = decoder()
    codes = codes_of(model.tokenizer)
    torch.manual_seed(3)
    first = model.decode(codes)
    torch.manual_seed(3)
    assert torch.equal(first, model.decode(codes))


@pytest.mark.parametrize("family", ["seed", "lavit"])
def test_guidance_1_is_the_conditional_model(family):
    """Against a loop over the network that knows of no guidance."""
    model = decoder(family, sampling=DecoderSampling(4, 1.0))
    codes, seed = codes_of(model.tokenizer), 11
    found = model.decode(codes, torch.Generator().manual_seed(seed))

    memory = model.condition(model.tokenizer.embed(codes), codes.mask)
    state = normal(each(torch.Generator().manual_seed(seed), 3), 3, (3, SIDE, SIDE))
    scheduler = FLOW()
    scheduler.set_timesteps(4)
    for time, start, end in zip(scheduler.timesteps, scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        extra = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        with torch.no_grad():
            velocity = model.denoiser(
                state, memory, time.expand(3), encoder_attention_mask=codes.mask, return_dict=False, **extra
            )[0]
        state = state + (end - start) * velocity
    torch.testing.assert_close(found, state.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_guidance_is_an_extrapolation_from_no_codes():
    model = decoder(sampling=DecoderSampling(1, 3.0))
    codes = codes_of(model.tokenizer)
    asked = replace(model.sampling, guidance=1.0)
    free = replace(model.sampling, guidance=0.0)
    found = {}
    for name, sampling in {"guided": model.sampling, "asked": asked, "free": free}.items():
        model.sampling = sampling
        found[name] = model.decode(codes, torch.Generator().manual_seed(0))
    inside = torch.stack([*found.values()]).abs().amax(0) < 1
    assert int(inside.sum()) > 100
    expected = found["free"] + 3 * (found["asked"] - found["free"])
    torch.testing.assert_close(found["guided"][inside], expected[inside], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found["asked"], found["free"])
    ids = (codes.ids + 1) % 16
    model.sampling = free  # without codes it does not matter which codes
    assert torch.equal(found["free"], model.decode(replace(codes, ids=ids), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("denoiser", [transformer, unet])
def test_padding_has_no_influence(denoiser):
    model = decoder("lavit", denoiser(), sampling=DecoderSampling(3, 2.0))
    tokenizer = model.tokenizer
    short, long = dynamic(tokenizer, [5, 9], 9), dynamic(tokenizer, [5, 9], tokenizer.spec.positions)
    first = model.decode(short, torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, model.decode(long, torch.Generator().manual_seed(0)), atol=1e-5, rtol=1e-5)

    embedded = tokenizer.embed(long)
    for filling in (float("nan"), 1e6):
        filled = embedded.masked_fill(~long.mask[..., None], filling)
        memory = model.condition(filled, long.mask)
        assert torch.equal(memory[long.mask], model.condition(embedded, long.mask)[long.mask])
        noisy, times = torch.randn(2, 3, SIDE, SIDE), torch.full((2,), 500.0)
        with torch.no_grad():
            said = model.predict(noisy, times, memory, long.mask)
            moved = memory + 10 * (~long.mask[..., None]).float()
            assert torch.equal(said, model.predict(noisy, times, moved, long.mask))


def test_latents_of_an_autoencoder_are_denoised_too(tmp_path):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "mid_block_add_attention": False}
    space = AutoencoderLatents(AutoencoderKL(**blocks, **sizes), 32, 0.5)
    model = decoder(denoiser=transformer(16, 4), space=space)
    assert (model.image_size, model.grid) == ((32, 32), (4, 16, 16))
    codes = codes_of(model.tokenizer)
    pictures = model.decode(codes, torch.Generator().manual_seed(0))
    assert pictures.shape == (3, 3, 32, 32)
    assert not any("autoencoder" in name for name, _ in model.named_parameters())  # it rests
    model.save_pretrained(tmp_path / "decoder")
    read = load_decoder(tmp_path / "decoder", model.tokenizer)
    assert torch.equal(pictures, read.decode(codes, torch.Generator().manual_seed(0)))
    assert model.clean(pictures).shape == (3, 4, 16, 16)


@pytest.mark.parametrize("denoiser", [transformer, unet])
def test_a_folder_holds_all_but_the_tokenizer(denoiser, tmp_path):
    model = decoder(denoiser=denoiser(), scheduler=DDIMScheduler(prediction_type="v_prediction"))
    codes = codes_of(model.tokenizer)
    expected = model.decode(codes, torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "decoder")
    assert sorted(path.name for path in (tmp_path / "decoder").iterdir()) == [
        "condition",
        "decoder.json",
        "denoiser",
        "scheduler",
    ]
    read = Detokenizer.from_pretrained(tmp_path / "decoder", model.tokenizer)
    assert isinstance(read, DiffusionDecoder)
    assert read.fingerprint() == model.fingerprint()
    assert not read.training
    assert torch.equal(expected, read.decode(codes, torch.Generator().manual_seed(0)))
    read.sampling = DecoderSampling(3)
    assert read.fingerprint() != model.fingerprint()


def test_a_scheduler_can_be_exchanged_for_one_of_the_same_prediction():
    model = decoder(scheduler=DDIMScheduler(prediction_type="v_prediction"), sampling=DecoderSampling(30))
    codes = codes_of(model.tokenizer)
    first = model.decode(codes, torch.Generator().manual_seed(0))
    model.scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    assert model.decode(codes, torch.Generator().manual_seed(0)).shape == first.shape
    said = "trained to predict 'v_prediction', got a FlowMatchEulerDiscreteScheduler of prediction type 'flow'"
    with pytest.raises(ValueError, match=said):
        model.scheduler = FLOW()
    assert isinstance(model.scheduler, DPMSolverMultistepScheduler)


def test_a_changed_scheduler_folder_is_refused(tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "decoder")
    DDIMScheduler().save_pretrained(tmp_path / "decoder" / "scheduler")
    with pytest.raises(ValueError, match="trained to predict 'flow', got a DDIMScheduler of prediction type 'epsilon'"):
        load_decoder(tmp_path / "decoder", model.tokenizer)


def test_another_tokenizer_is_refused(tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "decoder")
    torch.manual_seed(9)
    other = FAMILIES["seed"]().eval()
    said = f"trained for the codes of tokenizer {model.tokenizer_fingerprint}, got SeedTokenizer {other.fingerprint()}"
    with pytest.raises(ValueError, match=said):
        load_decoder(tmp_path / "decoder", other)
    with pytest.raises(ValueError, match=said):
        model.check_tokenizer(other)
    model.check_tokenizer(model.tokenizer)
    with pytest.raises(ValueError, match="codes must keep this tokenizer's spec"):
        model.decode(codes_of(coded("dual")))


def test_embeddings_of_another_width_are_refused():
    tokenizer = coded("slot")
    condition = CodeCondition(8, 6, 16)
    said = "trained on embeddings of width 8, got SlotTokenizer with embeddings of width 4; take the tokenizer"
    with pytest.raises(ValueError, match=said):
        DiffusionDecoder(tokenizer, transformer(), condition, FLOW())
    assert [embedding_width(coded(name)) for name in ("dual", "seed", "lavit")] == [16, 4, 4]
    said = "embeddings must have the width 8 that this decoder was trained with, got 4; take the tokenizer"
    with pytest.raises(ValueError, match=said):
        condition(torch.zeros(1, 6, 4), torch.ones(1, 6, dtype=torch.bool))


MISFITS = {
    "channels": (
        lambda: transformer(channels=4),
        "pictures have 3 channels, got a denoiser of in_channels 4; set it to 3",
    ),
    "variance": (lambda: transformer(out_channels=6), "pictures have 3 channels, got a denoiser of out_channels 6"),
    "patches": (lambda: transformer(patch=5), "whole patches, got patches of 5 for a side of 16; choose a patch_size"),
    "conditions": (
        lambda: transformer(use_additional_conditions=True),
        "codes and times alone, got use_additional_conditions True; set it to False",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_denoisers_that_do_not_fit_are_refused(name):
    denoiser, said = MISFITS[name]
    with pytest.raises(ValueError, match=said):
        decoder(denoiser=denoiser())


def test_parts_of_other_sizes_are_refused():
    model = decoder()
    with pytest.raises(ValueError, match="width that the denoiser attends to, 16, got 24; change either"):
        DiffusionDecoder(model.tokenizer, transformer(), CodeCondition(4, 6, 24), FLOW())
    with pytest.raises(ValueError, match=r"this decoder draws pictures of 16x16 pixels .* got 8x8; resize them"):
        model.clean(torch.zeros(1, 3, 8, 8))
    for wrong, said in (
        ({"steps": 0}, "draws in steps >= 1, got 0"),
        ({"guidance": -1.0}, "finite and >= 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            DecoderSampling(**wrong)


def test_damaged_folders_are_refused(tmp_path):
    model = decoder()
    with pytest.raises(FileNotFoundError, match=r"should hold a decoder but lacks decoder\.json"):
        load_decoder(tmp_path, model.tokenizer)
    folder = tmp_path / "decoder"
    model.save_pretrained(folder)
    about = json.loads((folder / "decoder.json").read_text())
    for change, said in (
        ({"_class_name": "Painter"}, "does not describe a decoder .*Painter"),
        ({"denoiser": "Mixer"}, "does not describe a DiffusionDecoder .*unknown denoiser 'Mixer'"),
        ({"sampling": {"speed": 3}}, "does not describe a DiffusionDecoder .*speed"),
    ):
        (folder / "decoder.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=said):
            load_decoder(folder, model.tokenizer)
    (folder / "decoder.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a decoder"):
        load_decoder(folder, model.tokenizer)
    (folder / "decoder.json").write_text(json.dumps(about))
    (folder / "denoiser" / "diffusion_pytorch_model.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match="does not hold a readable PixArtTransformer2DModel"):
        load_decoder(folder, model.tokenizer)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Nothing"}')
    model.denoiser.save_pretrained(folder / "denoiser")
    with pytest.raises(ValueError, match="does not describe a scheduler of diffusers"):
        load_decoder(folder, model.tokenizer)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a scheduler was expected in .* lacks scheduler_config.json"):
        load_decoder(folder, model.tokenizer)


def test_an_untrained_decoder_has_the_same_shape_and_other_weights():
    model = decoder(sampling=DecoderSampling(2))
    fresh = model.untrained(3)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert fresh.fingerprint() == model.untrained(3).fingerprint() != model.fingerprint()
    assert fresh.sampling == model.sampling
