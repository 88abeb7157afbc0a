"""``smalti sample``: what is drawn, where it is written, and that prompt, seed and settings alone decide the bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from smalti.cli.sample import read_prompts

RED, BLUE = "a red circle", "a blue square"


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_one_picture_is_a_png_of_the_models_size(model, pipeline, tmp_path, answers):
    out = tmp_path / "missing" / "folder" / "one.png"
    lines = answers("sample", RED, "--model", model, "--out", out, "--seed", 3)
    assert lines == [f"wrote {out}: 1 picture of 16x16"]
    assert np.array_equal(pixels(out), np.asarray(pipeline(RED, 3, progress=False)[0]))
    assert [path.name for path in out.parent.iterdir()] == ["one.png"]


def test_scale_repeats_pixels(model, tmp_path, answers):
    answers("sample", RED, "--model", model, "--out", tmp_path / "plain.png")
    answers("sample", RED, "--model", model, "--out", tmp_path / "large.png", "--scale", 3)
    assert np.array_equal(pixels(tmp_path / "large.png"), pixels(tmp_path / "plain.png").repeat(3, 0).repeat(3, 1))


def test_the_bytes_of_a_picture_do_not_depend_on_the_others(model, tmp_path, answers):
    longer = "a red circle above a blue square above a red square"
    for name, prompts in (("alone", [RED]), ("among", [longer, RED, BLUE]), ("again", [longer, RED, BLUE])):
        answers("sample", *prompts, "--model", model, "--out", f"{tmp_path / name}/", "--seed", 4)
    alone = (tmp_path / "alone" / "0001.png").read_bytes()
    among = [(tmp_path / "among" / f"000{index}.png").read_bytes() for index in (1, 2, 3)]
    assert among[1] == alone
    assert len(set(among)) == 3
    assert among == [(tmp_path / "again" / f"000{index}.png").read_bytes() for index in (1, 2, 3)]
    assert len(list((tmp_path / "among").iterdir())) == 3


def test_count_takes_the_seeds_that_follow(model, tmp_path, answers):
    answers("sample", RED, BLUE, "--count", 2, "--seed", 7, "--model", model, "--out", f"{tmp_path}/two/")
    answers("sample", RED, BLUE, "--seed", 8, "--model", model, "--out", f"{tmp_path}/one/")
    two, one = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("two", "one"))
    assert len(two) == 4
    assert [two[1], two[3]] == one
    assert two[0] != two[1]


def test_many_pictures_are_drawn_one_by_one(model, pipeline, tmp_path, answers):
    answers("sample", RED, BLUE, "--count", 24, "--model", model, "--out", tmp_path)
    jobs = [(prompt, seed) for prompt in (RED, BLUE) for seed in range(24)]
    for index, (prompt, seed) in enumerate(jobs, 1):
        alone = pipeline(prompt, seed, progress=False)[0]
        assert np.array_equal(pixels(tmp_path / f"{index:04}.png"), np.asarray(alone))


def test_a_png_holds_pixels_and_nothing_else(model, tmp_path, answers):
    answers("sample", RED, "--model", model, "--out", tmp_path / "out.png")
    data, at, chunks = (tmp_path / "out.png").read_bytes(), 8, []
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


def test_another_process_draws_the_same_bytes_and_imports_only_what_drawing_needs(model, tmp_path, answers):
    answers("sample", RED, "--model", model, "--out", tmp_path / "here.png")
    code = (
        "import sys; from smalti.cli.main import main; import torch; torch.set_num_threads(1)\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'lightning', 'datasets', 'pandas', 'pyarrow', 'torchvision', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = ["sample", RED, "--model", str(model), "--out", str(tmp_path / "there.png")]
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_several_pictures_are_a_sheet(model, tmp_path, answers):
    lines = answers("sample", RED, BLUE, "--count", 2, "--model", model, "--out", tmp_path / "sheet.png", "--scale", 2)
    assert lines == [f"wrote {tmp_path / 'sheet.png'}: 4 pictures of 16x16 on one sheet"]
    answers("sample", RED, "--model", model, "--out", tmp_path / "one.png", "--scale", 2)
    sheet, one = pixels(tmp_path / "sheet.png"), pixels(tmp_path / "one.png")
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (*one.shape[:2], 3))[:, :, 0]
    assert int((windows == one).all(axis=(-1, -2, -3)).sum()) == 1


def test_prompts_from_a_file(model, tmp_path, answers):
    (tmp_path / "prompts.txt").write_text(f"\n{BLUE}\n\n  {RED} \n", encoding="utf-8")
    lines = answers(
        "sample", RED, "--prompts", tmp_path / "prompts.txt", "--model", model, "--out", tmp_path, "--temperature", 0
    )
    assert lines == [f"wrote {tmp_path}: 3 pictures of 16x16"]
    assert (tmp_path / "0003.png").read_bytes() == (tmp_path / "0001.png").read_bytes()
    assert (tmp_path / "0002.png").is_file()
    assert read_prompts([RED], str(tmp_path / "prompts.txt")) == [RED, BLUE, RED]


def test_drawing_together_changes_no_more_than_rounding(model, tmp_path, answers):
    for batch in (1, 3):
        answers("sample", RED, BLUE, RED, "--model", model, "--out", f"{tmp_path}/{batch}/", "--batch", batch)
    for name in ("0001.png", "0002.png", "0003.png"):
        pair = [pixels(tmp_path / str(batch) / name).astype(int) for batch in (1, 3)]
        assert np.abs(pair[0] - pair[1]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), 'at least one prompt is needed, got none; try: smalti sample "a red circle"'),
        ((" ",), "every prompt must say what to draw, got ' ' as number 1; write some words"),
        ((RED, ""), "every prompt must say what to draw, got '' as number 2; write some words"),
        ((RED, "--seed", "x"), "--seed must be a whole number, at least 0, at most 9223372036854775807, got 'x'"),
        ((RED, "--seed", "1.5"), "--seed must be a whole number"),
        ((RED, "--seed", 2**63 - 1, "--count", 2), "--seed and --count must stay within 9223372036854775807, got"),
        ((RED, "--count", "-3"), "--count must be a whole number, at least 1, got '-3'"),
        ((RED, "--scale", 0), "--scale must be a whole number, at least 1, at most 64, got '0'"),
        ((RED, "--guidance", "nan"), "--guidance must be a finite number, got 'nan'"),
        ((RED, "--top-p", 0), "sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got 1.0, 0, 0.0"),
        ((RED, "--count", 401), "a sheet holds at most 400 pictures, got 401; give a folder as --out: out/"),
        (
            (RED, "--prompts", "none.txt"),
            "--prompts must be a text file, got 'none.txt', which is none; check the path",
        ),
        ((RED, "--device", "cuda:99"), "--device must be auto or one of cpu"),
        (("a rad circle",), "every word must be in the vocabulary of"),
        ((BLUE, "a rad circle"), "got 'rad' (near: red"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(model, tmp_path, monkeypatch, fails, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in fails("sample", *arguments, "--model", model)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_prompts_must_hold_text(tmp_path, fails):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("ein grünes Quadrat".encode("latin-1"))
    assert "at least one prompt is needed, got none in" in fails("sample", "--prompts", tmp_path / "blank.txt")
    assert "--prompts must be UTF-8 text, got other bytes in" in fails("sample", "--prompts", tmp_path / "latin.txt")


@pytest.mark.parametrize("out", ["out.png", "folder"])
def test_a_full_disk_leaves_what_was_there(model, tmp_path, fails, full_disk, out):
    (tmp_path / "out.png").write_bytes(b"earlier")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0001.png").write_bytes(b"earlier")
    line = fails("sample", RED, "--model", model, "--out", tmp_path / out)
    assert "needs more room than its disk has left, so nothing was written; free some space" in line
    assert (tmp_path / "out.png").read_bytes() == b"earlier"
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == {"0001.png": b"earlier"}


def test_a_full_disk_leaves_no_new_folder(model, tmp_path, fails, full_disk):
    fails("sample", RED, BLUE, "--model", model, "--out", f"{tmp_path}/new/")
    assert list(tmp_path.iterdir()) == []
