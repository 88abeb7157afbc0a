"""From pictures to a token store: every picture once, broken ones left out, however many processes read."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from smalti.data.decoding import BrokenImageError
from smalti.data.folder import ImageFolder
from smalti.data.scenes import Scenes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.encode import encode_source, saved_tokenizer


@pytest.fixture
def tokenizer():
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 30).eval()


@pytest.fixture
def folder(tmp_path):
    """Five pictures, the third of them text."""
    for number in range(5):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_text("no picture")
    return ImageFolder(str(tmp_path))


def test_scenes_bring_captions_and_questions(tokenizer):
    scenes = Scenes("small", "train", 5)
    store = encode_source(tokenizer, scenes, batch_size=2)
    assert len(store) == 5
    assert [record.caption for record in store.records] == [scenes.caption(index) for index in range(5)]
    assert [len(record.questions) for record in store.records] == [len(scenes.questions(index)) for index in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_left_out_and_counted(tokenizer, folder, workers):
    store = encode_source(tokenizer, folder, batch_size=2, workers=workers)
    assert len(store) == 4
    assert (store.origin["pictures"], store.origin["left_out"]) == (5, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_stops_where_it_shall(tokenizer, folder, workers):
    with pytest.raises(BrokenImageError, match="expected a readable picture"):
        encode_source(tokenizer, folder, on_error="raise", workers=workers)


def test_workers_change_nothing(tokenizer):
    scenes = Scenes("small", "train", 7)
    alone, helped = (encode_source(tokenizer, scenes, batch_size=2, workers=workers) for workers in (0, 2))
    assert torch.equal(alone.ids, helped.ids)
    assert alone.records == helped.records
    assert alone.origin == helped.origin


def test_the_pictures_are_known_by_their_hash(tokenizer):
    first, same, other = (
        encode_source(tokenizer, scenes, batch_size=size).origin["pictures_hash"]
        for size, scenes in (
            (2, Scenes("small", "train", 3)),
            (3, Scenes("small", "train", 3)),
            (2, Scenes("small", "train", 3, seed=1)),
        )
    )
    assert first == same != other


def test_progress_ends_with_all(tokenizer):
    told = list[tuple[int, int]]()
    encode_source(tokenizer, Scenes("small", "train", 5), batch_size=2, progress=lambda *seen: told.append(seen))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_a_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="a tokenizer was expected in"):
        saved_tokenizer(str(tmp_path / "none"))
