from __future__ import annotations

import errno
import io
import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.decoding import BrokenImageError, decode, printable


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 40) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_rgb_is_unchanged_from_bytes_and_from_a_path(tmp_path: Path):
    noise().save(tmp_path / "a.png")
    expected = np.asarray(noise())
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), expected)
    assert np.array_equal(np.asarray(decode((tmp_path / "a.png").read_bytes())), expected)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG")])
def test_other_modes_become_rgb(mode: str, kind: str):
    image = decode(encoded(Image.new("RGB", (8, 6), "white").convert(mode), kind))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.asarray(image).min() >= 254


def test_transparency_is_laid_on_white():
    levels = np.zeros((1, 3, 4), dtype=np.uint8)
    levels[0, :, 3] = (0, 128, 255)
    image = decode(encoded(Image.fromarray(levels), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_palette_colour_is_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    image = decode(encoded(palette, "PNG", transparency=0))
    assert np.asarray(image).tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(levels), "PNG"))
    assert np.asarray(image)[0, :, 1].tolist() == [0, 1, 100, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    upright = np.rot90(np.asarray(noise()), -1)
    assert np.array_equal(np.asarray(decode(encoded(noise(), "PNG", exif=exif))), upright)


def test_truncated_file(tmp_path: Path):
    content = encoded(noise(200, 200), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        BrokenImageError, match=r"expected a readable picture, got '.*cut\.jpg' \(.*truncated.*\); repair"
    ):
        decode(tmp_path / "cut.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG"])
def test_any_damage_is_a_broken_image(kind: str):
    content = encoded(noise(), kind)
    generator = np.random.default_rng(1)
    broken = 0
    for cut in generator.integers(1, len(content) // 2, 20):
        try:
            decode(content[:cut], "x")
        except BrokenImageError:
            broken += 1
    for _ in range(40):
        damaged = bytearray(content)
        for place in generator.integers(0, min(200, len(content)), 8):
            damaged[place] = generator.integers(0, 256)
        try:
            decode(bytes(damaged), "x")
        except BrokenImageError:
            broken += 1
    assert broken > 0


def test_text_renamed_to_jpg_and_missing_file(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(BrokenImageError, match=r"'.*text\.jpg' \(not a known picture format\)"):
        decode(tmp_path / "text.jpg")
    with pytest.raises(BrokenImageError, match=r"'gone' \(no such file\)"):
        decode(tmp_path / "gone.jpg", "gone")
    with pytest.raises(BrokenImageError, match="got '<bytes>'"):
        decode(b"")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_what_the_machine_does_is_not_the_fault_of_a_picture(number: int, tmp_path: Path, monkeypatch):
    noise().save(tmp_path / "a.png")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, "said by the system")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=r"a\.png") as found:
        decode(tmp_path / "a.png")
    assert (found.value.errno, found.value.filename) == (number, str(tmp_path / "a.png"))
    assert not isinstance(found.value, BrokenImageError)


def test_more_open_files_than_the_system_takes(tmp_path: Path):
    noise().save(tmp_path / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with suppress(OSError):
            while True:
                taken.append((tmp_path / "a.png").open("rb"))
        with pytest.raises(OSError, match=r"Too many open files: '.*a\.png'") as found:
            decode(tmp_path / "a.png")
        assert found.value.errno == errno.EMFILE
    finally:
        for file in taken:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_floating_point_pixels_have_no_known_range():
    with pytest.raises(BrokenImageError, match="floating-point pixels of unknown range"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def test_names_that_are_not_utf8_can_be_printed():
    assert printable(b"caf\xe9 \xc3\xa9.jpg") == "caf\\udce9 é.jpg"
