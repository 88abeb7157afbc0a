from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.transforms import Crop, from_uint8, to_pil, to_tensor, to_uint8


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_every_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    tensor = to_tensor(image)
    assert (tensor.dtype, tensor.min().item(), tensor.max().item()) == (torch.float32, -1, 1)
    assert torch.equal(tensor, torch.from_numpy(levels.numpy().astype(np.float32) / np.float32(127.5) - np.float32(1)))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(to_uint8(tensor.to(dtype)), levels)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_rounding_and_clamping():
    values = torch.tensor([-9.0, -1.0, -1 + 0.499 / 127.5, -1 + 0.501 / 127.5, 0.0, 1.0, 9.0, float("inf")])
    assert to_uint8(values.repeat(3, 1)[:, None])[0, 0].tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


def test_to_pil_flattens_leading_axes():
    images = torch.linspace(-1, 1, 2 * 2 * 3 * 4 * 5).reshape(2, 2, 3, 4, 5)
    pictures = to_pil(images)
    assert [picture.size for picture in pictures] == [(5, 4)] * 4
    assert torch.equal(
        torch.stack([to_tensor(picture) for picture in pictures]), from_uint8(to_uint8(images)).flatten(0, 1)
    )
    assert len(to_pil(images[0, 0])) == 1


def test_tensor_errors():
    with pytest.raises(ValueError, match="expected finite images, got 1 NaN values"):
        to_uint8(torch.tensor([0.0, float("nan"), 0.0]).reshape(3, 1, 1))
    with pytest.raises(TypeError, match=r"expected floating-point images in \[-1, 1\], got torch\.uint8"):
        to_uint8(torch.zeros(3, 1, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected images of shape \[\.\.\., 3, H, W\], got \[4, 4, 3\]"):
        to_pil(torch.zeros(4, 4, 3))
    with pytest.raises(ValueError, match="expected a picture of mode RGB, got L"):
        to_tensor(Image.new("L", (2, 2)))


@pytest.mark.parametrize("size", [(16, 16), (9, 20), (20, 9)])
@pytest.mark.parametrize("shape", [(16, 16), (33, 16), (16, 47), (7, 200), (100, 101)])
@pytest.mark.parametrize("mode", ["center", "random"])
def test_shape_for_any_picture(size: tuple[int, int], shape: tuple[int, int], mode: str):
    crop = Crop(size, mode, flip=mode == "random")
    cropped = crop(noise(*shape), np.random.default_rng(0))
    assert (cropped.height, cropped.width) == size == crop.shape


def test_center_crop_of_a_fitting_picture_is_exact():
    image = noise(16, 30)
    assert np.array_equal(np.asarray(Crop(16)(image)), np.asarray(image)[:, 7:23])
    assert np.array_equal(np.asarray(Crop((16, 30))(image)), np.asarray(image))


def test_center_crop_is_resize_then_cut():
    image = noise(40, 61)
    resized = image.resize((20 * 61 // 40, 20), Image.Resampling.BICUBIC)  # 30 x 20
    assert np.array_equal(np.asarray(Crop(20, filter="bicubic")(image)), np.asarray(resized)[:, 5:25])


def test_filters_differ():
    results = {
        Crop(8, filter=name)(noise(32, 32)).tobytes() for name in ("lanczos", "bicubic", "bilinear", "box", "nearest")
    }
    assert len(results) == 5


def test_random_crop_depends_on_the_generator_alone():
    crop, image = Crop(8, "random", flip=True), noise(30, 40)
    first, again, other = (crop(image, np.random.default_rng(seed)).tobytes() for seed in (0, 0, 1))
    assert first == again != other


def test_random_crop_keeps_to_its_scale():
    ramp = Image.fromarray(np.arange(200, dtype=np.uint8)[None, :, None].repeat(200, 0).repeat(3, 2))
    crop = Crop(50, "random", filter="box", scale=(0.5, 0.75))
    spans = []
    for seed in range(50):
        row = np.asarray(crop(ramp, np.random.default_rng(seed)))[0, :, 0].astype(float)
        spans.append((row[-1] - row[0]) * 50 / 49 / 200)  # share of the picture's side
    assert 0.48 < min(spans) < 0.55
    assert 0.70 < max(spans) < 0.77


def test_flip_mirrors_about_half():
    image = noise(8, 8)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    results = [Crop(8, flip=True)(image, np.random.default_rng(seed)).tobytes() for seed in range(100)]
    assert set(results) == {image.tobytes(), mirrored}
    assert 30 < results.count(mirrored) < 70


def test_describe_is_json_and_names_what_decides():
    assert json.loads(json.dumps(Crop(8).describe())) == {
        "size": [8, 8], "mode": "center", "filter": "lanczos", "flip": False
    }  # fmt: skip
    assert Crop((8, 9), "random", scale=(0.5, 1)).describe()["scale"] == [0.5, 1]


def test_crop_errors():
    with pytest.raises(ValueError, match="expected a generator for a random crop or flip, got None"):
        Crop(8, flip=True)(noise(8, 8))
    with pytest.raises(ValueError, match="expected a crop of at least 1x1, got size 0"):
        Crop(0)
    with pytest.raises(ValueError, match="expected a crop mode of center, random, got 'middle'"):
        Crop(8, "middle")
    with pytest.raises(ValueError, match=r"expected a filter of lanczos, .*, got 'cubic'"):
        Crop(8, filter="cubic")
    with pytest.raises(ValueError, match=r"expected 0 < least <= greatest <= 1 as scale, got \(0.9, 0.5\)"):
        Crop(8, scale=(0.9, 0.5))
