"""The official layout: written, read back, and refused where anything is missing."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from smalti.data.decoding import BrokenImageError
from smalti.eval.geneval_folder import read_layout, write_layout
from smalti.eval.geneval_prompts import geneval_prompts

ENTRIES = geneval_prompts()[:3]


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (4, 3), (level, 0, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_layout(tmp_path / "run", ENTRIES)
    for i, j in product(range(3), range(2)):
        picture(10 * i + j).save(tmp_path / "run" / f"{i:05d}" / "samples" / f"{j:05d}.png")
    return tmp_path / "run"


def test_the_layout_is_the_official_one(folder):
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == [
        f"{index:05d}/{name}"
        for index in range(3)
        for name in ("metadata.jsonl", "samples/00000.png", "samples/00001.png")
    ]
    assert json.loads((folder / "00002" / "metadata.jsonl").read_text()) == ENTRIES[2]


def test_samples_come_in_the_order_of_prompts_and_numbers(folder):
    (folder / "00001" / "samples" / "00000.png").rename(folder / "00001" / "samples" / "7.png")
    (folder / "00001" / "samples" / "notes.txt").write_text("passed over")
    (folder / "grids").mkdir()
    samples = read_layout(folder, ENTRIES, per_prompt=2)
    assert [sample.entry for sample in samples] == [entry for entry in ENTRIES for _ in range(2)]
    levels = [Image.open(sample.path).getpixel((0, 0))[0] for sample in samples]
    assert levels == [0, 1, 11, 10, 20, 21]


def test_a_layout_for_another_generator_keeps_what_is_there(folder):
    write_layout(folder, ENTRIES)
    assert len(read_layout(folder, ENTRIES, per_prompt=2)) == 6
    with pytest.raises(ValueError, match=r"00000.metadata.jsonl must hold 'a photo of a cow', got another prompt"):
        write_layout(folder, ENTRIES[1:])


def test_544_of_553_prompts_are_refused(tmp_path):
    entries = geneval_prompts()
    for index in range(553):
        if not 100 <= index < 109:
            (tmp_path / f"{index:05d}").mkdir()
    text = re.escape(f"expected 553 prompt folders in {tmp_path}, got 544; draw the missing ones, first 00100 (")
    with pytest.raises(ValueError, match=f"{text}{re.escape(repr(entries[100]['prompt']))}"):
        read_layout(tmp_path)


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"expected 2 prompt folders in .*, got 3; take out 00002, which is"):
        read_layout(folder, ENTRIES[:2], per_prompt=2)
    with pytest.raises(FileNotFoundError, match=r"expected GenEval's folders in .*absent, found no such folder"):
        read_layout(tmp_path / "absent")


def test_two_folders_of_one_number_are_refused(folder):
    (folder / "1").mkdir()
    with pytest.raises(ValueError, match=r"expected one folder of each number in .*, got 00001 and 1; take one out"):
        read_layout(folder, ENTRIES, per_prompt=2)


def test_too_few_and_too_many_images_are_refused(folder):
    with pytest.raises(ValueError, match=r"expected 1 images in .*00000.samples \('a photo of a bench'\), got 2; take"):
        read_layout(folder, ENTRIES, per_prompt=1)
    (folder / "00001" / "samples" / "00001.png").unlink()
    with pytest.raises(ValueError, match=r"expected 2 images in .*00001.samples \('a photo of a cow'\), got 1; draw"):
        read_layout(folder, ENTRIES, per_prompt=2)
    with pytest.raises(ValueError, match=r"expected 4 images in .*00000.samples .*, got 2; draw"):
        read_layout(folder, ENTRIES)


def test_another_prompt_is_refused_unless_only_its_text_was_rewritten(folder):
    path = folder / "00001" / "metadata.jsonl"
    path.write_text(json.dumps({**ENTRIES[1], "prompt": "a very detailed cow"}))
    with pytest.raises(ValueError, match="00001 must hold the metadata of prompt 1, 'a photo of a cow', got 'a very"):
        read_layout(folder, ENTRIES, per_prompt=2)
    samples = read_layout(folder, ENTRIES, per_prompt=2, rewritten=True)
    assert samples[2].entry["prompt"] == "a very detailed cow"
    path.write_text(json.dumps({name: value for name, value in ENTRIES[1].items() if name != "prompt"}))
    with pytest.raises(ValueError, match="must hold the metadata of prompt 1, 'a photo of a cow', got None"):
        read_layout(folder, ENTRIES, per_prompt=2, rewritten=True)
    path.write_text(json.dumps({**ENTRIES[1], "include": [{"class": "cow", "count": 2}]}))
    with pytest.raises(ValueError, match="must hold the metadata of prompt 1"):
        read_layout(folder, ENTRIES, per_prompt=2, rewritten=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object in .*metadata.jsonl, got text that does not parse"),
        ("[1]", "expected a JSON object in .*metadata.jsonl, got list"),
        (None, "expected a prompt's metadata in .*metadata.jsonl, found no such file"),
    ],
)
def test_damaged_metadata_is_named(folder, text, message):
    path = folder / "00001" / "metadata.jsonl"
    path.write_text(text) if text else path.unlink()
    with pytest.raises(ValueError, match=message):
        read_layout(folder, ENTRIES, per_prompt=2)


@pytest.mark.parametrize("length", [0, 4, 12, 40, -20])
def test_an_unreadable_png_is_named(folder, length):
    path = folder / "00002" / "samples" / "00001.png"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BrokenImageError, match=r"expected a readable PNG, got '.*00002/samples/00001.png'; draw"):
        read_layout(folder, ENTRIES, per_prompt=2)


def test_a_jpeg_is_no_png(folder):
    picture(0).save(folder / "00000" / "samples" / "00000.png", format="JPEG")
    with pytest.raises(BrokenImageError, match=r"expected a readable PNG, got '.*00000/samples/00000.png'"):
        read_layout(folder, ENTRIES, per_prompt=2)
