from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.sources import BrokenImageError, CaptionTable, ImageFolder, Part


def write(path: Path, level: int = 0, text: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level, level, level)).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def level(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


ODD = ["a b#c%20.png", "[1]*.png", "naïve ☃.PNG", "two.dots.png", "new\nline.png", "::x.png"]


def test_folder_is_recursive_sorted_and_takes_odd_names(tmp_path: Path):
    for number, name in enumerate(ODD):
        write(tmp_path / "sub" / name, number, f"caption {number}")
    write(tmp_path / "z.png", 200, "last")
    write(tmp_path / ".hidden" / "x.png")
    write(tmp_path / "._z.png")
    (tmp_path / "notes.txt").write_text("no picture")
    source = ImageFolder(tmp_path, captions=True)
    names = [source.name(index) for index in range(len(source))]
    assert names == [f"sub/{name}" for name in sorted(ODD, key=os.fsencode)] + ["z.png"]
    for index, name in enumerate(names[:-1]):
        number = ODD.index(name.removeprefix("sub/"))
        assert (level(source.picture(index)), source.caption(index)) == (number, f"caption {number}")
    assert source.caption(len(ODD)) == "last"


def test_folder_takes_names_that_are_not_utf8(tmp_path: Path):
    write(tmp_path / "plain.png", 7, "seven")
    for suffix in (".png", ".txt"):
        (tmp_path / f"plain{suffix}").rename(tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode()))
    source = pickle.loads(pickle.dumps(ImageFolder(str(tmp_path), captions=True)))
    assert (len(source), level(source.picture(0)), source.caption(0)) == (1, 7, "seven")
    assert source.name(0) == "caf\\udce9.png"


def test_folder_loads_late_and_survives_pickling_before_and_after(tmp_path: Path):
    write(tmp_path / "a.png", 3)
    source = ImageFolder(tmp_path)
    write(tmp_path / "b.png", 4)
    early = pickle.loads(pickle.dumps(source))
    assert len(early) == len(source) == 2
    write(tmp_path / "c.png", 5)
    late = pickle.loads(pickle.dumps(source))
    assert [level(late.picture(index)) for index in range(len(late))] == [3, 4]
    assert late.caption(0) is None


def test_folder_counts_missing_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path / "a.png", text=" one \n")
    write(tmp_path / "b.png")
    source = ImageFolder(tmp_path, captions=True)
    assert [source.caption(index) for index in range(len(source))] == ["one", None]
    assert [record.getMessage() for record in caplog.records] == [f"1 of 2 pictures in {tmp_path} have no caption"]


def test_folder_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder of pictures, got .*gone.*, which is no folder"):
        ImageFolder(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"expected pictures .* below .*, got none"):
        ImageFolder(tmp_path)
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no captions: expected <name>\.txt beside the pictures"):
        ImageFolder(tmp_path, captions=True)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(BrokenImageError, match=r"got 'a\.png'"):
        ImageFolder(tmp_path).picture(0)


def table(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        elif name.endswith(".jsonl"):
            file.write("\n".join(json.dumps(row) for row in rows) + "\n\n")
        else:
            json.dump(rows, file)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_table(tmp_path: Path, name: str):
    rows = [{"image": f"p/{odd}", "caption": f'line\n"{odd}", 1', "extra": 0} for odd in ODD]
    for number, odd in enumerate(ODD):
        write(tmp_path / "p" / odd, number)
    source = pickle.loads(pickle.dumps(CaptionTable(table(tmp_path, name, rows))))
    assert len(source) == len(ODD)
    for index, row in enumerate(rows):
        assert level(source.picture(index)) == index
        assert (source.caption(index), source.name(index)) == (row["caption"], row["image"])


def test_table_columns_and_root(tmp_path: Path):
    write(tmp_path / "pictures" / "a.png", 9)
    path = table(tmp_path, "t.csv", [{"file": "a.png", "title": "A"}, {"file": "gone.png", "title": ""}])
    source = CaptionTable(path, image_column="file", caption_column=None, root=tmp_path / "pictures")
    assert (level(source.picture(0)), source.caption(0)) == (9, None)
    with pytest.raises(BrokenImageError, match=r"'gone\.png' \(no such file\)"):
        source.picture(1)
    with pytest.raises(ValueError, match=r"no captions: expected a column 'caption' in .*, got 'file', 'title'"):
        CaptionTable(path, image_column="file")
    with pytest.raises(ValueError, match=r"expected a picture column 'image' in .*, got 'file', 'title'"):
        CaptionTable(path)


def test_table_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a table of pictures, got .*t\.csv"):
        CaptionTable(tmp_path / "t.csv")
    (tmp_path / "t.tsv").write_text("image")
    with pytest.raises(ValueError, match=r"expected a table named .csv, .jsonl or .json, got 't\.tsv'"):
        CaptionTable(tmp_path / "t.tsv")
    (tmp_path / "t.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"expected rows in .*, got none"):
        CaptionTable(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"image": ')
    with pytest.raises(ValueError, match=r"expected a well-formed table, got .*t\.jsonl"):
        CaptionTable(tmp_path / "t.jsonl")
    (tmp_path / "t.json").write_text('["a.png"]')
    with pytest.raises(ValueError, match="expected a list of objects, got str"):
        CaptionTable(tmp_path / "t.json")
    with pytest.raises(TypeError, match=r"expected text in column 'caption' of row 0 of .*, got int"):
        len(CaptionTable(table(tmp_path, "t.jsonl", [{"image": "a.png", "caption": 3}])))
    with pytest.raises(ValueError, match=r"expected a file in column 'image' of row 1 of .*, got nothing"):
        len(CaptionTable(table(tmp_path, "t.csv", [{"image": "a", "caption": ""}, {"image": "", "caption": ""}])))


def test_part(tmp_path: Path):
    for number in range(5):
        write(tmp_path / f"{number}.png", number, str(number))
    part = Part(ImageFolder(tmp_path, captions=True), 2, 4)
    assert [(level(part.picture(i)), part.caption(i), part.name(i)) for i in range(len(part))] == [
        (2, "2", "2.png"),
        (3, "3", "3.png"),
    ]
    with pytest.raises(IndexError, match=r"expected an index in \[0, 2\), got 2"):
        part.picture(2)
    with pytest.raises(ValueError, match="expected a part with 0 <= start < stop <= 2, got 1:3"):
        Part(part, 1, 3)
