import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2Model,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from smalti.tokenizers.anatomy import ANATOMIES
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.lavit import LavitTokenizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.towers import Tower
from smalti.tokenizers.vision import TransformerDecoder, TransformerEncoder, VisionTower
from smalti.tokenizers.vq import VQTokenizer

DEEP = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL = {**DEEP, "intermediate_size": 24}
VISION = {**SMALL, "image_size": 16, "patch_size": 4}
DINO = {**DEEP, "mlp_ratio": 2, "image_size": 16, "patch_size": 4}
TEXT = {**SMALL, "vocab_size": 30}
OPT = {"model_type": "opt", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OPT |= {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 16}

CHECKPOINTS = {
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
    "siglip-and-text": lambda: SiglipModel(
        SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
    ),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "clip-and-text": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=2)),
    "blip2": lambda: Blip2VisionModel(Blip2VisionConfig(**VISION)),
    "blip2-and-text": lambda: Blip2Model(
        Blip2Config(vision_config=VISION, qformer_config={**TEXT, "encoder_hidden_size": 16}, text_config=OPT)
    ),
    "vit": lambda: ViTModel(ViTConfig(**VISION)),
}
PREFIXES = {"siglip": 0, "clip": 1, "dinov2": 1, "dinov2_with_registers": 3, "blip2": 1, "vit": 1}
#: Published statistics, written out: pixels in [0, 1].
STATISTICS = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "blip2": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "dinov2_with_registers": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


def saved(name, folder):
    """A checkpoint in which every weight matters."""
    model = CHECKPOINTS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    return getattr(model, "vision_model", model), str(folder)


def normalized(images, mean, std):
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((images + 1) / 2 - mean) / std


def tower_of(kind, **arguments):
    options = {"num_register_tokens": 2} if kind == "dinov2_with_registers" else None
    return VisionTower(16, 4, 16, 2, 2, 32, options, kind, **arguments)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tower_equals_its_checkpoint(images, tmp_path, name):
    vision, path = saved(name, tmp_path)
    kind = name.partition("-")[0]
    expected = vision(pixel_values=normalized(images, *STATISTICS[kind]), output_hidden_states=True)
    tower = VisionTower.from_checkpoint(path).eval()
    features = tower(images)
    assert (tower.kind, tower.prefix, tower.grid, tower.depth) == (kind, PREFIXES[kind], 4, 3)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(features.tokens, expected.hidden_states[-2][:, tower.prefix :], **close)
    head = kind in ("siglip", "clip", "dinov2", "dinov2_with_registers")  # else no head, or the norm once more
    pooled = expected.pooler_output if head else expected.last_hidden_state[:, 0]
    torch.testing.assert_close(features.pooled, pooled, **close)


@pytest.mark.parametrize("kind", ANATOMIES)
def test_towers_are_rebuilt_and_run_in_parts(images, kind):
    tower = tower_of(kind).eval()
    rebuilt = VisionTower(**{name: value for name, value in tower.config.items() if not name.startswith("_")}).eval()
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(rebuilt(images).pooled, tower(images).pooled)
    hidden = tower.stem(images)
    assert hidden.shape == (2, PREFIXES[kind] + 16, 16)
    assert torch.equal(tower.run(tower.run(hidden, 0, 1), 1, 2), tower.run(hidden, 0, 2))
    assert torch.equal(tower.on_grid(hidden), hidden[:, PREFIXES[kind] :])
    assert torch.equal(tower.layer(1)(hidden, **tower.anatomy.call), tower.run(hidden, 1, 2))
    same = torch.zeros(1, 3, 16, 16)
    assert tower.patches(images).shape == (2, 16, 16)
    assert torch.equal(tower.patches(same)[:, :1].expand(-1, 16, -1), tower.patches(same))


def test_statistics_come_with_the_checkpoint(images, tmp_path):
    vision, path = saved("clip", tmp_path)
    stated = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    tower = VisionTower.from_checkpoint(path).eval()
    assert (tower.mean, tower.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    expected = vision(pixel_values=normalized(images, tower.mean, tower.std))
    torch.testing.assert_close(tower(images).pooled, expected.pooler_output)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, "do_normalize": False}))
    assert VisionTower.from_checkpoint(path).mean == (0.0, 0.0, 0.0)
    stated |= dict(zip(("image_mean", "image_std"), map(list, STATISTICS["clip"]), strict=True))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    tower = VisionTower.from_checkpoint(path)
    assert (tower.config["mean"], tower.config["std"]) == (None, None)  # the published ones are the default


def test_a_tower_wants_a_known_kind(tmp_path):
    DeiTConfig(**VISION).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a vision tower starts from a checkpoint of type siglip, .*, got 'deit' in"):
        VisionTower.from_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match=r"kind must be one of siglip, .*, got 'resnet'; use one of those"):
        VisionTower(16, 4, 16, 1, 2, kind="resnet")
    with pytest.raises(
        ValueError, match="feed-forward layers of a multiple of its width 16, got 24; choose a multiple"
    ):
        VisionTower(16, 4, 16, 1, 2, 24, kind="dinov2")
    with pytest.raises(ValueError, match=r"mean and std must be three numbers, std above 0, got \(0.5, 0.5, 0.5\) and"):
        VisionTower(16, 4, 16, 1, 2, std=(0.5, 0.5, 0.0))


def test_a_checkpoint_must_hold_all_of_its_vision_model(tmp_path):
    model = CHECKPOINTS["clip-and-text"]()
    state = {
        name: value for name, value in model.state_dict().items() if "vision_model.post_layernorm.bias" not in name
    }
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"must hold every weight of its vision model, .* are post_layernorm\.bias"):
        VisionTower.from_checkpoint(str(tmp_path))


def older(name):
    """What DINOv2's layers were called before version 5 of transformers, as in the published files."""
    for now, before in (("q", "query"), ("k", "key"), ("v", "value")):
        name = name.replace(f"attention.{now}_proj", f"attention.attention.{before}")
    return name.replace("attention.o_proj", "attention.output.dense")


def test_published_files_keep_older_names(images, tmp_path):
    vision, path = saved("dinov2", tmp_path)
    renamed = {older(name): weight for name, weight in vision.state_dict().items()}
    assert "encoder.layer.0.attention.attention.query.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    expected = vision(pixel_values=normalized(images, *STATISTICS["dinov2"]))
    torch.testing.assert_close(VisionTower.from_checkpoint(path).eval()(images).pooled, expected.pooler_output)


def test_a_tower_may_have_no_norm():
    with pytest.raises(ValueError, match=r"a Tower has no norm to be run alone, got \[1, 2, 3\]; use another"):
        Tower().norm(torch.ones(1, 2, 3))


def with_tower(family, tower):
    """A tokenizer of a family around a tower of width 16 and grid 4."""
    if family == "vq":
        return VQTokenizer(TransformerEncoder(tower), GradientQuantizer(4, 16), ConvDecoder(8, 8, (1, 1, 2), 1), 16)
    read, decoder = GridReader(16, 16, 4, 1, 2), ConvDecoder(16, 8, (1, 1, 2), 1)
    if family == "lavit":
        return LavitTokenizer(tower, GradientQuantizer(4, 16), read, decoder, 1, 2)
    return SeedTokenizer(tower, QFormer(3, 16, 1, 2, 32, 16, dropout=0.0), GradientQuantizer(4, 16), read, decoder)


@pytest.mark.parametrize("family", ["vq", "lavit", "seed"])
@pytest.mark.parametrize("kind", ANATOMIES)
def test_tokenizers_of_every_tower_are_saved_and_loaded(images, tmp_path, kind, family):
    tokenizer = with_tower(family, tower_of(kind)).eval()
    codes = tokenizer.encode(images)
    tokenizer.save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.encode(images).ids, codes.ids)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("kind", ANATOMIES)
def test_seeds_queries_read_the_class_token(images, kind):
    tokenizer = with_tower("seed", tower_of(kind)).eval()
    seen = []
    tokenizer.qformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    tokenizer.encode(images)
    assert seen == [PREFIXES[kind] + 16]


def test_codes_that_replace_hidden_states_need_a_tower_of_patches_alone():
    quantizers = (GradientQuantizer(4, 16) for _ in range(2))
    with pytest.raises(ValueError, match="DualToken's codes replace all hidden states, got a tower with 1 that belong"):
        DualTokenizer(tower_of("clip"), *quantizers, ConvDecoder(16, 8, (1, 1, 2), 1), 1, 1)


def test_layers_compose(images):
    tower = VisionTower(16, patch_size=4, width=16, layers=3, heads=2).eval()
    whole = tower.run(tower.stem(images), 0, 3)
    assert torch.equal(tower.run(tower.run(tower.stem(images), 0, 1), 1, 3), whole)
    assert tower.grid == 4


def test_patches_need_not_divide_the_image(images):
    tower = VisionTower(16, patch_size=5, width=16, layers=1, heads=2)
    assert tower.grid == 3
    assert tower.stem(images).shape == (2, 9, 16)


@pytest.mark.parametrize("kind", ANATOMIES)
def test_encoder_trains_what_it_runs(images, kind):
    encoder = TransformerEncoder(tower_of(kind))
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


def test_pooled_features_of_a_clip_are_projected_on_request(tmp_path, images):
    inner, folder = saved("clip-and-text", tmp_path / "clip")
    whole = CLIPModel.from_pretrained(folder).eval()
    tower = VisionTower.from_checkpoint(folder, projected=True).eval()
    pixels = normalized(images, *STATISTICS["clip"])
    torch.testing.assert_close(tower(images).pooled, whole.visual_projection(inner(pixel_values=pixels).pooler_output))
    assert tower(images).pooled.shape == (2, 512)
    assert VisionTower.from_checkpoint(folder)(images).pooled.shape == (2, 16)
    tower.freeze_pooling()
    assert not tower.projection.weight.requires_grad


def test_what_cannot_be_projected(tmp_path):
    _, alone = saved("clip", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"holds a CLIP without visual_projection.weight; leave projected out"):
        VisionTower.from_checkpoint(alone, projected=True)
    _, other = saved("dinov2", tmp_path / "other")
    with pytest.raises(ValueError, match="only a CLIP projects its pooled features, got dinov2 in"):
        VisionTower.from_checkpoint(other, projected=True)
