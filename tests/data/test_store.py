"""The token store: what is written comes back, and what is damaged, unfinished or another's is refused by name."""

from __future__ import annotations

import errno
import json
import os
import pickle

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smalti.data import store_shards
from smalti.data.order import Draw
from smalti.data.store import OneCrop, TokenRecord, TokenStore, write_store
from smalti.data.store_plan import StorePlan, differences
from smalti.data.store_shards import Row, check_shard
from smalti.data.store_writer import INDEX, LOCK, PLAN, StoreWriter, read_plan

RECORDS = [
    TokenRecord("a red circle", (("how many ?", "two"), ("what color ?", "red"))),
    TokenRecord(None, (("how many ?", "one"),)),
    TokenRecord("naïve\u2028line \n break"),
]
BOOKS = [{"name": "semantic", "size": 256, "depth": 1}, {"name": "pixel", "size": 16384, "depth": 2}]
SPEC = {"layout": {"kind": "grid", "shape": [2, 2]}, "codebooks": BOOKS, "dynamic": False}
TOKENIZER = {"fingerprint": "f00d", "spec": SPEC, "class": "VQTokenizer", "weights": {"encoder": "aa", "decoder": "bb"}}


def some_ids(count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (count, 4), generator=generator) for size in (256, 16384, 16384)]
    return torch.stack(columns, -1)


@pytest.fixture
def folder(tmp_path):
    """Three pictures in two shards."""
    write_store(tmp_path / "store", some_ids(), RECORDS, TOKENIZER, "three", shard_size=2)
    return tmp_path / "store"


def test_what_is_written_comes_back(folder):
    store = TokenStore(folder)
    assert torch.equal(store.ids(), some_ids())
    assert torch.equal(store.ids(1, 3), some_ids()[1:])
    assert len(store) == 3
    for index, (record, ids) in enumerate(zip(RECORDS, some_ids(), strict=True)):
        item = store[index]
        assert item["ids"].dtype == torch.int64
        assert torch.equal(item["ids"], ids)
        assert (item["caption"], item["questions"]) == (record.caption, record.questions)
        assert (item["key"], item["image"], item["crop"]) == (str(index), index, 0)
    assert (store.spec, store.fingerprint, store.plan.source["name"]) == (SPEC, "f00d", "three")
    with pytest.raises(IndexError, match=r"expected an index in \[0, 3\), got 3; stay"):
        store[3]


def test_texts_are_captions_questions_and_answers(folder):
    expected = ["a red circle", RECORDS[2].caption, "how many ?", "two", "what color ?", "red", "how many ?", "one"]
    assert sorted(TokenStore(folder).texts()) == sorted(expected)


def test_the_smallest_integers_are_used_and_nothing_of_smalti_is_needed(folder):
    table = pq.read_table(folder, columns=["codes_semantic", "codes_pixel", "caption"])
    assert [str(column.type.value_type) for column in table.columns[:2]] == ["uint8", "uint16"]
    assert np.array_equal(np.array(table["codes_pixel"].to_pylist()).reshape(3, 4, 2), some_ids()[..., 1:].numpy())
    assert table["caption"].to_pylist() == [record.caption for record in RECORDS]


def test_ten_bits_take_ten_bits(tmp_path):
    spec = {"layout": {"kind": "grid", "shape": [8, 8]}, "codebooks": [{"name": "p", "size": 1024, "depth": 1}]}
    ids = torch.randint(1024, (6000, 64, 1))
    tokenizer = {"fingerprint": "f00d", "spec": spec | {"dynamic": False}}
    write_store(tmp_path / "store", ids, [TokenRecord("cat")] * 6000, tokenizer)
    store = TokenStore(tmp_path / "store")
    assert sum(shard["bytes"] for shard in store.index["shards"]) / 6000 == pytest.approx(64 * 10 / 8, rel=0.03)
    assert torch.equal(store.ids(), ids)
    assert store.starts == OneCrop(store).groups == [0, 4096, 6000]


def test_dynamic_codes_are_as_long_as_they_are(tmp_path):
    spec = {"layout": {"kind": "sequence", "shape": [4]}, "codebooks": [{"name": "p", "size": 9, "depth": 2}]}
    ids = torch.tensor([[[1, 2], [3, 4], [-1, -1], [-1, -1]], [[5, 6], [7, 8], [0, 1], [2, 3]]])
    write_store(tmp_path / "s", ids, RECORDS[:2], {"fingerprint": "f00d", "spec": spec | {"dynamic": True}})
    assert [len(row) for row in pq.read_table(tmp_path / "s")["codes_p"].to_pylist()] == [4, 8]
    store = TokenStore(tmp_path / "s")
    assert torch.equal(store.ids(), ids)
    assert torch.equal(store[0]["ids"], ids[0])


@pytest.mark.parametrize("wrong", [-1, 16384])
def test_ids_outside_their_codebook_are_an_error_and_leave_no_shard(tmp_path, wrong):
    ids = some_ids()
    ids[1, 2, 2] = wrong
    with pytest.raises(ValueError, match=rf"ids of codes_pixel must lie in \[0, 16384\), got .*{wrong}"):
        write_store(tmp_path / "store", ids, RECORDS, TOKENIZER)
    assert not (tmp_path / "store").exists()


def test_one_record_per_image(tmp_path):
    with pytest.raises(ValueError, match="one record per image, got 3 for 2 images; an empty TokenRecord"):
        write_store(tmp_path, some_ids(2), RECORDS, TOKENIZER)


def test_datasets_reads_it_at_random_and_in_a_stream(folder, tmp_path):
    store = TokenStore(folder)
    table = store.dataset(tmp_path / "cache").shuffle(seed=1)
    assert isinstance(table, datasets.Dataset)
    assert sorted(table["image"]) == [0, 1, 2]
    assert [row["image"] for row in store.stream()] == [0, 1, 2]


def test_a_stream_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # five seconds after every pass
    write_store(tmp_path / "store", some_ids(40), RECORDS[:1] * 40, TOKENIZER, shard_size=10)
    store = TokenStore(tmp_path / "store")
    whole = [row["image"] for row in store.stream().shuffle(3, buffer_size=1)]
    assert sorted(whole) == list(range(40)) != whole
    begun = store.stream().shuffle(3, buffer_size=1)
    rows = iter(begun)
    first = [next(rows)["image"] for _ in range(17)]
    resumed = store.stream().shuffle(3, buffer_size=1)
    resumed.load_state_dict(begun.state_dict())
    assert first + [row["image"] for row in resumed] == whole


def test_old_rows_leave_memory_first(folder):
    store = TokenStore(folder, memory=1)
    assert [store[index]["image"] for index in (0, 2, 1, 2)] == [0, 2, 1, 2]
    assert len(store._kept) == 1
    again = pickle.loads(pickle.dumps(store))
    assert not again._kept
    assert torch.equal(again.ids(), store.ids())


def test_an_epoch_shows_one_crop_of_every_picture(tmp_path):
    plan = StorePlan(TOKENIZER, {"name": "n", "pictures": 5}, crops=4)
    ids = some_ids(20).numpy()
    with StoreWriter(tmp_path / "store", plan) as writer:
        for number in writer.claims():
            rows = [Row(ids[i * 4 + c], RECORDS[0], str(i), i, c) for i in plan.pictures(number) for c in range(4)]
            writer.write(number, rows)
        writer.finish()
    shown = OneCrop(TokenStore(tmp_path / "store"), seed=3)
    epochs = [[shown[Draw(index, epoch)] for index in range(len(shown))] for epoch in range(8)]
    assert {tuple(item["image"] for item in epoch) for epoch in epochs} == {(0, 1, 2, 3, 4)}
    drawn = [[item["crop"] for item in epoch] for epoch in epochs]
    assert {crop for epoch in drawn for crop in epoch} == {0, 1, 2, 3}
    assert drawn[0] == [shown[index]["crop"] for index in range(5)] != drawn[1]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(bytes(content))


def test_a_damaged_shard_is_found_by_its_checksum_and_named(folder):
    name = "tokens-00001-of-00002.parquet"
    place = pq.read_metadata(folder / name).row_group(0).column(7).data_page_offset
    flip(folder / name, place + 40)
    store = TokenStore(folder)
    assert store[1]["image"] == 1
    with pytest.raises(ValueError, match=rf"shard .*{name} is damaged .* delete it and tokenize into the same store"):
        store[2]
    with pytest.raises(ValueError, match=rf"{name} is damaged \(its checksum is not that of the index\)"):
        store.verify()


def test_every_byte_counts(folder):
    """Wherever a byte of a shard is changed, `verify` finds it; most places are also found by reading."""
    name = "tokens-00000-of-00002.parquet"
    whole = (folder / name).read_bytes()
    for at in range(0, len(whole), 97):
        flip(folder / name, at)
        with pytest.raises(ValueError, match=name):
            TokenStore(folder).verify()
        (folder / name).write_bytes(whole)
    TokenStore(folder).verify()


def test_a_rerun_does_not_take_damage_for_right(folder):
    """Bytes that no page checksum covers, of the footer or its padding, too."""
    name, found = "tokens-00000-of-00002.parquet", 0
    whole, index = (folder / name).read_bytes(), (folder / INDEX).read_bytes()
    for at in range(4, len(whole), 61):
        flip(folder / name, at)
        with pytest.raises(ValueError, match=name):
            write_store(folder, some_ids(), RECORDS, TOKENIZER, "three", shard_size=2)
        found += 1
        (folder / name).write_bytes(whole)
        assert (folder / INDEX).read_bytes() == index
    assert found > 20


def test_what_the_system_cannot_read_is_not_called_damaged(folder, monkeypatch):
    def fails(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    store = TokenStore(folder)
    monkeypatch.setattr(store_shards.pq, "ParquetFile", fails)
    with pytest.raises(OSError, match="Too many open files"):
        store[0]


def test_a_store_without_a_row_is_refused(tmp_path):
    plan = StorePlan(TOKENIZER, {"name": "n", "pictures": 2}, shard_size=1)
    with StoreWriter(tmp_path / "store", plan) as writer:
        for number in writer.claims():
            writer.write(number, [], left_out=["broken"])
        with pytest.raises(ValueError, match="at least one readable picture is needed, got 2 broken; check the source"):
            writer.finish()


def test_shards_without_rows_are_read_past(tmp_path):
    plan = StorePlan(TOKENIZER, {"name": "n", "pictures": 3}, shard_size=1)
    with StoreWriter(tmp_path / "store", plan) as writer:
        for number in writer.claims():
            rows = [] if number == 1 else [Row(some_ids(1).numpy()[0], RECORDS[0], str(number), number)]
            writer.write(number, rows, left_out=["broken"] * (not rows))
        writer.finish()
    store = TokenStore(tmp_path / "store")
    assert [store[index]["image"] for index in range(len(store))] == [0, 2]
    assert [row["image"] for row in store.stream()] == [0, 2]


def test_a_cut_off_or_missing_shard_is_named(folder):
    path = folder / "tokens-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"tokens-00000-of-00002.parquet is damaged \(\d+ bytes in place of \d+\)"):
        TokenStore(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00000-of-00002.parquet of the token store is missing; token"):
        TokenStore(folder)


def test_what_is_no_store_is_said(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"lacks _store.json; make one with smalti tokenize"):
        TokenStore(tmp_path)
    for name, said in ((PLAN, "is no readable plan of a token store"), (INDEX, "is no readable index")):
        content = (folder / name).read_text()
        (folder / name).write_text(content[:20])
        with pytest.raises(ValueError, match=said):
            TokenStore(folder)
        (folder / name).write_text(content)
    index = json.loads((folder / INDEX).read_text())
    for wrong in ({"shards": [{"x": 1}]}, {"pictures": "x"}, {"shards": 3}):
        (folder / INDEX).write_text(json.dumps(index | wrong))
        with pytest.raises(ValueError, match="is no readable index"):
            TokenStore(folder)
    (folder / INDEX).write_text(json.dumps(index | {"shards": index["shards"][:1]}))
    with pytest.raises(ValueError, match="is not the index of the store beside it"):
        TokenStore(folder)
    (folder / INDEX).write_text(json.dumps(index | {"plan": "other"}))
    with pytest.raises(ValueError, match="is not the index of the store beside it; delete it and tokenize again"):
        TokenStore(folder)
    plan = json.loads((folder / PLAN).read_text())
    (folder / PLAN).write_text(json.dumps(plan | {"tokenizer": {"fingerprint": "x", "spec": 3}}))
    with pytest.raises(ValueError, match="is no readable plan of a token store"):
        TokenStore(folder)
    (folder / PLAN).write_text(json.dumps(plan | {"format": 2}))
    with pytest.raises(ValueError, match="token stores of format 1 can be read, got 2; use another smalti"):
        TokenStore(folder)


def test_another_tokenizer_is_refused_by_what_differs(folder):
    store = TokenStore(folder)
    store.check_tokenizer(TOKENIZER)
    changed = TOKENIZER | {"fingerprint": "beef", "weights": {"encoder": "aa", "decoder": "cc"}}
    said = "must come from tokenizer beef, got one of f00d in .*: weights.decoder was bb, got cc; tokenize the pictures"
    with pytest.raises(ValueError, match=said):
        store.check_tokenizer(changed)
    with pytest.raises(ValueError, match="class was VQTokenizer, got SeedTokenizer"):
        store.check_tokenizer(changed | {"class": "SeedTokenizer"})
    with pytest.raises(ValueError, match="fingerprint was f00d, got beef; tokenize"):
        store.check_tokenizer({"fingerprint": "beef"})


def test_a_store_that_was_begun_goes_on_and_another_plan_is_refused(folder):
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokens-00001-of-00002.parquet").unlink()
    (folder / INDEX).unlink()
    write_store(folder, some_ids(), RECORDS, TOKENIZER, "three", shard_size=2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert sorted(expected) == [INDEX, PLAN, "tokens-00000-of-00002.parquet", "tokens-00001-of-00002.parquet"]
    with pytest.raises(
        ValueError, match=r"was begun otherwise: source.name was three, got four; shard_size was 2, got"
    ):
        write_store(folder, some_ids(), RECORDS, TOKENIZER, "four", shard_size=3)


def test_a_shard_of_another_store_is_refused(folder, tmp_path):
    write_store(tmp_path / "other", some_ids(), RECORDS, TOKENIZER, "other", shard_size=2)
    name = "tokens-00001-of-00002.parquet"
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=r"belongs to another token store"):
        TokenStore(folder)
    with StoreWriter(folder, read_plan(folder)) as writer:
        said = rf"{name} belongs to another token store; delete it"
        with pytest.raises(ValueError, match=said):
            writer.finish()


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be new or a token store that was begun, got notes.txt in it"):
        write_store(tmp_path, some_ids(), RECORDS, TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crops": 0}, "needs crops >= 1, got 0"),
        ({"shard_size": 0}, "needs shard_size >= 1, got 0"),
        ({"source": {"name": "x", "pictures": 0}}, "needs pictures, got 0; check the source"),
        ({"tokenizer": {"spec": SPEC}}, "needs fingerprint and spec of its tokenizer, got no fingerprint; add it"),
        ({"shard_size": 2**30}, r"holds less than 2\*\*31 codes, got 1073741824 pictures x 1 crops x 8; choose a smal"),
    ],
)
def test_what_cannot_be_planned(options, said):
    with pytest.raises(ValueError, match=said):
        StorePlan(**{"tokenizer": TOKENIZER, "source": {"name": "x", "pictures": 1}} | options)


def test_differences_name_their_path():
    before, now = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": [1, 2]}, "e": {}}
    assert differences(before, now) == ["a.b was 1, got 2", "d was None, got nothing", "e was nothing, got {}"]


def test_shards_are_checked_whole(folder):
    path = folder / "tokens-00000-of-00002.parquet"
    assert check_shard(path, SPEC)[::2] == (2, TokenStore(folder).index["shards"][0]["sha256"])
    assert not (folder / LOCK).exists()
