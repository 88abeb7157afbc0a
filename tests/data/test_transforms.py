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


def test_truncation_would_corrupt_63_levels():
    """What `to_uint8` avoids: ``(127.5 (x + 1))`` cut off, as several releases write their pictures."""
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    truncated = ((from_uint8(levels) + 1) * 127.5).to(torch.uint8)
    assert int((truncated[0, 0] != levels[0, 0]).sum()) == 63
    assert int((to_uint8(from_uint8(levels)) != levels).sum()) == 0


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


def halved(levels: np.ndarray, axes: tuple[int, int] = (1, 0)) -> np.ndarray:
    """Box halving by definition: every new pixel is the mean of the pixels whose middle it covers, axis by axis."""
    for axis in axes:
        before, after = levels.shape[axis], levels.shape[axis] // 2
        lines = []
        for at in range(after):
            start, end = at * before / after, (at + 1) * before / after
            inside = [line for line in range(before) if start < line + 0.5 <= end]
            lines.append(levels.take(inside, axis).mean(axis))
        levels = np.floor(np.stack(lines, axis) + 0.5)
    return levels.astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 80), (130, 72), (9, 40), (31, 30), (16, 16), (260, 36)])
def test_adm_crop_step_by_step(height: int, width: int):
    """Levels that are multiples of 16 stay whole through four passes, so the order of Pillow's passes is no matter."""
    levels, side = np.asarray(noise(height, width)) // 16 * 16, 16
    cropped = np.asarray(Crop(side, "adm")(Image.fromarray(levels)))
    while min(levels.shape[:2]) >= 2 * side:
        levels = halved(levels)
    short, long = min(levels.shape[:2]), max(levels.shape[:2])
    longer = round(long * side / short)
    wide = levels.shape[1] >= levels.shape[0]
    resized = Image.fromarray(levels).resize((longer, side) if wide else (side, longer), Image.Resampling.BICUBIC)
    start = (longer - side) // 2
    cut = np.asarray(resized)[:, start : start + side] if wide else np.asarray(resized)[start : start + side]
    assert np.array_equal(cropped, cut)


@pytest.mark.parametrize(("height", "width"), [(67, 130), (131, 67), (66, 66)])
def test_adm_crop_halves_odd_sides(height: int, width: int):
    image, cuts = noise(height, width), []
    for axes in ((1, 0), (0, 1)):  # Pillow chooses by the shape which pass comes first; each rounds
        levels = halved(np.asarray(image), axes)
        top, left = (levels.shape[0] - 33) // 2, (levels.shape[1] - 33) // 2
        cuts.append(levels[top : top + 33, left : left + 33])
    assert any(np.array_equal(np.asarray(Crop(33, "adm")(image)), cut) for cut in cuts)


def test_adm_crop_differs_from_the_centre_crop():
    image = noise(70, 90)
    assert not np.array_equal(np.asarray(Crop(16, "adm")(image)), np.asarray(Crop(16, filter="bicubic")(image)))
    assert Crop(16, "adm").deterministic
    assert not Crop(16, "adm", flip=True).deterministic


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
    assert Crop(8, "adm", flip=True).describe() == {
        "size": [8, 8], "mode": "adm", "filter": "box halving, then bicubic", "flip": True
    }  # fmt: skip
    assert Crop((8, 9), "random", scale=(0.5, 1)).describe()["scale"] == [0.5, 1]


def test_crop_errors():
    with pytest.raises(ValueError, match="expected a generator for a random crop or flip, got None"):
        Crop(8, flip=True)(noise(8, 8))
    with pytest.raises(ValueError, match="expected a crop of at least 1x1, got size 0"):
        Crop(0)
    with pytest.raises(ValueError, match="expected a crop mode of center, random, adm, got 'middle'"):
        Crop(8, "middle")
    with pytest.raises(ValueError, match=r"expected a filter of lanczos, .*, got 'cubic'"):
        Crop(8, filter="cubic")
    with pytest.raises(ValueError, match=r"expected 0 < least <= greatest <= 1 as scale, got \(0.9, 0.5\)"):
        Crop(8, scale=(0.9, 0.5))
    with pytest.raises(ValueError, match="adm halves with box and ends with bicubic, got filter 'bicubic'; leave"):
        Crop(8, "adm", filter="bicubic")
    with pytest.raises(ValueError, match=r"adm cuts squares, got size \(8, 9\); choose one side"):
        Crop((8, 9), "adm")
