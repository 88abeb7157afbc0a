"""Latent spaces: scale, ways back to pixels, folders, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from smalti.generation.latents import (
    AutoencoderLatents,
    LatentSpace,
    TokenizerLatents,
    autoencoder_latents,
    tokenizer_latents,
)
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

SAID_SIZE = r"images must be .*8.* for these latents, got .*12.*; resize or crop them"


def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=3, codebook_size=16), ConvDecoder(**parts), 8)


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "mid_block_add_attention": False}
    return AutoencoderKL(**blocks, **sizes)


def pictures(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8) * 2 - 1


def spaces() -> list[LatentSpace]:
    found = TokenizerLatents(tokenizer())
    found.measure([pictures(), pictures()])
    return [found, AutoencoderLatents(autoencoder(), 8, 0.5)]


@pytest.mark.parametrize("number", [0, 1])
def test_pictures_to_latents_and_back(number, tmp_path):
    space, images = spaces()[number], pictures(2)
    latents = space.encode(images)
    assert latents.shape == (2, space.channels, *space.grid)
    assert space.grid == (4, 4)
    assert space.fingerprint() != spaces()[1 - number].fingerprint()
    assert not latents.requires_grad
    pixels = space.decode(latents)
    assert pixels.shape == images.shape
    assert -1 <= float(pixels.min()) <= float(pixels.max()) <= 1
    torch.testing.assert_close(space.encode(images[1:]), latents[1:])

    space.save_pretrained(tmp_path / "space")
    read = LatentSpace.from_pretrained(tmp_path / "space")
    assert type(read) is type(space)
    assert (read.fingerprint(), read.image_size) == (space.fingerprint(), space.image_size)
    assert torch.equal(read.encode(images), latents)
    assert torch.equal(read.decode(latents), pixels)


def test_latents_of_a_tokenizer_have_mean_0_and_variance_1():
    coded, images = tokenizer(), pictures(16)
    space = TokenizerLatents(coded)
    assert not space.measured
    space.measure(images.split(5))
    assert space.measured
    latents = space.encode(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(3), atol=1e-4, rtol=0)


def test_latents_of_a_tokenizer_are_decoded_through_the_nearest_codes():
    coded, images = tokenizer().eval(), pictures(3)
    space = TokenizerLatents(coded)
    space.measure([images])
    codes = coded.encode(images)
    torch.testing.assert_close(space.decode(space.encode(images)), coded.decode(codes))
    latents = (coded.embed(codes) - space.mean) / space.std  # the codes themselves, and a little beside them
    beside = (latents + 1e-4).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(space.decode(beside), coded.decode(codes))


def test_latents_of_an_autoencoder_are_the_scaled_mean_or_drawn():
    inner, images = autoencoder(), pictures(2)
    space = AutoencoderLatents(inner, 8, 0.25)
    posterior = inner.encode(images).latent_dist
    torch.testing.assert_close(space.encode(images), 0.25 * posterior.mean)
    drawn = space.encode(images, torch.Generator().manual_seed(1))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, 0.25 * (posterior.mean + posterior.std * noise))
    torch.testing.assert_close(space.decode(drawn), inner.decode(drawn / 0.25).sample.clamp(-1, 1))


def test_fingerprints_tell_weights_and_scales_apart():
    first, second = spaces()
    others = [TokenizerLatents(first.tokenizer, [0.0] * 3, [1.0] * 3), AutoencoderLatents(second.autoencoder, 8, 0.6)]
    changed = autoencoder()
    with torch.no_grad():
        changed.quant_conv.bias += 1
    found = [first, second, *others, AutoencoderLatents(changed, 8, 0.5)]
    assert len({space.fingerprint() for space in found}) == 5
    assert AutoencoderLatents(autoencoder(), 8, 0.5).fingerprint() == second.fingerprint()


def test_a_run_goes_on_with_the_same_scale():
    known, other = spaces()
    fresh = TokenizerLatents(tokenizer())
    fresh.restore(known.numbers())
    assert fresh.fingerprint() == known.fingerprint()
    fresh.restore(known.numbers())
    other.restore(other.numbers())
    with pytest.raises(ValueError, match=r"a run must go on with the latents that it began with, .*0.7.* got .*0.5"):
        other.restore({"image_size": 8, "scale": 0.7})


def test_folders_for_configurations(tmp_path):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    autoencoder().save_pretrained(tmp_path / "autoencoder")
    assert tokenizer_latents(str(tmp_path / "tokenizer")).channels == 3
    found = autoencoder_latents(str(tmp_path / "autoencoder"), 8, 0.5)
    assert found.fingerprint() == AutoencoderLatents(autoencoder(), 8, 0.5).fingerprint()
    with pytest.raises(ValueError, match="must hold AutoencoderKL, got VQTokenizer; give the folder of the former"):
        autoencoder_latents(str(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match="holds a tokenizer of class 'AutoencoderKL', which no imported module"):
        tokenizer_latents(str(tmp_path / "autoencoder"))
    with pytest.raises(FileNotFoundError, match=r"AutoencoderKL was expected in .*absent, which has no config.json"):
        autoencoder_latents(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"a tokenizer was expected in .*absent, which is no folder; train it"):
        tokenizer_latents(str(tmp_path / "absent"))
    (tmp_path / "autoencoder" / "diffusion_pytorch_model.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="does not hold a readable AutoencoderKL"):
        autoencoder_latents(str(tmp_path / "autoencoder"))


def test_weights_of_an_autoencoder_that_differ_are_named(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"use_quant_conv": true', '"use_quant_conv": false'))
    with pytest.raises(ValueError, match=r"weights in .* must match its configuration key by key, got .*quant_conv"):
        autoencoder_latents(str(tmp_path))


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"should hold a latent space but lacks latents.json, model; check"):
        LatentSpace.from_pretrained(tmp_path / "absent")
    spaces()[0].save_pretrained(tmp_path / "space")
    for text in ("no json", json.dumps({"kind": "fog"}), json.dumps({"kind": "tokenizer", "scale": 1})):
        (tmp_path / "space" / "latents.json").write_text(text)
        with pytest.raises(ValueError, match=r"latents.json does not describe a latent space \(.*\); save it again"):
            LatentSpace.from_pretrained(tmp_path / "space")


def test_pictures_of_another_size():
    for space in spaces():
        with pytest.raises(ValueError, match=SAID_SIZE):
            space.encode(torch.zeros(1, 3, 12, 12))


def test_a_scale_that_is_not_known():
    space = TokenizerLatents(tokenizer())
    for use in (lambda: space.encode(pictures()), lambda: space.decode(torch.zeros(1, 3, 4, 4)), space.numbers):
        with pytest.raises(ValueError, match="the scale of these latents is not known yet, got no mean and std; call"):
            use()
    with pytest.raises(ValueError, match="measured on at least two of them, got fewer; pass more pictures"):
        space.measure([])


def test_a_tokenizer_of_another_family():
    tower, reader = VisionTower(8, 4, 16, 1, 2), GridReader(16, 8, 4, layers=1, heads=2)
    qformer = QFormer(6, 16, 1, 2, 32, 16, dropout=0.0)
    other = SeedTokenizer(tower, qformer, VectorQuantizer(4, 16), reader, ConvDecoder(8, 8, (1, 1), 1))
    said = (
        r"latents before the quantizer are those of a VQTokenizer with a grid, got a SeedTokenizer whose codes are a "
    )
    with pytest.raises(ValueError, match=said + r"sequence of \(6,\); train a VQTokenizer or take an autoencoder"):
        TokenizerLatents(other)


def test_what_is_no_latent_space():
    with pytest.raises(ValueError, match="latents of 3 channels need as many means and deviations above 0, got 2 and"):
        TokenizerLatents(tokenizer(), [0.0] * 2, [1.0] * 3)
    with pytest.raises(ValueError, match="deviations above 0, got 3 and 3 from 0; measure them again"):
        TokenizerLatents(tokenizer(), [0.0] * 3, [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="image_size must be a multiple of 2 for this autoencoder, got 9"):
        AutoencoderLatents(autoencoder(), 9)
    with pytest.raises(ValueError, match=r"the scale of latents must be above 0, got 0\.0; 1 / their deviation is us"):
        AutoencoderLatents(autoencoder(), 8, 0.0)
