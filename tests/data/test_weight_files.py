"""Weights are read, and nothing that a file says is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smalti.data.weight_files import read_weight_file, refusal


class Touch:
    """Whose pickle makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def same(found, expected) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_both_kinds_of_files(tmp_path, weights):
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pth")
    torch.save({"model": weights, "step": 3}, tmp_path / "b.ckpt")
    for found in (read_weight_file(tmp_path / "a.safetensors"), read_weight_file(tmp_path / "a.pth")):
        assert same(dict(sorted(found.items())), weights)
    assert same(read_weight_file(str(tmp_path / "a.pth"), mmap=True), weights)
    found = read_weight_file(tmp_path / "b.ckpt")
    assert found["step"] == 3
    assert same(found["model"], weights)


@pytest.mark.parametrize("kind", ["zip", "older file", "bare pickle"])
def test_code_in_a_pickle_does_not_run(kind, tmp_path, weights):
    file, made = tmp_path / "weights.pt", tmp_path / "made"
    content = {"more": Touch(made)} | ({} if kind == "bare pickle" else {"weights": weights})
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    name = r"weights\.pt must hold tensors and plain values, got a pickle that asks for posix\.system, which can run"
    with pytest.raises(ValueError, match=name + " any code; convert it to safetensors where you trust it$"):
        read_weight_file(file)
    assert not made.exists()
    pickle.loads(file.read_bytes()) if kind == "bare pickle" else torch.load(file, weights_only=False)
    assert made.exists()  # it was armed


def test_a_pickle_that_torch_does_not_write_is_no_file_of_weights(tmp_path, recwarn):
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Touch(tmp_path / "made"), protocol=4))
    with pytest.raises(ValueError, match=r"weights\.bin cannot be read as weights \(Unsupported operand 149\)"):
        read_weight_file(tmp_path / "weights.bin")
    assert not (tmp_path / "made").exists()
    assert not recwarn.list


def test_a_whole_module_is_refused_with_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"a pickle that asks for torch\.nn\.modules\.linear\.Linear, which can run"):
        read_weight_file(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_files(name, tmp_path, weights):
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(weights, file)
    whole = file.read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"weights\.\w+ cannot be read as weights \(.+\); fetch it again$"
        ) as found:
            read_weight_file(file)
        assert "\n" not in str(found.value)
        assert "weights_only" not in str(found.value)


def test_a_refusal_without_a_file():
    asked = pickle.UnpicklingError("Unsupported global: GLOBAL a.b was not an allowed global by default.")
    assert refusal(asked).startswith("a file of weights must hold tensors and plain values, got a pickle that asks for")
    other = pickle.UnpicklingError("Weights only load failed.\nWeightsUnpickler error: Unsupported operand 3\n\nSee")
    assert refusal(other) == "a file of weights cannot be read as weights (Unsupported operand 3); fetch it again"
