"""Which model is meant, and that a damaged one is told in one line before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from smalti.cli import models
from smalti.cli.errors import UsageError


@pytest.fixture
def sample(tmp_path, fails):
    """Try to draw with a model; returns the line that it fails with."""

    def run(folder: object) -> str:
        line = fails("sample", "a red circle", "--model", folder, "--out", tmp_path / "out.png")
        assert not (tmp_path / "out.png").exists()
        return line

    return run


def test_the_built_in_model_is_the_default(model, monkeypatch, tmp_path, answers):
    monkeypatch.setattr(models, "BUILT_IN", model)
    assert models.model_folder(None) == model
    assert models.tokenizer_folder(None) == model / "tokenizer"
    answers("sample", "a red circle", "--out", tmp_path / "built_in.png")
    answers("sample", "a red circle", "--out", tmp_path / "given.png", "--model", model)
    assert (tmp_path / "built_in.png").read_bytes() == (tmp_path / "given.png").read_bytes()


def test_the_built_in_model_lies_inside_the_package():
    assert models.BUILT_IN.parts[-2:] == ("pretrained", "scenes")
    assert (models.BUILT_IN.parent.parent / "cli" / "models.py").is_file()


def test_no_model_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "BUILT_IN", tmp_path / "absent")
    with pytest.raises(
        FileNotFoundError, match=r"no --model was given and no model is built in at .*; pass --model DIR"
    ):
        models.model_folder(None)
    with pytest.raises(FileNotFoundError, match="no --tokenizer was given and no model is built in at"):
        models.tokenizer_folder(None)


def test_a_tokenizer_may_be_named_by_its_model(model):
    assert models.tokenizer_folder(str(model)) == model / "tokenizer"
    assert models.tokenizer_folder(str(model / "tokenizer")) == model / "tokenizer"
    found = models.load_tokenizer(models.tokenizer_folder(str(model)), "auto")
    assert found.image_size == (16, 16)


def test_devices():
    assert models.choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert models.choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"--device must be auto or one of cpu.* here, got 'tpu'; choose one of them"):
        models.choose_device("tpu")


def test_a_missing_folder(tmp_path, sample):
    line = sample(tmp_path / "none")
    assert "--model must be the folder of a text-to-image model" in line
    assert line.endswith("which is no folder; check it")


@pytest.mark.parametrize(
    "missing", ["model_index.json", "lm", "tokenizer", "lm/vocabulary.json", "tokenizer/config.json"]
)
def test_a_missing_part_is_named(broken_model, sample, missing):
    path = broken_model / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"lacks {Path(missing).name}" in sample(broken_model)


@pytest.mark.parametrize("weights", ["lm/model.safetensors", "tokenizer/diffusion_pytorch_model.safetensors"])
def test_truncated_weights(broken_model, sample, weights):
    path = broken_model / weights
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = sample(broken_model)
    assert f"{path.parent} does not hold a readable" in line
    assert line.endswith("; save it again")


def test_a_language_model_beside_another_tokenizer(broken_model, other_tokenizer, sample):
    own = models.load_tokenizer(broken_model / "tokenizer", "cpu").fingerprint()
    other = models.load_tokenizer(other_tokenizer, "cpu").fingerprint()
    shutil.rmtree(broken_model / "tokenizer")
    shutil.copytree(other_tokenizer, broken_model / "tokenizer")
    line = sample(broken_model)
    assert f"trained with tokenizer {own}" in line
    assert f"got tokenizer {other}" in line


def test_a_model_whose_replacement_was_killed_is_found(broken_model):
    broken_model.rename(broken_model.with_name(".model.host-1.7.abc0.retired"))
    assert models.model_folder(str(broken_model)) == broken_model
    assert (broken_model / "model_index.json").is_file()
