"""Where pictures, words and verdict marks land on a sheet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.eval.sheets import grid, reconstruction_sheet, row_sheet, sample_sheet, save_png

RED, BLUE = (255, 0, 0), (0, 0, 255)
TICK, CROSS = (46, 125, 79), (179, 56, 44)


def plain(color: tuple[int, int, int], size: int = 4) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def holds(image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == np.array(color, dtype=np.uint8)).all(-1).sum())


def test_grid_places_every_pixel():
    sheet = np.asarray(grid([plain(RED), plain(BLUE), plain(RED)], columns=2, scale=2, gap=3))
    expected = np.full((8 * 2 + 3 * 3, 8 * 2 + 3 * 3, 3), 255, dtype=np.uint8)
    expected[3:11, 3:11], expected[3:11, 14:22], expected[14:22, 3:11] = RED, BLUE, RED
    assert np.array_equal(sheet, expected)


def test_grid_takes_arrays_and_repeats_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    sheet = np.asarray(grid(images, columns=5, scale=3, gap=0))
    assert np.array_equal(sheet, np.concatenate(list(images), axis=1).repeat(3, 0).repeat(3, 1))


def test_labels_wrap_to_their_cell():
    long = "a very long prompt about a red circle left of a blue square under a green star"
    short = grid([plain(RED, 64)], labels=["a star"])
    tall = grid([plain(RED, 64)], labels=[long])
    assert tall.width == short.width
    assert tall.height > short.height
    ink = (np.asarray(tall)[64 + 8 :] < 128).all(-1)
    assert ink.any()
    assert not ink[:, :8].any()
    assert not ink[:, -8:].any()


def test_a_word_longer_than_its_cell_is_broken():
    sheet = grid([plain(RED)], labels=["m" * 60])
    assert sheet.width == grid([plain(RED)], labels=["m"]).width
    assert sheet.height > 80


def test_verdicts_show_as_ticks_and_crosses():
    images = [plain(BLUE, 32)] * 3
    prompts = ["a red circle", "three rings", "a star"]
    both = sample_sheet(images, prompts, [True, False, None], columns=3)
    assert holds(both, TICK) > 10
    assert holds(both, CROSS) > 10
    left, middle, right = (
        both.crop((at * both.width // 3, 0, (at + 1) * both.width // 3, both.height)) for at in range(3)
    )
    assert (holds(left, CROSS), holds(middle, TICK), holds(right, TICK), holds(right, CROSS)) == (0, 0, 0, 0)
    unjudged = sample_sheet(images, prompts, columns=3)
    assert holds(unjudged, TICK) == holds(unjudged, CROSS) == 0


def test_small_samples_are_enlarged():
    assert holds(sample_sheet([plain(BLUE, 32)], ["a square"]), BLUE) == 128 * 128


def test_reconstructions_lie_below_their_originals():
    originals = torch.full((3, 3, 32, 32), -1.0)
    originals[:, 0] = 1.0  # red
    rebuilt = originals.flip(1)  # blue
    sheet = reconstruction_sheet(originals, rebuilt, columns=2, scale=1)
    assert holds(sheet, RED) == holds(sheet, BLUE) == 3 * 32 * 32
    pixels = np.asarray(sheet)
    red = np.argwhere((pixels == RED).all(-1))[:, 0]
    blue = np.argwhere((pixels == BLUE).all(-1))[:, 0]
    assert red.min() + 32 + 4 == blue.min()
    assert len(np.unique(red)) == len(np.unique(blue)) == 2 * 32  # two rows of pairs


def test_png_comes_back(tmp_path: Path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    save_png(image, tmp_path / "new" / "sheet.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), np.asarray(image))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one picture, got none"):
        grid([])
    with pytest.raises(ValueError, match="at least one picture, got none"):
        sample_sheet([], [])
    with pytest.raises(ValueError, match="expected 1 labels, one per picture, got 2"):
        grid([plain(RED)], labels=["a", "b"])
    with pytest.raises(ValueError, match="expected 2 marks, one per picture, got 1"):
        sample_sheet([plain(RED)] * 2, ["a", "b"], [True])
    with pytest.raises(ValueError, match="at least 1 column and a gap of at least 0, got 0 and 8"):
        grid([plain(RED)], columns=0)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        grid([plain(RED)], scale=0)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        sample_sheet([plain(RED)], ["a"], scale=0)
    with pytest.raises(TypeError, match="uint8 array of pictures, got float64; use data"):
        grid(np.zeros((1, 4, 4, 3)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"shape \(N, H, W, 3\), got \(1, 3, 4, 4\); move the channels last"):
        grid(np.zeros((1, 3, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="at least 1 pair and 1 column, got 1 and 0"):
        reconstruction_sheet(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), columns=0)
    with pytest.raises(ValueError, match=r"path that ends in \.png, got sheet\.jpg"):
        save_png(plain(RED), tmp_path / "sheet.jpg")


def test_a_row_for_each_name():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 48, 48)
    sheet = row_sheet({"first": red, "second": -red})
    assert sheet.width > 2 * 96
    assert holds(sheet.crop((0, 0, sheet.width, 104)), RED) == 2 * 96 * 96
    assert holds(sheet.crop((0, 104, sheet.width, sheet.height)), (0, 255, 255)) == 2 * 96 * 96
    with pytest.raises(ValueError, match=r"expected rows of one length, got \[1, 2\]"):
        row_sheet({"first": red, "second": red[:1]})
    with pytest.raises(ValueError, match="got no row"):
        row_sheet({})
