"""Codes on disk: what is read is what was written, and anything else is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from smalti.tokenizers.codes import Codebook, CodeLayout, Codes, CodeSpec
from smalti.tokenizers.files import CodesFile

SPEC = CodeSpec(CodeLayout("grid", (2, 3)), (Codebook("semantic", 8), Codebook("pixel", 5, 2)))
DYNAMIC = CodeSpec(CodeLayout("sequence", (3,)), (Codebook("word", 4),), dynamic=True)


def stored() -> CodesFile:
    ids = torch.arange(4 * 6 * 3).view(4, 6, 3) % 5
    names = ("a.png", "b/ä.png", "c", "d")
    return CodesFile(Codes.full(ids, SPEC), names, "0123456789abcdef", {"size": [16, 16]}, "beef")


def test_what_was_written_is_read(tmp_path):
    stored().save(tmp_path / "codes.safetensors")
    found = CodesFile.open(tmp_path / "codes.safetensors")
    assert torch.equal(found.codes.ids, stored().codes.ids)
    assert found.codes.spec == SPEC
    assert (found.names, found.fingerprint, found.transform) == (stored().names, "0123456789abcdef", {"size": [16, 16]})
    assert found.pictures_hash == "beef"
    with safe_open(tmp_path / "codes.safetensors", "pt") as file:
        assert file.get_tensor("ids").dtype == torch.int32
        assert file.get_tensor("mask").dtype == torch.bool


def test_padding_survives(tmp_path):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    codes = Codes(torch.tensor([[[0], [3], [-1]], [[1], [2], [3]]]), mask, DYNAMIC)
    CodesFile(codes, ("a", "b"), "f").save(tmp_path / "codes.safetensors")
    found = CodesFile.open(tmp_path / "codes.safetensors").codes
    assert torch.equal(found.ids, codes.ids)
    assert torch.equal(found.mask, mask)


def test_metadata_is_one_entry_so_that_equal_contents_are_equal_bytes(tmp_path):
    stored().save(tmp_path / "codes.safetensors")
    with safe_open(tmp_path / "codes.safetensors", "pt") as file:
        assert list(file.metadata()) == ["smalti.codes"]


def test_files_that_do_not_know_the_hash_of_their_pictures_are_read(tmp_path):
    path = tmp_path / "codes.safetensors"
    stored().save(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["smalti.codes"])
        tensors = {name: file.get_tensor(name) for name in ("ids", "mask")}
    del about["pictures_hash"]
    save_file(tensors, path, {"smalti.codes": json.dumps(about)})
    assert CodesFile.open(path).pictures_hash is None


def test_names_must_fit():
    with pytest.raises(ValueError, match="codes need one name per picture, got 1 for 4 pictures"):
        CodesFile(stored().codes, ("a",), "f")


def test_missing_damaged_and_other_files(tmp_path):
    path = tmp_path / "codes.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"a file of codes was expected at .*, got no such file; check the path"
    ):
        CodesFile.open(path)
    stored().save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=r"should be a safetensors file, got a damaged one .*; encode the pictures again"
    ):
        CodesFile.open(path)
    save_file({"ids": torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match=r"should hold codes of pictures but lacks 'smalti.codes'; write it with encode"
    ):
        CodesFile.open(path)
    save_file({"ids": torch.zeros(1)}, path, {"smalti.codes": "{}"})
    with pytest.raises(ValueError, match=r"\(File does not contain tensor mask\); encode the pictures again"):
        CodesFile.open(path)
    save_file({"ids": torch.zeros(1), "mask": torch.zeros(1)}, path, {"smalti.codes": "{}"})
    with pytest.raises(ValueError, match="should hold codes of pictures but lacks 'tokenizer'; write it with encode"):
        CodesFile.open(path)
    save_file({"ids": torch.zeros(1)}, path, {"smalti.codes": "no JSON"})
    with pytest.raises(ValueError, match=r"got a damaged one \(Expecting value.*\); encode the pictures again"):
        CodesFile.open(path)
