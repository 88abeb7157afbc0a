"""The record kept with each number: hashes, comparison, and files that are whole or absent."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from smalti.eval.protocol import (
    Protocol,
    file_hash,
    folder_hash,
    read_result,
    require_alike,
    state_hash,
    text_hash,
    versions,
    write_result,
)


def protocol(**changes: object) -> Protocol:
    fields: dict[str, object] = {
        "task": "reconstruction",
        "dataset": "photos/validation",
        "dataset_hash": "ab" * 32,
        "count": 64,
        "dtype": "float32",
        "seed": 0,
        "crop": {"size": (32, 32), "mode": "center"},
        "versions": {"torch": "2.13.0"},
    }
    return Protocol(**(fields | changes))  # pyright: ignore[reportArgumentType]


def test_protocol_survives_json():
    record = json.loads(json.dumps(protocol().to_dict()))
    assert Protocol.from_dict(record) == protocol()
    assert record["crop"] == {"size": [32, 32], "mode": "center"}


def test_protocol_records_the_software_unasked():
    made = Protocol("reconstruction", "photos", "ab", 1, "float32", 0)
    assert made.versions == versions()
    assert made.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_protocol_refusals():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        protocol(count=0)
    with pytest.raises(TypeError, match=r"field extra\.dtype must be a JSON value, got dtype; convert"):
        protocol(extra={"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"field sampler\.scales\[1\] must be finite, got inf"):
        protocol(sampler={"scales": [1.0, math.inf]})
    record = protocol().to_dict()
    with pytest.raises(ValueError, match="got unknown colour; read a result"):
        Protocol.from_dict(record | {"colour": "red"})
    del record["dataset_hash"], record["versions"]
    with pytest.raises(ValueError, match="got missing dataset_hash, versions; read a result"):
        Protocol.from_dict(record)


def test_differences_are_named_to_the_leaf():
    other = protocol(crop={"size": 32, "mode": "random"}, versions={"torch": "2.6.0"}, filter="box")
    assert protocol().differences(other) == {
        "crop.size": ([32, 32], 32),
        "crop.mode": ("center", "random"),
        "filter": (None, "box"),
        "versions.torch": ("2.13.0", "2.6.0"),
    }
    assert protocol().differences(other, ignore=("crop", "versions.torch")) == {"filter": (None, "box")}
    assert protocol().differences(protocol()) == {}


def test_unlike_protocols_are_not_compared():
    require_alike(protocol(), protocol())
    require_alike(protocol(), protocol(filter="box"), ignore=("filter",))
    with pytest.raises(
        ValueError, match=r"one protocol, got count 64 and 50, filter None and 'box'; evaluate both alike"
    ):
        require_alike(protocol(), protocol(count=50, filter="box"))


def test_results_come_back(tmp_path: Path):
    scores = {"psnr": 28.4, "tasks": {"position": {"score": 0.5, "count": 12}}}
    path = tmp_path / "new" / "result.json"
    write_result(path, scores, protocol(), model={"name": "vq", "hash": "cd" * 32})
    result = read_result(path)
    assert (result.scores, result.protocol, result.model["name"]) == (scores, protocol(), "vq")
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]
    assert json.loads(path.read_text())["protocol"]["count"] == 64


def test_a_refused_result_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "result.json"
    write_result(path, {"psnr": 1.0}, protocol())
    with pytest.raises(ValueError, match=r"score tasks\.position must be finite, got nan"):
        write_result(path, {"tasks": {"position": math.nan}}, protocol())
    with pytest.raises(ValueError, match="score fid must be finite, got inf"):
        write_result(path, {"fid": math.inf}, protocol())
    for wrong, name in (("28", "str"), (True, "bool")):
        with pytest.raises(TypeError, match=f"score psnr must be a number, got {name}; convert"):
            write_result(path, {"psnr": wrong}, protocol())  # pyright: ignore[reportArgumentType]
    assert read_result(path).scores == {"psnr": 1.0}


def test_what_is_not_a_result_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a result file, found none at .*none\.json"):
        read_result(tmp_path / "none.json")
    path = tmp_path / "some.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON in .*some\.json"):
        read_result(path)
    for content in ("[]", '{"scores": {}}', '{"scores": {}, "protocol": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"expected scores and a protocol in .*some\.json"):
            read_result(path)


def test_file_and_text_hash_known_answers(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a red circle\nun cœur\n".encode())
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert text_hash(["a red circle", "un cœur"]) == file_hash(path)
    assert text_hash(["un cœur", "a red circle"]) != file_hash(path)
    with pytest.raises(ValueError, match="line break in entry 1"):
        text_hash(["a", "b\nc"])
    with pytest.raises(FileNotFoundError, match=r"expected a file to hash, found none at .*missing"):
        file_hash(tmp_path / "missing")


def test_folder_hash_sees_names_and_contents_only(tmp_path: Path):
    def folder(name: str, files: dict[str, str]) -> str:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return folder_hash(tmp_path / name)

    first = folder("one", {"a/x.png": "1", "b.png": "2"})
    assert folder("two", {"b.png": "2", "a/x.png": "1", ".cache/x": "9", "a/.DS_Store": "9"}) == first
    assert folder("three", {"a/x.png": "1", "b.png": "3"}) != first
    assert folder("four", {"a/y.png": "1", "b.png": "2"}) != first
    assert folder("five", {"x.png": "1", "b.png": "2"}) != first
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got an empty folder"):
        folder_hash(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="expected a folder to hash, found none at"):
        folder_hash(tmp_path / "missing")


def test_state_hash_sees_every_bit_and_nothing_else():
    state = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
    reference = state_hash(state)
    assert state_hash(dict(reversed(state.items()))) == reference
    assert state_hash(state | {"w": torch.arange(6.0).reshape(3, 2).reshape(2, 3)}) == reference
    assert state_hash(state | {"w": torch.arange(6.0).reshape(3, 2)}) != reference
    assert state_hash(state | {"w": state["w"].t().contiguous().t()}) == reference
    assert state_hash(state | {"n": torch.tensor(3, dtype=torch.int32)}) != reference
    nudged = state["w"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    assert state_hash(state | {"w": nudged}) != reference
    with pytest.raises(TypeError, match="state entry extra must be a tensor, got dict; leave it out"):
        state_hash(state | {"extra": {}})  # pyright: ignore[reportArgumentType]
