import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import lpips as reference
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from smalti.tokenizers import anatomy
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.perceptual import LPIPS, BackboneLoss

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SQUARE = {"image_size": 16, "patch_size": 4, **SMALL}
TEXT = {**SMALL, "vocab_size": 30, "projection_size": 16}
MODELS = {
    "siglip-vision": lambda: SiglipVisionModel(SiglipVisionConfig(**SQUARE)),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=SQUARE)),
    "vit": lambda: ViTModel(ViTConfig(**SQUARE)),
    "vit-without-pooler": lambda: ViTModel(ViTConfig(**SQUARE), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SQUARE)),
    "convnext": lambda: ConvNextModel(ConvNextConfig(image_size=16, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2)),
}


@pytest.fixture(params=MODELS)
def checkpoint(request, tmp_path):
    model = MODELS[request.param]().eval()
    model.save_pretrained(tmp_path)
    return tmp_path, getattr(model, "vision_model", model)


@pytest.fixture
def pair():
    return torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1


def by_hand(model, pair, layers, mean=0.5, std=0.5):
    """The loss as its docstring says it, position by position."""
    first, second = (
        model(pixel_values=((images + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states for images in pair
    )
    total = 0.0
    for layer in layers:
        a, b = (states[layer] if states[layer].ndim == 3 else states[layer].flatten(2).mT for states in (first, second))
        distances = [
            (x / x.norm() - y / y.norm()).square().sum()
            for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)
        ]
        total += torch.stack(distances).mean()
    return total


@pytest.mark.parametrize("layers", [(-1,), (0, 2)])
def test_backbone_loss_by_hand(checkpoint, pair, layers):
    folder, model = checkpoint
    loss = BackboneLoss(folder, layers)
    torch.testing.assert_close(loss(*pair), by_hand(model, pair, layers))
    assert float(loss(pair[0], pair[0])) == 0
    assert torch.equal(BackboneLoss.from_model(model, layers)(*pair), loss(*pair))


def test_a_damaged_statistics_file_is_no_reason_to_guess(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json must be a JSON object, got something else; copy"):
        anatomy.statistics(str(tmp_path))


def test_statistics_come_with_the_checkpoint(pair, tmp_path):
    model = MODELS["vit"]().eval()
    model.save_pretrained(tmp_path)
    statistics = {
        "image_mean": [0.4, 0.4, 0.4],
        "image_std": [0.2, 0.2, 0.2],
        "image_processor_type": "ViTImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    torch.testing.assert_close(BackboneLoss(tmp_path)(*pair), by_hand(model, pair, (-1,), 0.4, 0.2))
    assert not torch.allclose(BackboneLoss(tmp_path)(*pair), by_hand(model, pair, (-1,)))


def test_other_sizes_are_resized(pair):
    model = MODELS["vit"]()
    large = [F.interpolate(images, (20, 36), mode="bilinear") for images in pair]
    small = [F.interpolate(images, (16, 16), mode="bicubic", antialias=True) for images in large]
    loss = BackboneLoss.from_model(model)
    torch.testing.assert_close(loss(*large), loss(*small))


def test_frozen_and_out_of_sight(pair):
    """A module that holds a distance neither trains it nor saves it, and loads its own checkpoint strictly."""
    loss = PixelLoss(perceptual=BackboneLoss.from_model(ViTModel(ViTConfig(**SQUARE, hidden_dropout_prob=0.5))))
    holder = nn.ModuleDict({"decoder": nn.Linear(1, 1), "loss": loss}).train()
    assert set(holder.state_dict()) == {"decoder.weight", "decoder.bias"}
    holder.load_state_dict(holder.state_dict(), strict=True)
    assert len(list(holder.parameters())) == 2
    network = loss.perceptual.network
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    reconstruction = pair[0].clone().requires_grad_()
    loss.perceptual(reconstruction, pair[1]).backward()
    assert reconstruction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.equal(loss.perceptual(*pair), loss.perceptual(*pair))


def test_network_follows_devices_not_casts(pair):
    loss = BackboneLoss.from_model(MODELS["vit"]())
    before = loss(*pair)
    assert torch.equal(loss.bfloat16()(*pair), before)
    assert {weight.device.type for weight in loss.to("meta").network.parameters()} == {"meta"}
    assert loss.mean.device.type == "meta"


def test_autocast_gives_float32(pair):
    loss = BackboneLoss.from_model(MODELS["vit"]())
    with torch.autocast("cpu", torch.bfloat16):
        approximate = loss(*(images.bfloat16() for images in pair))
    assert approximate.dtype == torch.float32
    torch.testing.assert_close(approximate, loss(*pair), atol=0.05, rtol=0.05)


def test_no_checkpoint(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a vision checkpoint was expected at .*none, neither a folder .*download"
    ):
        BackboneLoss(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"a vision checkpoint was expected at nobody/nothing, neither"):
        BackboneLoss("nobody/nothing")


def test_incomplete_checkpoint(tmp_path):
    MODELS["vit"]().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layernorm_before.bias" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must hold every weight of its model, missing .*layernorm_before\.bias"):
        BackboneLoss(tmp_path)


@pytest.mark.parametrize("layers", [(3,), (0, -4)])
def test_layers_must_exist(pair, layers):
    with pytest.raises(ValueError, match=r"layers must lie in \[-3, 3\), the model's hidden states, got"):
        BackboneLoss.from_model(MODELS["vit"](), layers)(*pair)


def test_layers_must_be_named():
    with pytest.raises(ValueError, match=r"a backbone loss needs at least one layer, got none; -1 is the last"):
        BackboneLoss.from_model(MODELS["vit"](), ())


def test_batches_must_pair_up(pair):
    loss = BackboneLoss.from_model(MODELS["vit"]())
    for first, second in ((pair[0], pair[1][:1]), (pair[0][0], pair[1][0]), (pair[0][:, :1], pair[1][:, :1])):
        with pytest.raises(ValueError, match=r"takes two batches \[B, 3, H, W\] of one shape, got"):
            loss(first, second)


# LPIPS: (index in torchvision's `features`, in, out, kernel, stride, padding) of every convolution.
ALEX = [
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
]
VGG_AT = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG_WIDTHS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG = [(at, *widths, 3, 1, 1) for at, widths in zip(VGG_AT, pairwise(VGG_WIDTHS), strict=True)]
LAYERS = {"alex": ALEX, "vgg": VGG}
POOLS = {"alex": {2: 3, 5: 3}, "vgg": {4: 2, 9: 2, 16: 2, 23: 2}}
TAPS = {"alex": {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}, "vgg": {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}}
SIDES = {"alex": 35, "vgg": 16}


def published(net, folder):
    """Random weights in the published layout: a backbone with its classifier, and heads."""
    backbone = {"classifier.1.weight": torch.zeros(2, 2), "classifier.1.bias": torch.zeros(2)}
    for at, before, after, kernel, _, _ in LAYERS[net]:
        scale = (2 / (before * kernel * kernel)) ** 0.5
        backbone[f"features.{at}.weight"] = scale * torch.randn(after, before, kernel, kernel)
        backbone[f"features.{at}.bias"] = 0.1 * torch.randn(after)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(TAPS[net].values())}
    torch.save(backbone, folder / "backbone.pth")
    torch.save(heads, folder / "heads.pth")
    return backbone, heads


def slow_lpips(net, backbone, heads, pair):
    """Written from the paper: no modules, one layer and one image at a time."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = []
    for images in zip(*pair, strict=True):
        maps = []
        for image in images:
            x, seen = ((image.permute(1, 2, 0) - shift) / scale).permute(2, 0, 1)[None], []
            geometry = {at: (stride, padding) for at, _, _, _, stride, padding in LAYERS[net]}
            for index in range(max(TAPS[net]) + 1):
                if index in geometry:
                    weight, bias = backbone[f"features.{index}.weight"], backbone[f"features.{index}.bias"]
                    x = F.conv2d(x, weight, bias, *geometry[index])
                elif index in POOLS[net]:
                    x = F.max_pool2d(x, POOLS[net][index], 2)
                else:
                    x = x.clamp(min=0)
                seen += [x[0] / (x[0].pow(2).sum(0) + 1e-8).sqrt()] if index in TAPS[net] else []
            maps.append(seen)
        weights = [heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)]
        distance = sum(
            torch.einsum("chw,c->hw", (a - b) ** 2, weight).mean() for a, b, weight in zip(*maps, weights, strict=True)
        )
        total.append(distance)
    return torch.stack(total)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_by_a_slow_path(net, tmp_path):
    backbone, heads = published(net, tmp_path)
    pair = [torch.rand(2, 3, SIDES[net], SIDES[net] + 4) * 2 - 1 for _ in range(2)]
    loss = LPIPS(tmp_path / "backbone.pth", tmp_path / "heads.pth", net)
    expected = slow_lpips(net, backbone, heads, pair)
    torch.testing.assert_close(loss.distances(*pair), expected)
    torch.testing.assert_close(loss(*pair), expected.mean())
    assert float(loss(pair[0], pair[0])) == 0
    assert not torch.allclose(loss(*((images + 1) / 2 for images in pair)), loss(*pair), rtol=0.05)
    save_file(backbone, tmp_path / "backbone.safetensors")
    assert torch.equal(LPIPS(tmp_path / "backbone.safetensors", tmp_path / "heads.pth", net)(*pair), loss(*pair))


def test_lpips_with_the_published_heads(tmp_path, monkeypatch):
    """The heads that torchmetrics ships, against its own network, which asks torchvision for the layers only."""
    published("alex", tmp_path)
    loss = LPIPS(tmp_path / "backbone.pth", net="alex")
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_args, **_kwargs: loss.network.features)
    theirs = reference._LPIPS(net="alex", pnet_rand=True)
    pair = [torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2)]
    torch.testing.assert_close(loss.distances(*pair), theirs(*pair).flatten(), atol=1e-7, rtol=1e-5)


def test_lpips_gradients_are_finite(tmp_path):
    """Even between equal images, where features may be zero."""
    published("alex", tmp_path)
    loss, images = LPIPS(tmp_path / "backbone.pth", net="alex"), torch.zeros(1, 3, 35, 35)
    reconstruction = images.clone().requires_grad_()
    loss(reconstruction, images).backward()
    assert reconstruction.grad.isfinite().all()
    assert not list(loss.parameters())
    assert not loss.state_dict()


@pytest.mark.parametrize(("net", "minimum"), [("alex", 31), ("vgg", 16)])
def test_lpips_minimum_size(net, minimum, tmp_path):
    published(net, tmp_path)
    loss = LPIPS(tmp_path / "backbone.pth", tmp_path / "heads.pth", net)
    assert loss(*torch.zeros(2, 1, 3, minimum, minimum)).isfinite()
    with pytest.raises(
        ValueError, match=rf"sides of at least {minimum} pixels, got {minimum - 1}x64; use larger images"
    ):
        loss(*torch.zeros(2, 1, 3, minimum - 1, 64))


CHANGES = {
    "missing: features.3.bias": ("backbone", lambda weights: weights.pop("features.3.bias")),
    "unexpected: stem.weight": ("backbone", lambda weights: weights.update({"stem.weight": torch.zeros(1)})),
    "of another shape: features.0.weight": (
        "backbone",
        lambda weights: weights.update({"features.0.weight": torch.zeros(1)}),
    ),
    "missing: lin4.model.1.weight; unexpected: lin4.weight": (
        "heads",
        lambda weights: weights.update({"lin4.weight": weights.pop("lin4.model.1.weight")}),
    ),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_lpips_loads_strictly(problem, tmp_path):
    part, change = CHANGES[problem]
    weights = dict(zip(("backbone", "heads"), published("alex", tmp_path), strict=True))[part]
    change(weights)
    torch.save(weights, tmp_path / f"{part}.pth")
    with pytest.raises(ValueError, match=rf"{part}\.pth must hold this network's weights .*, got {problem}$"):
        LPIPS(tmp_path / "backbone.pth", tmp_path / "heads.pth", "alex")


def test_lpips_unreadable_files(tmp_path):
    published("alex", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"weights were expected in .*none\.pth, which does not exist; check the path"
    ):
        LPIPS(tmp_path / "none.pth", tmp_path / "heads.pth", "alex")
    whole = (tmp_path / "heads.pth").read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2]):
        (tmp_path / "heads.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"heads\.pth cannot be read as weights \(.*\); fetch it again"):
            LPIPS(tmp_path / "backbone.pth", tmp_path / "heads.pth", "alex")
    (tmp_path / "heads.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"heads\.safetensors cannot be read as weights"):
        LPIPS(tmp_path / "backbone.pth", tmp_path / "heads.safetensors", "alex")


def test_lpips_other_net(tmp_path):
    with pytest.raises(ValueError, match=r"net must be one of alex, vgg, got 'squeeze'"):
        LPIPS(tmp_path, net="squeeze")
