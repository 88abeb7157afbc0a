"""From pictures to a token store: every picture once, whoever reads, whoever writes, and wherever it was cut off."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest
import torch
from PIL import Image

from smalti.data import store_shards
from smalti.data.decoding import BrokenImageError
from smalti.data.files import DiskFullError
from smalti.data.folder import ImageFolder
from smalti.data.scenes import Scenes
from smalti.data.store import OneCrop, TokenStore
from smalti.data.store_shards import open_shard
from smalti.data.store_writer import StoreWriter
from smalti.data.transforms import Crop, from_uint8
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.tokenize import Tokenized, TokenizeSettings, plan_store, tokenize_source

SCENES = Scenes("small", "train", 11)


@pytest.fixture(scope="module")
def tokenizer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16)
        return VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), 30).eval()


@pytest.fixture
def folder(tmp_path):
    """Five pictures, the third of them text."""
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "2.png").write_text("no picture")
    return ImageFolder(str(tmp_path / "pictures"))


def tokenized(tokenizer, source, out, progress=None, **options) -> Tokenized:
    options = {"crop": Crop(30), "batch_size": 2, "shard_size": 4} | options
    return tokenize_source(tokenizer, source, out, "some", TokenizeSettings(**options), progress)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_holds_what_encoding_gives(tokenizer, tmp_path):
    done = tokenized(tokenizer, SCENES, tmp_path / "store")
    assert (done.pictures, done.left_out, done.index["rows"], len(done.index["shards"])) == (11, 0, 11, 3)
    store = TokenStore(tmp_path / "store")
    for index in range(11):
        picture = from_uint8(torch.from_numpy(SCENES.pixels(index)).permute(2, 0, 1))[None]
        assert torch.equal(store[index]["ids"], tokenizer.encode(picture).ids[0])
        assert store[index]["caption"] == SCENES.caption(index)
        asked = SCENES.questions(index)
        assert store[index]["questions"] == tuple((item.question, item.answer) for item in asked)
        assert store[index]["key"] == SCENES.name(index)
    store.check_tokenizer(tokenizer.identity())
    assert store.plan.transform == Crop(30).describe()
    assert store.plan.tokenizer["class"] == "VQTokenizer"
    assert set(store.plan.tokenizer["weights"]) >= {"encoder", "decoder", "quantizer"}


def test_a_changed_tokenizer_is_named_by_its_part(tokenizer, tmp_path):
    tokenized(tokenizer, SCENES, tmp_path / "store")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    changed = VQTokenizer.from_pretrained(tmp_path / "tokenizer")
    store = TokenStore(tmp_path / "store")
    store.check_tokenizer(changed.identity())
    next(changed.decoder.parameters()).data.add_(1)
    with pytest.raises(
        ValueError, match=r"got one of \w{16} in .*: weights.decoder was \w{16}, got \w{16}; tokenize the pic"
    ):
        store.check_tokenizer(changed.identity())


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_interruptions_change_no_byte(tokenizer, tmp_path, workers):
    tokenized(tokenizer, SCENES, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done > 5:
            raise KeyboardInterrupt("pressed")

    with pytest.raises(KeyboardInterrupt, match="pressed"):
        tokenized(tokenizer, SCENES, tmp_path / "cut", stop, workers=workers)
    assert sorted(path.suffix for path in (tmp_path / "cut").glob("[!.]*")) == [".json", ".parquet"]
    seen = list[int]()
    done = tokenized(tokenizer, SCENES, tmp_path / "cut", lambda count, total: seen.append(count), workers=workers)
    assert done.pictures == 7  # the first shard was kept
    assert (seen[0], seen[-1]) == (6, 11)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert tokenized(tokenizer, SCENES, tmp_path / "cut").pictures == 0


def test_a_missing_shard_alone_is_made_again(tokenizer, tmp_path):
    tokenized(tokenizer, SCENES, tmp_path / "store")
    before = files(tmp_path / "store")
    (tmp_path / "store" / "tokens-00001-of-00003.parquet").unlink()
    assert tokenized(tokenizer, SCENES, tmp_path / "store").pictures == 4
    assert files(tmp_path / "store") == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_left_out_and_named(tokenizer, folder, tmp_path, workers):
    done = tokenized(tokenizer, folder, tmp_path / "store", on_error="skip", workers=workers)
    assert (done.pictures, done.left_out) == (5, 1)
    store = TokenStore(tmp_path / "store")
    assert [store[index]["image"] for index in range(len(store))] == [0, 1, 3, 4]
    assert open_shard(tmp_path / "store" / "tokens-00000-of-00002.parquet")[1].left_out == ["2.png"]
    assert store.index["left_out"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_stops_where_it_shall(tokenizer, folder, tmp_path, workers):
    with pytest.raises(BrokenImageError, match="expected a readable picture"):
        tokenized(tokenizer, folder, tmp_path / "store", workers=workers)
    assert not (tmp_path / "store").exists()  # not one shard was made
    with pytest.raises(BrokenImageError, match="expected a readable picture"):
        tokenized(tokenizer, folder, tmp_path / "store", workers=workers, shard_size=1)
    assert len(list((tmp_path / "store").glob("*.parquet"))) == 2


def test_crops_are_drawn_from_the_picture_and_their_number(tokenizer, tmp_path):
    options = {"crop": Crop(30, "random", flip=True), "crops": 3}
    tokenized(tokenizer, SCENES, tmp_path / "one", **options)
    tokenized(tokenizer, SCENES, tmp_path / "two", workers=2, **options)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    store = TokenStore(tmp_path / "one")
    places = [(store[row]["image"], store[row]["crop"]) for row in range(len(store))]
    assert places == [(index, crop) for index in range(11) for crop in range(3)]
    assert len({tuple(store[row]["ids"].flatten().tolist()) for row in range(3)}) == 3
    assert len(OneCrop(store)) == 11


def test_the_pictures_are_known_by_their_hash(tokenizer, tmp_path):
    def known(name: str, seed: int = 0, **options) -> str:
        return tokenized(tokenizer, Scenes("small", "train", 3, seed=seed), tmp_path / name, **options).index[
            "pictures"
        ]

    assert known("a") == known("b", shard_size=2, batch_size=1) != known("c", seed=1)


def test_a_full_disk_keeps_the_shards_that_are_whole(tokenizer, tmp_path, monkeypatch):
    tokenized(tokenizer, SCENES, tmp_path / "whole")
    written, write = [], store_shards.pq.write_table

    def full(table, path, **options):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(table, path, **options)

    monkeypatch.setattr(store_shards.pq, "write_table", full)
    with pytest.raises(DiskFullError, match=r"tokens-00001-of-00003.parquet needs more room than its disk has left"):
        tokenized(tokenizer, SCENES, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").glob("*.parquet")] == ["tokens-00000-of-00003.parquet"]
    assert tokenized(tokenizer, SCENES, tmp_path / "store").pictures == 7
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_crops_that_would_be_the_same_are_refused():
    with pytest.raises(
        ValueError, match="3 crops of a picture differ where the crop is drawn, got mode 'center' without"
    ):
        TokenizeSettings(Crop(30), crops=3)
    with pytest.raises(ValueError, match="expected workers and seed >= 0, got -1 and 0"):
        TokenizeSettings(Crop(30), workers=-1)


def test_another_plan_is_refused_by_what_differs(tokenizer, tmp_path):
    tokenized(tokenizer, SCENES, tmp_path / "store")
    with pytest.raises(ValueError, match=r"was begun otherwise: transform.filter was lanczos, got box; choose another"):
        tokenized(tokenizer, SCENES, tmp_path / "store", crop=Crop(30, filter="box"))
    uncaptioned = Scenes("small", "train", 11)
    uncaptioned.caption = lambda index: None
    with pytest.raises(ValueError, match=r"was begun otherwise: source.captions was \w+, got \w+; choose another"):
        tokenized(tokenizer, uncaptioned, tmp_path / "store")
    with pytest.raises(ValueError, match=r"was begun otherwise: source.pictures was 11, got 3; source.names was"):
        tokenized(tokenizer, Scenes("small", "train", 3), tmp_path / "store")


def _child(tokenizer, out, pause: float) -> int:
    """A process of its own that writes a store, slowly."""
    if child := os.fork():
        return child
    try:
        tokenized(tokenizer, SCENES, out, lambda done, total: time.sleep(pause), shard_size=2)
    finally:
        os._exit(0)


def test_processes_share_out_the_shards_and_one_may_die(tokenizer, tmp_path):
    tokenized(tokenizer, SCENES, tmp_path / "whole", shard_size=2)
    out = tmp_path / "store"
    first, second = _child(tokenizer, out, 0.6), _child(tokenizer, out, 0.6)
    while not list(out.glob("*.parquet")):
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    own = tokenized(tokenizer, SCENES, out, shard_size=2)
    assert 0 < own.pictures < 11
    for child in (first, second):
        os.waitpid(child, 0)
    assert (out / "_index.json").exists()  # whoever was last found what the dead one had left
    assert files(out) == files(tmp_path / "whole")


def test_a_shard_that_another_process_makes_is_left_to_it(tokenizer, tmp_path):
    settings = TokenizeSettings(Crop(30), batch_size=2, shard_size=4)
    with StoreWriter(tmp_path / "store", plan_store(tokenizer, SCENES, "some", settings)) as writer:
        assert next(writer.claims()) == 0
        child = _child_exit(tokenizer, tmp_path / "store")
        assert child == 7  # pictures of the other two shards
        assert writer.missing() == [0]
    assert tokenized(tokenizer, SCENES, tmp_path / "store").pictures == 4


def test_a_process_comes_back_to_the_shard_of_a_dead_one(tokenizer, tmp_path):
    settings = TokenizeSettings(Crop(30), batch_size=2, shard_size=4)
    plan = plan_store(tokenizer, SCENES, "some", settings)
    with StoreWriter(tmp_path / "store", plan) as mine:
        other = _holder(tmp_path / "store", plan)
        claims = mine.claims()
        assert [next(claims), next(claims)] == [1, 2]  # 0 is held by the other
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        mine._held.clear()
        assert next(claims) == 0


def _holder(folder, plan) -> int:
    """A process that claims the first shard and waits to be killed."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.read(reading, 1)
        return child
    with StoreWriter(folder, plan) as writer:
        next(writer.claims())
        os.write(writing, b"x")
        time.sleep(60)
    os._exit(0)


def _child_exit(tokenizer, out) -> int:
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        done = tokenized(tokenizer, SCENES, out)
        code = done.pictures if done.index is None else 98
    finally:
        os._exit(code)
