from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.sources import BrokenImageError, WebDataset


def picture(level: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(buffer, kind)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def level(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard * 3, shard * 3 + 3):
            key = f"sub dir/ü#{number}"
            members[f"{key}.json"] = json.dumps({"caption": f"c{number}", "a": {"b": f"d{number}"}}).encode()
            members[f"{key}.{'PNG' if number % 2 else 'jpg'}"] = picture(number)
            members[f"{key}.txt"] = f"t{number}\n".encode()
        pack(tmp_path / f"s-{shard}.tar", members)
    return tmp_path


@pytest.mark.parametrize(("field", "letter"), [("json.caption", "c"), ("json.a.b", "d"), ("txt", "t")])
def test_samples_across_shards(shards: Path, field: str, letter: str):
    source = pickle.loads(pickle.dumps(WebDataset(str(shards / "s-*.tar"), field)))
    assert len(source) == 6
    for index in range(6):
        assert (level(source.picture(index)), source.caption(index)) == (index, f"{letter}{index}")
    assert source.name(4) == "s-1.tar/sub dir/ü#4.jpg"
    assert pickle.loads(pickle.dumps(source)).caption(5) == f"{letter}5"


def test_a_list_keeps_its_order_and_captions_are_optional(shards: Path):
    source = WebDataset([str(shards / "s-1.tar"), str(shards / "s-0.tar")])
    assert [level(source.picture(index)) for index in range(6)] == [3, 4, 5, 0, 1, 2]
    assert source.caption(0) is None


def test_missing_captions_are_counted_and_broken_pictures_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = {"a.png": b"text", "b.png": picture(1), "b.txt": b"two", "folder.d/._b.png": b"", "README": b"x"}
    source = WebDataset(str(pack(tmp_path / "x.tar", members)), "txt")
    assert [source.caption(index) for index in range(len(source))] == [None, "two"]
    assert [record.getMessage() for record in caplog.records] == ["1 of 2 samples have no member 'txt'"]
    with pytest.raises(BrokenImageError, match=r"got 'x\.tar/a\.png' \(not a known picture format\)"):
        source.picture(0)


def test_several_pictures_in_a_sample(tmp_path: Path):
    path = str(pack(tmp_path / "x.tar", {"a.in.png": picture(1), "a.out.png": picture(2)}))
    with pytest.raises(ValueError, match=r"expected one picture a sample, got in\.png, out\.png in 'a'"):
        WebDataset(path)
    assert level(WebDataset(path, image_field="out.png").picture(0)) == 2


def test_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected tar files at '.*\*\.tar', got no match"):
        WebDataset(str(tmp_path / "*.tar"))
    text = str(pack(tmp_path / "text.tar", {"a.txt": b"x"}))
    with pytest.raises(ValueError, match=r"expected samples with a picture in .*, got none"):
        WebDataset(text)
    bare = str(pack(tmp_path / "bare.tar", {"a.png": picture(0), "a.json": b"{}"}))
    for field in ("txt", "json.caption"):
        with pytest.raises(ValueError, match=f"no captions: expected '{field}' beside the pictures"):
            WebDataset(bare, field)
    with pytest.raises(ValueError, match=r"expected an uncompressed, complete tar, got .*zip"):
        WebDataset(str(pack(tmp_path / "zip.tar", {"a.png": picture(0)}, "w:gz")))
    bad = pack(tmp_path / "bad.tar", {"a.png": picture(0), "a.json": b"{"})
    with pytest.raises(ValueError, match=r"expected a UTF-8 caption in .*bad.tar"):
        WebDataset(str(bad), "json.caption")
    number = pack(tmp_path / "number.tar", {"a.png": picture(0), "a.json": b'{"caption": 3}'})
    with pytest.raises(TypeError, match=r"expected text in column 'json\.caption' of .*, got int"):
        WebDataset(str(number), "json.caption")


def test_a_truncated_tar_is_named(shards: Path):
    path = shards / "s-1.tar"
    path.write_bytes(path.read_bytes()[:2200])
    with pytest.raises(ValueError, match=r"expected an uncompressed, complete tar, got .*s-1\.tar"):
        len(WebDataset(str(shards / "*.tar")))
