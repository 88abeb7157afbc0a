import pytest
import torch

from smalti.bridge.unitok import UNITOK
from smalti.bridge.unitok import tokenizer as unitok
from smalti.tokenizers.component import build
from smalti.tokenizers.vitamin import VITAMIN_XLARGE, ViTaminDecoder, ViTaminEncoder, ViTaminTower

TINY = {"channels": (4, 8), "blocks": (2, 1), "layers": 2, "heads": 2}


def millions(module):
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def test_published_numbers_of_parameters():
    """UniTok counts 696 M in all, 332 M of them in its encoder and 352 M in its decoder."""
    with torch.device("meta"):
        tokenizer, tower = unitok(UNITOK), ViTaminTower(256, 1152, **VITAMIN_XLARGE)
    assert [int(millions(part)) for part in (tokenizer, tokenizer.encoder, tokenizer.decoder)] == [696, 332, 352]
    assert tokenizer.spec.layout.shape == (16, 16)
    assert (tokenizer.encoder.dim, tower.width, tower.grid) == (1024, 1152, 16)
    assert (tokenizer.narrow.heads, tokenizer.widen.heads) == (16, 16)


@pytest.mark.parametrize("sides", [(16, 16), (32, 48)])
def test_encoder_and_decoder_are_mirrors(sides):
    encoder, decoder = ViTaminEncoder(16, **TINY), ViTaminDecoder(16, **TINY)
    features = encoder(torch.rand(2, 3, *sides))
    assert encoder.stride == decoder.stride == 16
    assert features.shape == (2, 16, sides[0] // 16, sides[1] // 16)
    assert decoder(features).shape == (2, 3, *sides)
    assert decoder.last_layer.shape == (3, 4, 3, 3)


def test_gradients_reach_every_weight():
    encoder, decoder = ViTaminEncoder(16, **TINY), ViTaminDecoder(16, **TINY)
    decoder(encoder(torch.randn(2, 3, 64, 64))).square().mean().backward()
    weights = [*encoder.named_parameters(), *decoder.named_parameters()]
    assert not [name for name, weight in weights if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize("part", [ViTaminEncoder(16, **TINY), ViTaminDecoder(16, **TINY), ViTaminTower(32, 16, **TINY)])
def test_a_part_is_rebuilt_from_its_spec(part):
    again = build(part.to_spec())
    again.load_state_dict(part.state_dict())
    images = torch.rand(1, 16 if isinstance(part, ViTaminDecoder) else 3, 32, 32)
    for found, expected in zip(again.parameters(), part.parameters(), strict=True):
        assert torch.equal(found, expected)
    if not isinstance(part, ViTaminTower):
        assert torch.equal(again(images), part(images))


def test_a_tower_runs_in_pieces():
    tower, images = ViTaminTower(32, 16, **TINY), torch.rand(2, 3, 32, 32) * 2 - 1
    whole = tower.run(tower.stem(images), 0, 2)
    torch.testing.assert_close(tower.run(tower.run(tower.stem(images), 0, 1), 1, 2), whole)
    assert tower.on_grid(whole).shape == (2, tower.grid**2, 16)
    torch.testing.assert_close(tower.pool(whole), whole.mean(1))
    assert tower.layer(1) is tower.layers[1]
    count = sum(weight.requires_grad for weight in tower.parameters())
    tower.freeze_pooling()
    assert sum(weight.requires_grad for weight in tower.parameters()) == count


def test_a_tower_knows_the_statistics_of_its_images():
    """One of other statistics sees an image as the default one sees the image that those make of it."""
    plain = ViTaminTower(32, 16, **TINY, mean=[0.5] * 3, std=[0.5] * 3)
    tower = ViTaminTower(32, 16, **TINY)
    tower.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    torch.testing.assert_close(tower.stem(images * 2 - 1), plain.stem((images - mean) / std))


def test_the_two_gelus_differ_a_little():
    tanh, exact = ViTaminEncoder(16, **TINY), ViTaminEncoder(16, **TINY, exact=True)
    exact.load_state_dict(tanh.state_dict())
    images = torch.randn(2, 3, 32, 32)
    difference = float((tanh(images) - exact(images)).detach().abs().max())
    assert 0 < difference < 1e-2


def test_refusals():
    for part, first in ((ViTaminEncoder, ()), (ViTaminDecoder, ()), (ViTaminTower, (32,))):
        with pytest.raises(ValueError, match=r"every stage has channels and blocks, got 2 and 1 numbers; give as many"):
            part(*first, 16, **{**TINY, "blocks": (2,)})
    with pytest.raises(ValueError, match=r"image_size must be a multiple of the stride 16, got 40; change either"):
        ViTaminTower(40, 16, **TINY)
    with pytest.raises(ValueError, match=r"convolutions look beyond a patch, got a request for patches alone; use"):
        ViTaminTower(32, 16, **TINY).patches(torch.zeros(1, 3, 32, 32))
