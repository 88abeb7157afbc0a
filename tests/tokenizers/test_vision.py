import pytest
import torch
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel, ViTConfig, ViTModel

from smalti.tokenizers.vision import TransformerDecoder, TransformerEncoder, VisionTower

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
VISION = SiglipVisionConfig(image_size=16, patch_size=4, **SMALL)


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


def saved(model, folder):
    model.eval().save_pretrained(folder)
    return model, str(folder)


@pytest.mark.parametrize("whole", [False, True], ids=["vision-only", "with-text"])
def test_tower_equals_its_checkpoint(images, tmp_path, whole):
    text = {**SMALL, "vocab_size": 30, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config=VISION.to_dict())
    model, path = saved(SiglipModel(config) if whole else SiglipVisionModel(VISION), tmp_path)
    vision = model.vision_model if whole else model
    expected = vision(pixel_values=images, output_hidden_states=True)
    features = VisionTower.from_checkpoint(path).eval()(images)
    torch.testing.assert_close(features.tokens, expected.hidden_states[-2])
    torch.testing.assert_close(features.pooled, expected.pooler_output)


def test_tower_wants_siglip(tmp_path):
    _, path = saved(ViTModel(ViTConfig(image_size=16, patch_size=4, **SMALL)), tmp_path)
    with pytest.raises(ValueError, match="a vision tower starts from a SigLIP checkpoint, got 'vit' in"):
        VisionTower.from_checkpoint(path)


def test_layers_compose(images):
    tower = VisionTower(16, patch_size=4, width=16, layers=3, heads=2).eval()
    whole = tower.run(tower.stem(images), 0, 3)
    assert torch.equal(tower.run(tower.run(tower.stem(images), 0, 1), 1, 3), whole)
    assert tower.grid == 4


def test_patches_need_not_divide_the_image(images):
    tower = VisionTower(16, patch_size=5, width=16, layers=1, heads=2)
    assert tower.grid == 3
    assert tower.stem(images).shape == (2, 9, 16)


def test_encoder_trains_what_it_runs(images):
    encoder = TransformerEncoder(VisionTower(16, patch_size=4, width=16, layers=2, heads=2))
    assert (encoder.dim, encoder.stride, encoder.grid) == (16, 4, 4)
    features = encoder(images)
    assert features.shape == (2, 16, 4, 4)
    features.square().sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in encoder.parameters())


def test_encoder_of_a_tower_without_head(images):
    tower = VisionTower(16, 4, 16, layers=1, heads=2, options={"vision_use_head": False})
    assert TransformerEncoder(tower)(images).shape == (2, 16, 4, 4)


def test_decoder_unfolds_cells_where_they_are():
    decoder = TransformerDecoder(8, grid=3, stride=4, width=16, layers=1, heads=2, refine=4)
    features = torch.randn(2, 8, 3, 3)
    assert decoder(features).shape == (2, 3, 12, 12)
    with torch.no_grad():  # without layers and smoothing a cell touches its own pixels and their direct neighbours
        decoder.layers = torch.nn.ModuleList()
        decoder.smooth.weight.zero_()
    changed = features.clone()
    changed[:, :, 1, 2] += 1
    differs = (decoder(features) != decoder(changed)).any(0).any(0)
    rows, columns = differs.nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max())) == (3, 8)
    assert (int(columns.min()), int(columns.max())) == (7, 11)


def test_decoder_reads_positions():
    decoder = TransformerDecoder(8, grid=2, stride=2, width=16, layers=1, heads=2, refine=4)
    with torch.no_grad():
        decoder.positions.normal_()
    pixels = decoder(torch.ones(1, 8, 2, 2))
    assert not torch.allclose(F.avg_pool2d(pixels, 2)[..., 0, 0], F.avg_pool2d(pixels, 2)[..., 1, 1])
