import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.scales import MultiScaleQuantizer
from smalti.tokenizers.tokenflow import SharedMappingQuantizer, TokenFlowTokenizer
from smalti.tokenizers.vision import TransformerDecoder, VisionTower
from smalti.tokenizers.vitamin import ViTaminTower

SHAPE = {"width": 8, "multipliers": (1, 1, 2), "blocks": 1}  # stride 4


def tower(kind="siglip", side=16):
    return VisionTower(side, patch_size=4, width=16, layers=3, heads=2, kind=kind)


def tokenflow(encoder, decoder=None, **options):
    scales = MultiScaleQuantizer(SharedMappingQuantizer(4, 2, 16), [1, 2, encoder.grid])
    decoder = decoder or ConvDecoder(8, **SHAPE)
    return TokenFlowTokenizer(encoder, ConvEncoder(8, **SHAPE), scales, decoder, 1, 2, **options).eval()


def images(side=16):
    return torch.rand(2, 3, side, side) * 2 - 1


def restored(tokenizer, codes):
    return tokenizer._restored(tokenizer.finest(codes))


def test_features_come_from_the_layer_that_is_named():
    encoder = tower()
    tokenizer, pixels = tokenflow(encoder, semantic_layer=1), images()
    learning = [next(encoder.layer(at).parameters()).requires_grad for at in range(3)]
    assert learning == [True, False, False]
    expected = tokenizer.to_semantic(encoder.run(encoder.stem(pixels), 0, 1))
    torch.testing.assert_close(tokenizer._features(pixels)[..., :4], expected)


def test_normed_features_are_the_patches_through_the_last_norm():
    encoder = tower("clip")
    torch.nn.init.normal_(encoder.model.post_layernorm.weight)
    tokenizer, pixels = tokenflow(encoder, semantic_layer=3, normed=True, teacher_dim=5), images()
    normed = encoder.model.post_layernorm(encoder.run(encoder.stem(pixels), 0, 3))[:, 1:]
    torch.testing.assert_close(tokenizer._features(pixels)[..., :4], tokenizer.to_semantic(normed))
    assert all(weight.requires_grad for weight in encoder.parameters())
    codes = tokenizer.encode(pixels)
    assert restored(tokenizer, codes).shape == (2, 16, 5)
    assert tokenizer.pooled(codes) is None


def test_a_class_token_is_seen_by_the_cells_and_given_back_by_none():
    tokenizer = tokenflow(tower(), class_token=True)
    codes = tokenizer.encode(images())
    before = restored(tokenizer, codes)
    assert before.shape == (2, 16, 16)
    assert tokenizer.pooled(codes).shape == (2, 16)
    with torch.no_grad():
        tokenizer.semantic_class.add_(1.0)
    assert not torch.allclose(restored(tokenizer, codes), before)


def test_a_tower_without_a_last_norm_pools_what_is_restored():
    tokenizer = tokenflow(ViTaminTower(64, 16, (4, 8), (1, 1), layers=2, heads=2), semantic_layer=2)
    codes = tokenizer.encode(images(64))
    torch.testing.assert_close(tokenizer.pooled(codes), restored(tokenizer, codes).mean(1))


def test_pixels_of_another_stride_are_resized_to_the_images():
    """Three patches of 5 pixels are three cells of 4, and 15 pixels again when decoded."""
    tokenizer = tokenflow(VisionTower(15, patch_size=5, width=16, layers=2, heads=2))
    pixels = images(15)
    codes = tokenizer.encode(pixels)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == pixels.shape
    features = tokenizer.from_pixel(tokenizer.finest(codes)[..., 4:]).transpose(1, 2).unflatten(2, (3, 3))
    small = tokenizer.decoder(features)
    assert small.shape[2:] == (12, 12)
    expected = F.interpolate(small, (15, 15), mode="bicubic", align_corners=False)
    torch.testing.assert_close(decoded, expected.clamp(-1, 1))
    assert tokenizer.training_step_terms(pixels).reconstruction.shape == pixels.shape


def test_options_at_their_defaults_change_no_tokenizer():
    plain = tokenflow(tower())
    stated = tokenflow(tower(), class_token=False, semantic_layer=None, normed=False, teacher_dim=None)
    stated.load_state_dict(plain.state_dict())
    assert stated.fingerprint() == plain.fingerprint()
    assert plain.semantic_places.shape == (16, 16)


def test_refusals():
    with pytest.raises(ValueError, match=r"must have the tower's grid of 4, got a scale of 4 and a decoder of grid 2"):
        tokenflow(tower(), TransformerDecoder(8, grid=2, stride=8, width=8, layers=1, heads=2))
    with pytest.raises(ValueError, match=r"semantic_layer must lie in \[1, 3\] .* got layer 4, normed False and 0"):
        tokenflow(tower(), semantic_layer=4)
    with pytest.raises(ValueError, match=r"normed needs a tower with a class token, .*normed True and 0 tokens before"):
        tokenflow(tower(), normed=True)
