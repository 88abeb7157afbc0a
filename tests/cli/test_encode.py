"""``smalti encode`` and ``smalti decode``: codes on disk are the tokenizer's own, and only its own come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.transforms import Crop, to_pil, to_tensor
from smalti.generation.detokenizers import load_decoder
from smalti.tokenizers.files import CodesFile


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of noise in two folders, one of them turned by its EXIF orientation."""
    generator = np.random.default_rng(0)
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    for index in range(7):
        picture = Image.fromarray(generator.integers(0, 256, (24, 30 + index, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 0 else 1  # 6: shown after a quarter turn clockwise
        picture.save(root / ("below" if index > 4 else ".") / f"{index}.png", exif=exif)
    return root


def upright(path) -> Image.Image:
    picture = Image.open(path)
    return picture.transpose(Image.Transpose.ROTATE_270) if path.name == "0.png" else picture


def paths(folder) -> list:
    return [folder / f"{index}.png" for index in range(5)] + [folder / "below" / f"{index}.png" for index in (5, 6)]


@pytest.mark.parametrize("name", ["lanczos", "nearest"])
def test_codes_are_the_tokenizers(model, pipeline, folder, tmp_path, answers, name):
    out = tmp_path / "codes.safetensors"
    lines = answers("encode", folder, "--tokenizer", model, "--out", out, "--batch", 3, "--filter", name)
    coded = CodesFile.open(out)
    images = torch.stack([to_tensor(Crop(16, filter=name)(upright(path))) for path in paths(folder)])
    assert torch.equal(coded.codes.ids, pipeline.encode(images).ids)
    assert coded.names == tuple(map(str, paths(folder)))
    assert coded.fingerprint == pipeline.tokenizer.fingerprint()
    assert coded.transform == Crop(16, filter=name).describe()
    assert lines == [
        f"wrote {out}: 7 pictures, each a grid of 4x4 codes (1 of 16 pixel), by tokenizer {coded.fingerprint}"
    ]


def test_files_and_folders_in_the_order_given(model, folder, tmp_path, answers):
    out = tmp_path / "codes.safetensors"
    answers("encode", folder / "3.png", folder / "below", "--tokenizer", model / "tokenizer", "--out", out)
    assert CodesFile.open(out).names == tuple(str(folder / name) for name in ("3.png", "below/5.png", "below/6.png"))


def test_broken_pictures_stop_the_run_or_are_named(model, folder, tmp_path, fails, capsys):
    from smalti.cli.main import main

    (folder / "0a.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "zz.png").write_text("no picture")
    arguments = ["encode", str(folder), "--tokenizer", str(model), "--out", str(tmp_path / "codes.safetensors")]
    assert "0a.png" in fails(*arguments)
    assert not (tmp_path / "codes.safetensors").exists()
    assert main([*arguments, "--skip-broken", "--batch", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip().endswith("; left out 2 broken")
    assert [line.startswith("left out: expected a readable picture") for line in printed.err.splitlines()] == [True] * 2
    assert "0a.png" in printed.err
    assert "zz.png" in printed.err
    assert CodesFile.open(tmp_path / "codes.safetensors").names == tuple(map(str, paths(folder)))
    line = fails("encode", folder / "zz.png", "--skip-broken", *arguments[2:])
    assert "at least one readable picture is needed, got 1 broken; check the paths" in line


def test_a_sheet_of_reconstructions(model, pipeline, folder, tmp_path, answers):
    out, sheet = tmp_path / "codes.safetensors", tmp_path / "new" / "sheet.png"
    lines = answers("encode", folder, "--tokenizer", model, "--out", out, "--sheet", sheet)
    assert lines[1].startswith(f"wrote {sheet}: 7 originals above their reconstructions, mean PSNR ")
    shown = np.asarray(Image.open(sheet))
    rebuilt = pipeline.tokenizer.decode(CodesFile.open(out).codes)
    for original, copy in zip(paths(folder), to_pil(rebuilt), strict=True):
        assert occurrences(shown, Crop(16)(upright(original))) == 1
        assert occurrences(shown, copy) == 1


def occurrences(sheet: np.ndarray, picture: Image.Image) -> int:
    """How often ``picture``, enlarged 8 times, stands on ``sheet``."""
    wanted = np.asarray(picture).repeat(8, 0).repeat(8, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, wanted.shape)[:, :, 0]
    ends = (windows[:, :, 0, 0] == wanted[0, 0]).all(-1) & (windows[:, :, -1, -1] == wanted[-1, -1]).all(-1)
    return sum(np.array_equal(window, wanted) for window in windows[ends])


def test_decoding_gives_the_tokenizers_pictures(model, pipeline, folder, tmp_path, answers):
    codes = tmp_path / "codes.safetensors"
    answers("encode", folder, "--tokenizer", model, "--out", codes)
    lines = answers("decode", codes, "--tokenizer", model, "--out", f"{tmp_path}/decoded/", "--batch", 3)
    assert lines == [f"wrote {tmp_path / 'decoded'}: 7 pictures of 16x16"]
    with torch.inference_mode():
        expected = to_pil(pipeline.tokenizer.decode(CodesFile.open(codes).codes))
    for index, picture in enumerate(expected, 1):
        found = np.asarray(Image.open(tmp_path / "decoded" / f"000{index}.png")).astype(int)
        assert np.abs(found - np.asarray(picture)).max() <= 1
    answers("decode", codes, "--tokenizer", model, "--out", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 3 * 128


def test_a_decoder_draws_from_the_codes(model, pipeline, decoder, folder, tmp_path, answers):
    codes = tmp_path / "codes.safetensors"
    answers("encode", folder, "--tokenizer", model, "--out", codes)
    drawing = ("decode", codes, "--tokenizer", model, "--decoder", decoder)
    answers(*drawing, "--out", f"{tmp_path}/three/", "--batch", 3)
    answers(*drawing, "--out", f"{tmp_path}/other/", "--seed", 1)
    coded, painter = CodesFile.open(codes).codes, load_decoder(decoder, pipeline.tokenizer)
    expected = to_pil(painter.decode(coded, torch.Generator().manual_seed(0)))
    for index, picture in enumerate(expected, 1):
        found = np.asarray(Image.open(tmp_path / "three" / f"000{index}.png")).astype(int)
        assert np.abs(found - np.asarray(picture)).max() <= 1
    assert (tmp_path / "three" / "0001.png").read_bytes() != (tmp_path / "other" / "0001.png").read_bytes()


def test_a_decoder_of_another_tokenizer_is_refused(model, decoder, other_tokenizer, folder, tmp_path, answers, fails):
    codes = tmp_path / "codes.safetensors"
    answers("encode", folder / "1.png", "--tokenizer", other_tokenizer, "--out", codes)
    line = fails("decode", codes, "--tokenizer", other_tokenizer, "--decoder", decoder, "--out", tmp_path / "out.png")
    assert "this decoder was trained for the codes of tokenizer" in line
    lost = ("--decoder", tmp_path / "lost", "--out", tmp_path / "out.png")
    assert "lost should hold a decoder but lacks decoder.json" in fails(
        "decode", codes, "--tokenizer", other_tokenizer, *lost
    )
    assert not (tmp_path / "out.png").exists()


def test_codes_of_another_tokenizer_are_refused(model, pipeline, other_tokenizer, folder, tmp_path, answers, fails):
    codes = tmp_path / "codes.safetensors"
    answers("encode", folder / "1.png", "--tokenizer", other_tokenizer, "--out", codes)
    line = fails("decode", codes, "--tokenizer", model, "--out", tmp_path / "out.png")
    assert (
        f"made by tokenizer {CodesFile.open(codes).fingerprint}, got tokenizer {pipeline.tokenizer.fingerprint()}"
        in line
    )
    assert not (tmp_path / "out.png").exists()


def test_wrong_requests(model, folder, tmp_path, fails):
    out = ("--tokenizer", model, "--out", tmp_path / "codes.safetensors")
    assert "a picture was expected at none.png, got no such file" in fails("encode", folder / "1.png", "none.png", *out)
    assert "expected a filter of lanczos" in fails("encode", folder, *out, "--filter", "cubic")
    assert "--batch must be a whole number, at least 1, got '0'" in fails("encode", folder, *out, "--batch", 0)
    assert "--tokenizer must be the folder of a tokenizer" in fails("encode", folder, "--tokenizer", tmp_path / "no")
    assert "a file of codes was expected at none.safetensors" in fails("decode", "none.safetensors", *out[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_full_disk_keeps_the_earlier_codes(model, folder, tmp_path, monkeypatch, fails):
    from errno import ENOSPC

    from smalti.tokenizers import files

    def save(tensors, path, metadata):
        raise OSError(ENOSPC, "No space left on device", str(path))

    out = tmp_path / "codes.safetensors"
    out.write_bytes(b"earlier")
    monkeypatch.setattr(files, "save_file", save)
    line = fails("encode", folder, "--tokenizer", model, "--out", out)
    assert f"{out} needs more room than its disk has left, so nothing was written" in line
    assert out.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.safetensors", "pictures"]
