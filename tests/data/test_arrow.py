from __future__ import annotations

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from smalti.data.sources import ArrowFiles, BrokenImageError, HubDataset, ImageSource


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(start: int, count: int = 3) -> datasets.Dataset:
    numbers = range(start, start + count)
    columns = {
        "image": [{"bytes": picture(number), "path": None} for number in numbers],
        "text": [f"c{number}" for number in numbers],
        "label": list(numbers),
    }
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def check(source: ImageSource, count: int) -> None:
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == count
    for index in range(count):
        assert np.asarray(source.picture(index))[0, 0, 0] == index
        assert source.caption(index) == f"c{index}"
    assert pickle.loads(pickle.dumps(source)).caption(count - 1) == f"c{count - 1}"


def test_parquet_glob_converts_into_the_given_cache_only(tmp_path: Path):
    (tmp_path / "in [1] #é").mkdir()
    for part in range(2):
        rows(part * 3).to_parquet(tmp_path / "in [1] #é" / f"p{part}.parquet")
    names = [str(path) for path in sorted((tmp_path / "in [1] #é").iterdir())]
    check(ArrowFiles(names, caption_column="text", cache_dir=tmp_path / "cache"), 6)
    assert any((tmp_path / "cache").rglob("*.arrow"))


def test_arrow_stream_and_saved_folder_are_read_in_place(tmp_path: Path):
    rows(0).save_to_disk(tmp_path / "saved")
    check(ArrowFiles(str(tmp_path / "saved"), caption_column="text"), 3)
    check(ArrowFiles(str(tmp_path / "saved" / "*.arrow"), caption_column="text"), 3)


def test_columns_of_bytes_and_of_paths(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(picture(5))
    datasets.Dataset.from_dict({"image": [picture(5)]}).to_parquet(tmp_path / "bytes.parquet")
    datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).to_parquet(tmp_path / "paths.parquet")
    for name in ("bytes", "paths"):
        source = ArrowFiles(str(tmp_path / f"{name}.parquet"), cache_dir=tmp_path / "cache")
        assert (np.asarray(source.picture(0))[0, 0, 0], source.caption(0)) == (5, None)


def test_broken_and_empty_entries(tmp_path: Path):
    columns = {"image": [{"bytes": b"text", "path": None}, None]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(tmp_path / "saved")
    source = ArrowFiles(str(tmp_path / "saved"))
    with pytest.raises(BrokenImageError, match=r"got 'row 0 of .*saved' .not a known picture format"):
        source.picture(0)
    with pytest.raises(BrokenImageError, match=r"expected a picture in row 1 of .*saved, got an empty entry"):
        source.picture(1)


def test_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected parquet or arrow files at .*, got no match"):
        ArrowFiles(str(tmp_path / "*.parquet"))
    with pytest.raises(ValueError, match=r"expected a folder written by save_to_disk, got .* without state\.json"):
        ArrowFiles(str(tmp_path))
    rows(0).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.arrow").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"expected files all \.parquet or all \.arrow, got \.arrow, \.parquet"):
        ArrowFiles(str(tmp_path / "*"))
    with pytest.raises(ValueError, match=r"expected a parquet file or an Arrow stream, got .*b\.arrow"):
        ArrowFiles(str(tmp_path / "b.arrow"))
    with pytest.raises(
        ValueError, match=r"no captions: expected a column 'caption' in .*, got 'image', 'text', 'label'"
    ):
        ArrowFiles(str(tmp_path / "a.parquet"), caption_column="caption")
    with pytest.raises(ValueError, match="expected a picture column 'picture' in "):
        ArrowFiles(str(tmp_path / "a.parquet"), image_column="picture")
    rows(0, 0).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"expected rows in .*none\.parquet, got none"):
        len(ArrowFiles(str(tmp_path / "none.parquet"), cache_dir=tmp_path / "cache"))
    rows(0, 0).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected rows in .*none, got none"):
        ArrowFiles(str(tmp_path / "none"))
    rows(0).save_to_disk(tmp_path / "label")
    with pytest.raises(TypeError, match=r"expected text in column 'label' of row 0 of .*, got int"):
        ArrowFiles(str(tmp_path / "label"), caption_column="label").caption(0)


def test_hub_data_set_loads_on_first_use_only(tmp_path: Path):
    repository = tmp_path / "repository"
    cache = tmp_path / "cache"
    source = HubDataset(str(repository), split="train[:2]", caption_column="text", cache_dir=cache)
    (repository / "data").mkdir(parents=True)
    rows(0).to_parquet(repository / "data" / "train-00000.parquet")
    check(source, 2)
    assert source.name(1) == f"row 1 of {repository} (train[:2])"
    with pytest.raises(ValueError, match="no captions: expected a column 'title'"):
        len(HubDataset(str(repository), caption_column="title", cache_dir=cache))
