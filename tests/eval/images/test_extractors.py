"""Features by name: what is pooled, how pictures are prepared, and that the same folder always gives the same."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from smalti.eval.images.extractors import VisionExtractor, load_extractor
from smalti.eval.protocol import state_hash

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SQUARE = {"image_size": 16, "patch_size": 4, **SMALL}
TEXT = {**SMALL, "vocab_size": 30, "projection_size": 16}
MODELS = {
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=SQUARE)),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SQUARE)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SQUARE)),
    "vit": lambda: ViTModel(ViTConfig(**SQUARE)),
    "vit-without-pooler": lambda: ViTModel(ViTConfig(**SQUARE), add_pooling_layer=False),
    "convnext": lambda: ConvNextModel(ConvNextConfig(image_size=16, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2)),
}


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


def by_hand(model, images, mean=0.5, std=0.5):
    with torch.inference_mode():
        found = getattr(model, "vision_model", model)(pixel_values=(images.float() / 255 - mean) / std)
    return found.last_hidden_state.mean(1) if found.pooler_output is None else found.pooler_output


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_the_models_own_pooled_ones(kind, images, tmp_path):
    model = MODELS[kind]().eval()
    model.save_pretrained(tmp_path)
    extractor = VisionExtractor(tmp_path)
    features = extractor(images)
    torch.testing.assert_close(features, by_hand(model, images).float())
    assert features.shape == (3, extractor.num_features)
    assert ("mean of the last hidden state" in extractor.name) == (kind == "vit-without-pooler")
    assert "resized to 16x16 (bicubic, antialiased), mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in extractor.name
    again = VisionExtractor(tmp_path)  # weights that the file lacks would be drawn anew
    assert again.weights_hash == extractor.weights_hash
    assert torch.equal(again(images), features)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_convolutions_are_whole(kind, images, tmp_path, precisions):
    MODELS[kind]().save_pretrained(tmp_path)
    extractor = VisionExtractor(tmp_path)
    precisions.clear()
    extractor(images)
    assert precisions == {"ieee"}


def test_the_hash_is_of_the_weights_that_are_run(tmp_path):
    model = MODELS["vit"]()
    model.save_pretrained(tmp_path)
    assert VisionExtractor(tmp_path).weights_hash == state_hash(model.state_dict())
    with torch.no_grad():
        model.layernorm.bias[3] += 1e-3
    model.save_pretrained(tmp_path)
    assert VisionExtractor(tmp_path).weights_hash == state_hash(model.state_dict())


def test_pictures_are_prepared_as_the_checkpoint_says(images, tmp_path):
    model = MODELS["vit"]().eval()
    model.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    extractor = VisionExtractor(tmp_path)
    assert "mean 0.4 0.4 0.4, std 0.2 0.2 0.2" in extractor.name
    torch.testing.assert_close(extractor(images), by_hand(model, images, 0.4, 0.2))
    large = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    small = F.interpolate(large.float(), (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(extractor(large), by_hand(model, small, 0.4, 0.2))


def test_floats_are_refused(images, tmp_path):
    MODELS["dinov2"]().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"reads uint8 images, got torch\.float32"):
        VisionExtractor(tmp_path)(images.float())


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a vision model was expected in .*nowhere"):
        load_extractor(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"Inception weights were expected in .*weights\.pth"):
        load_extractor(f"inception:{tmp_path / 'weights.pth'}")


def test_an_inception_of_other_weights_is_refused_or_recorded(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"fc.bias": torch.zeros(1008)}, file)
    with pytest.raises(ValueError, match="must have a sha256 that begins 6726825d"):
        load_extractor(f"inception:{file}")
    with pytest.raises(ValueError, match="must hold the 566 tensors"):
        load_extractor(f"inception:{file}", unknown_weights=True)
