"""``smalti sample``: what is drawn, where it is written, and that prompt, seed and settings alone decide the bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.cli.sample import read_order, read_prompts
from smalti.data.transforms import to_pil
from smalti.generation.folders import load_pictures
from smalti.generation.orders import Masked, Random
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.model import SharedLM

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


def test_every_pass_may_be_looked_at(model, pipeline, tmp_path, answers):
    lines = answers(
        "sample", RED, "--model", model, "--out", tmp_path / "out.png", "--preview", tmp_path / "passes", "--scale", 2
    )
    shown = tmp_path / "passes"
    assert lines == [f"wrote {tmp_path / 'out.png'}: 1 picture of 32x32", f"wrote {shown}: 16 pictures of 32x32"]
    assert (shown / "0016.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    told = []
    pipeline(RED, 0, progress=told.append)
    for number in (1, 7):
        early = np.asarray(to_pil(pipeline.preview(told[number - 1]))[0])
        assert np.array_equal(pixels(shown / f"{number:04}.png"), early.repeat(2, 0).repeat(2, 1))


def test_an_order_may_be_asked_for(model, asking, tmp_path, answers):
    pipeline = TextToImagePipeline.from_pretrained(asking)
    for text, order in (
        ("masked", Masked()),
        ("masked:passes=3,noise=0", Masked(3, 0.0)),
        ("random:passes=5", Random(5)),
    ):
        answers("sample", RED, "--model", asking, "--out", tmp_path / "out.png", "--order", text)
        assert np.array_equal(pixels(tmp_path / "out.png"), np.asarray(pipeline(RED, order=order, progress=False)[0]))
        assert read_order(text).fields() == order.fields()
    answers("sample", RED, "--model", model, "--out", tmp_path / "own.png")
    answers("sample", RED, "--model", model, "--out", tmp_path / "raster.png", "--order", "raster")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "raster.png").read_bytes()


def test_guidance_may_follow_a_schedule(model, pipeline, tmp_path, answers):
    flags = ("--guidance", 4, "--guidance-start", 1.5, "--guided-from", 2, "--guided-steps", 9)
    answers("sample", RED, "--model", model, "--out", tmp_path / "out.png", *flags)
    own = {"guidance": 4.0, "guidance_start": 1.5, "guided_from": 2, "guided_steps": 9}
    expected = pipeline(RED, sampling=replace(pipeline.sampling, **own), progress=False)[0]
    assert np.array_equal(pixels(tmp_path / "out.png"), np.asarray(expected))
    assert not np.array_equal(pixels(tmp_path / "out.png"), np.asarray(pipeline(RED, progress=False)[0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_may_draw_in_half_precision(asking, tmp_path, answers, dtype):
    answers("sample", RED, "--model", asking, "--out", tmp_path / "out.png", "--dtype", dtype)
    pipeline = TextToImagePipeline.from_pretrained(asking)
    torch.nn.Module.to(pipeline.lm, getattr(torch, dtype))
    assert np.array_equal(pixels(tmp_path / "out.png"), np.asarray(pipeline(RED, progress=False)[0]))
    answers("sample", RED, "--model", asking, "--out", tmp_path / "plain.png", "--dtype", "float32")
    answers("sample", RED, "--model", asking, "--out", tmp_path / "own.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "own.png").read_bytes()


@pytest.mark.parametrize(("dtype", "packs"), [("float32", True), ("bfloat16", True), ("float16", False)])
def test_on_a_cpu_weights_are_laid_out_for_few_rows(model, tmp_path, answers, monkeypatch, dtype, packs):
    packed, pack = [], SharedLM.pack
    monkeypatch.setattr(SharedLM, "pack", lambda lm: packed.append(lm.dtype) or pack(lm))
    answers("sample", RED, "--model", model, "--out", tmp_path / "out.png", "--dtype", dtype, "--device", "cpu")
    assert packed == [getattr(torch, dtype)] * packs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["enat", "xar"])
def test_models_of_other_kinds_draw_too(others, tmp_path, answers, kind, dtype):
    folder, pipeline = others[kind], load_pictures(others[kind])
    lines = answers(
        "sample", RED, BLUE, "--model", folder, "--out", tmp_path, "--steps", 3, "--guidance", 1.5, "--dtype", dtype
    )
    assert lines == [f"wrote {tmp_path}: 2 pictures of 16x16"]
    torch.nn.Module.to(getattr(pipeline, {"enat": "model", "xar": "xar"}[kind]), getattr(torch, dtype))
    how = replace(pipeline.sampling, steps=3, guidance=1.5)
    for name, prompt in (("0001.png", RED), ("0002.png", BLUE)):
        assert np.array_equal(pixels(tmp_path / name), np.asarray(pipeline(prompt, 0, how, progress=False)[0]))


def test_other_kinds_take_other_options(others, tmp_path, fails):
    for flags, line in (
        (("--top-k", 3), "--top-k is not for this model, which takes --guidance, --steps; leave it out"),
        (("--order", "raster"), "--order is for language models, got a ENATPipeline; leave it out"),
        (("--preview", tmp_path / "passes"), "--preview is for language models, got a ENATPipeline; leave it out"),
        (("--steps", 17), "masked generation of 16 positions takes 1 to 16 steps, got 17"),
    ):
        assert line in fails("sample", RED, "--model", others["enat"], "--out", tmp_path / "out.png", *flags)
    assert list(tmp_path.iterdir()) == []


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
        ((RED, "--guided-steps", -1), "--guided-steps must be a whole number, at least 0, got '-1'"),
        ((RED, "--order", "zigzag"), "the order must be one of raster, neighbouring"),
        ((RED, "--order", "masked:pass=3"), "masked order takes passes, noise, got pass; correct or remove them"),
        ((RED, "--order", "masked:passes=3.5"), "passes of --order must be a whole number, got '3.5'; write it as"),
        (
            (RED, "--order", "masked:noise"),
            "noise of --order must be a finite number, got ''; write it as masked:noise",
        ),
        ((RED, "--order", "masked:passes=0"), "masked order needs passes >= 1 and noise >= 0, got 0 and 1.5"),
        (
            (RED, "--order", "masked"),
            "masked order needs 1 learned vectors of its kind, got a model of raster order with 0; use",
        ),
        ((RED, "--steps", 3), "--steps is not for this model, which takes --guidance, --guidance-start, --guided-from"),
        ((RED, BLUE, "--preview", "passes"), "--preview follows the passes of 1 picture, got 2; give one prompt"),
        ((RED, "--candidates", 2, "--preview", "passes"), "--preview follows the passes of 1 picture, got 2; give one"),
        ((RED, "--dtype", "int8"), "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ((RED, "--device", "cuda:99"), "--device must be auto or one of cpu"),
        (("a rad circle",), "every word must be in the vocabulary of"),
        ((BLUE, "a rad circle"), "got 'rad' (near: red"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(model, tmp_path, monkeypatch, fails, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in fails("sample", *arguments, "--model", model)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_needs_a_folder(model, tmp_path, fails):
    (tmp_path / "file").write_text("")
    line = fails("sample", RED, "--model", model, "--out", tmp_path / "out.png", "--preview", tmp_path / "file")
    assert "--preview cannot be written to" in line
    assert not (tmp_path / "out.png").exists()


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


def test_another_decoder_draws_the_same_codes(model, pipeline, decoder, tmp_path, answers):
    """Whichever folder the pipeline came from: its pictures are those of the pipeline with that decoder."""
    answers("sample", RED, "--model", model, "--decoder", decoder, "--out", tmp_path / "drawn.png")
    expected = pipeline.with_decoder(decoder)(RED, 0, progress=False)[0]
    assert np.array_equal(pixels(tmp_path / "drawn.png"), np.asarray(expected))
    pipeline.with_decoder(decoder).save_pretrained(tmp_path / "model")
    answers("sample", RED, "--model", tmp_path / "model", "--out", tmp_path / "own.png")
    answers("sample", RED, "--model", tmp_path / "model", "--decoder", "pixels", "--out", tmp_path / "pixels.png")
    answers("sample", RED, "--model", model, "--out", tmp_path / "plain.png")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "drawn.png").read_bytes()
    assert (tmp_path / "pixels.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_models_without_codes_take_no_decoder(others, decoder, tmp_path, fails):
    line = fails("sample", RED, "--model", others["xar"], "--decoder", decoder, "--out", tmp_path / "out.png")
    assert "--decoder turns codes into pixels, got a XARPipeline without; leave it out" in line
