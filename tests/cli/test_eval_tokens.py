"""``smalti eval tokens``: the same codes from a store, a codes file and pictures give the same numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.store import TokenRecord, write_store
from smalti.eval.protocol import read_result, require_alike, state_hash
from smalti.eval.tokens.statistics import TokenStatistics
from smalti.eval.tokens.stream import streams
from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
from smalti.tokenizers.files import CodesFile

SPEC = CodeSpec(CodeLayout("grid", (4, 4)), (Codebook("semantic", 8), Codebook("pixel", 16, 2)))

TOKENIZER = {"spec": SPEC.to_dict(), "fingerprint": "f00d"}


@pytest.fixture(scope="module")
def codes() -> Codes:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(book.size, (30, 16), generator=generator) for book in SPEC.columns]
    return Codes.full(torch.stack(columns, -1), SPEC)


@pytest.fixture
def store(codes, tmp_path):
    records = [TokenRecord(f"picture {index}") for index in range(len(codes))]
    crop = {"size": [16, 16], "filter": "box"}
    write_store(tmp_path / "store", codes.ids, records, TOKENIZER, transform=crop)
    return tmp_path / "store"


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "pictures"


def test_a_store(codes, store, tmp_path, answers):
    out = tmp_path / "result.json"
    lines = answers("eval", "tokens", store, "--out", out, "--order", "hilbert", "--seed", 3, "--grammar", 200)
    result = read_result(out)
    expected = {one.name: TokenStatistics.of(one, 3, 200).to_dict() for one in streams(codes, "hilbert")}
    assert list(expected) == ["semantic", "pixel.0", "pixel.1", "joint"]
    assert result.scores == {"streams": json.loads(json.dumps(expected))}
    assert result.model == {"tokenizer_fingerprint": "f00d"}
    assert (result.protocol.task, result.protocol.count, result.protocol.filter) == ("token-statistics", 30, "box")
    assert (result.protocol.extra["order"], result.protocol.extra["grammar_budget"]) == ("hilbert", 200)
    assert lines[0] == "30 images, each a grid of 4x4, read in hilbert order"
    assert [line.split()[1] for line in lines[3:7]] == list(expected)
    assert lines[-1] == f"wrote {out}"


def test_a_codes_file(codes, tmp_path, answers):
    names = tuple(f"{index}.png" for index in range(30))
    CodesFile(codes, names, "beef", {"filter": "lanczos"}).save(tmp_path / "codes.safetensors")
    out = tmp_path / "result.json"
    answers("eval", "tokens", tmp_path / "codes.safetensors", "--out", out, "--codebook", "pixel", "--limit", 20)
    result = read_result(out)
    assert list(result.scores["streams"]) == ["pixel.0", "pixel.1"]
    assert result.scores["streams"]["pixel.0"] == TokenStatistics.of(streams(codes[:20])[1]).to_dict()
    ids = {"ids": codes.ids, "mask": codes.mask}
    assert (result.protocol.count, result.protocol.dataset_hash) == (20, state_hash(ids))
    assert result.protocol.dataset == "a codes file, pictures unknown, hash of the codes"
    assert result.model == {"tokenizer_fingerprint": "beef"}


def test_pictures_are_coded_as_by_encode(model, pipeline, pictures, tmp_path, answers):
    codes, one, other = tmp_path / "codes.safetensors", tmp_path / "one.json", tmp_path / "other.json"
    answers("encode", pictures, "--tokenizer", model, "--out", codes)
    answers("eval", "tokens", codes, "--out", one)
    answers("eval", "tokens", pictures, "--tokenizer", model, "--out", other, "--batch", 4, "--dataset", "noise")
    assert read_result(one).scores == read_result(other).scores
    result = read_result(other)
    assert result.model == {"tokenizer": "VQTokenizer", "tokenizer_fingerprint": pipeline.tokenizer.fingerprint()}
    assert (result.protocol.dataset, result.protocol.count, result.protocol.dtype) == ("noise", 6, "float32")
    assert result.protocol.crop is not None
    assert read_result(one).protocol.dataset_hash == result.protocol.dataset_hash


def protocol(answers, out, *arguments):
    answers("eval", "tokens", *arguments, "--out", out)
    return read_result(out).protocol


def test_codes_of_one_set_are_alike_whatever_made_them_and_others_are_not(
    model, other_tokenizer, pictures, tmp_path, answers
):
    found = []
    for name, tokenizer in (("one", model), ("other", other_tokenizer)):
        answers("encode", pictures, "--tokenizer", tokenizer, "--out", tmp_path / f"{name}.safetensors")
        found.append(protocol(answers, tmp_path / f"{name}.json", tmp_path / f"{name}.safetensors"))
    require_alike(*found)
    Image.new("RGB", (16, 16)).save(pictures / "0.png")  # other pictures of the same names
    answers("encode", pictures, "--tokenizer", model, "--out", tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="got dataset_hash"):
        require_alike(found[0], protocol(answers, tmp_path / "one.json", tmp_path / "one.safetensors"))


def test_stores_are_told_apart_by_their_pictures_or_else_by_their_codes(codes, tmp_path, answers):
    records = [TokenRecord()] * len(codes)  # what pictures without captions have
    found = {}
    for name, ids, pictures in (
        ("known", codes.ids, "beef"),
        ("others", codes.ids.flip(0), "beef"),
        ("unknown", codes.ids, ""),
        ("foreign", codes.ids.flip(0), ""),
    ):
        write_store(tmp_path / name, ids, records, TOKENIZER, "a token store", pictures=pictures)
        found[name] = protocol(answers, tmp_path / f"{name}.json", tmp_path / name, "--grammar", 100)
    require_alike(found["known"], found["others"])
    assert (found["known"].dataset, found["known"].dataset_hash) == ("a token store", f"{0xBEEF:064x}")
    assert found["unknown"].dataset == "a token store, pictures unknown, hash of the codes"
    with pytest.raises(ValueError, match="got dataset_hash"):
        require_alike(found["unknown"], found["foreign"])


def test_pictures_of_the_embedded_world(model, tmp_path, answers):
    answers("eval", "tokens", "scenes", "--limit", 4, "--tokenizer", model, "--out", tmp_path / "result.json")
    assert read_result(tmp_path / "result.json").protocol.dataset == "scenes-full validation"


def test_wrong_requests(model, store, pictures, tmp_path, fails):
    out = ("--out", tmp_path / "result.json")
    assert "scan order must be one of raster" in fails("eval", "tokens", store, *out, "--order", "spiral")
    assert "codebook must be one of semantic, pixel.0" in fails("eval", "tokens", store, *out, "--codebook", "text")
    assert "holds codes already; leave it out" in fails("eval", "tokens", store, *out, "--tokenizer", model)
    line = fails("eval", "tokens", store, *out, "--filter", "nonsense")
    assert "--filter is for pictures, but" in line
    assert "holds codes already; leave it out or give pictures" in line
    assert "nonsense" in fails("eval", "tokens", pictures, "--tokenizer", model, *out, "--filter", "nonsense")
    assert "a file of codes was expected" in fails("eval", "tokens", "none.safetensors", *out)
    assert "pictures were expected at" in fails("eval", "tokens", tmp_path / "none.tar", *out)
    assert "--limit must be a whole number, at least 2" in fails("eval", "tokens", store, *out, "--limit", 1)
    assert "--out must end in .json" in fails("eval", "tokens", store, "--out", tmp_path / "result.txt")
    line = fails("eval", "tokens", pictures / "1.png", "--tokenizer", model, *out)
    assert "token statistics need at least two images and a token, got 1 images" in line
    assert not (tmp_path / "result.json").exists()


def test_an_order_that_needs_a_grid(tmp_path, fails):
    spec = CodeSpec(CodeLayout("set", (4,)), (Codebook("slot", 9),))
    codes = Codes.full(torch.zeros(3, 4, 1, dtype=torch.int64), spec)
    CodesFile(codes, ("a", "b", "c"), "f00d").save(tmp_path / "codes.safetensors")
    line = fails("eval", "tokens", tmp_path / "codes.safetensors", "--order", "hilbert", "--out", tmp_path / "o.json")
    assert "hilbert order needs codes laid out as grid, got a set of (4,)" in line
