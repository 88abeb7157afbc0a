"""``smalti tokenize``: sources of every kind to one store, with what is said about it."""

from __future__ import annotations

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smalti.data.scenes import Scenes
from smalti.data.store import TokenStore


@pytest.fixture
def pictures(tmp_path):
    """Five pictures with captions beside them, in a table and in rows."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(5):
        Image.effect_noise((24, 20), 20 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
        rows.append({"image": f"{number}.png", "caption": f"row {number}"})
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = [{"bytes": (folder / row["image"]).read_bytes(), "path": None} for row in rows]
    pq.write_table(pa.table({"image": content, "text": [row["caption"] for row in rows]}), folder / "rows.parquet")
    return folder


@pytest.mark.parametrize(
    ("source", "options", "captions"),
    [
        ("pictures", (), [None] * 5),
        ("pictures", ("--captions", "txt"), [f"picture {number}" for number in range(5)]),
        ("pictures/table.jsonl", (), [f"row {number}" for number in range(5)]),
        ("pictures/table.jsonl", ("--limit", "2"), ["row 0", "row 1"]),
        ("pictures/rows.parquet", ("--captions", "text"), [f"row {number}" for number in range(5)]),
        ("pictures/3.png", (), [None]),
    ],
)
def test_sources_and_their_captions(pictures, model, tmp_path, answers, monkeypatch, source, options, captions):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "store"
    lines = answers("tokenize", tmp_path / source, "--tokenizer", model, "--out", out, *options)
    store = TokenStore(out)
    assert [store[index]["caption"] for index in range(len(store))] == captions
    assert lines[-1].startswith(f"{out}: {len(captions)} row{'s' * (len(captions) > 1)} in 1 shard, ")
    assert lines[-1].endswith(f"bytes each, by tokenizer {store.fingerprint}")
    assert f"{len(captions)} picture" in lines[0]
    assert "waiting for them" in lines[0]


def test_the_embedded_world_by_split_with_questions(model, tmp_path, answers):
    answers("tokenize", "scenes:small:train", "--limit", 3, "--tokenizer", model, "--out", tmp_path / "store")
    store, scenes = TokenStore(tmp_path / "store"), Scenes("small", "train", 3)
    assert [store[index]["caption"] for index in range(3)] == [scenes.caption(index) for index in range(3)]
    assert all(store[index]["questions"] for index in range(3))
    assert store.plan.source["name"] == "scenes-small train"


def test_again_compares_checksums_and_mends_what_is_missing(model, pictures, tmp_path, answers, fails):
    common = ("tokenize", pictures, "--tokenizer", model, "--out", tmp_path / "store", "--shard-size", 2)
    answers(*common)
    assert answers(*common)[0] == f"{tmp_path / 'store'} was finished before; the checksums of 3 shards are right"
    shard = tmp_path / "store" / "tokens-00002-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:200] + b"x" + content[201:])
    assert f"shard {shard} is damaged" in fails(*common)
    shard.unlink()
    assert "1 picture in" in answers(*common)[0]
    assert shard.read_bytes() == content


def test_so_many_shards(model, pictures, tmp_path, answers):
    answers("tokenize", pictures, "--tokenizer", model, "--out", tmp_path / "store", "--shards", 2)
    assert [shard["rows"] for shard in TokenStore(tmp_path / "store").index["shards"]] == [3, 2]


def test_broken_pictures_stop_or_are_left_out(model, pictures, tmp_path, answers, fails):
    (pictures / "2.png").write_text("no picture")
    common = ("tokenize", pictures, "--tokenizer", model, "--out", tmp_path / "store")
    assert "expected a readable picture" in fails(*common)
    assert "4 rows in 1 shard" in answers(*common, "--skip-broken")[-1]


def test_crops_and_precision_are_part_of_the_plan(model, pictures, tmp_path, answers, fails):
    common = ("tokenize", pictures, "--tokenizer", model, "--out", tmp_path / "store")
    answers(*common, "--crops", 3, "--crop", "random", "--flip", "--seed", 7, "--dtype", "bfloat16")
    plan = TokenStore(tmp_path / "store").plan
    assert (plan.crops, plan.dtype, plan.transform["seed"], plan.transform["mode"]) == (3, "bfloat16", 7, "random")
    said = fails(*common, "--crops", 3, "--crop", "random", "--flip", "--seed", 7)
    assert "was begun otherwise: dtype was bfloat16, got float32; choose another folder" in said


def test_folders_of_tars_are_read(model, pictures, tmp_path, answers, fails):
    (tmp_path / "tars").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for suffix in ("png", "txt"):
                tar.add(pictures / f"{number}.{suffix}", f"{number}.{suffix}")
    common = ("--tokenizer", model, "--out", tmp_path / "store")
    answers("tokenize", tmp_path / "tars", "--captions", "txt", *common)
    assert [row["caption"] for row in map(TokenStore(tmp_path / "store").__getitem__, range(2))] == [
        "picture 0",
        "picture 1",
    ]
    assert "uncompressed, got " in fails("tokenize", tmp_path / "a.tar.gz", *common)
    columns = fails("tokenize", tmp_path / "store" / "tokens-00000-of-00001.parquet", *common[:3], tmp_path / "other")
    assert "expected pictures, bytes or paths in column 'image'" in columns


def test_wrong_requests(model, pictures, tmp_path, fails):
    out = ("--tokenizer", model, "--out", tmp_path / "store")
    assert "3 crops of a picture differ where the crop is drawn" in fails("tokenize", pictures, "--crops", 3, *out)
    assert "--shard-size not allowed with argument --shards" in fails(
        "tokenize", pictures, *out, "--shards", 2, "--shard-size", 3
    )
    assert "--captions is for folders, tars and tables" in fails("tokenize", "scenes", "--captions", "txt", *out)
    assert "--out must be a folder, got the file" in fails("tokenize", pictures, *out[:3], pictures / "0.png")
    assert "arguments are required: --out" in fails("tokenize", pictures)
    assert not (tmp_path / "store").exists()
