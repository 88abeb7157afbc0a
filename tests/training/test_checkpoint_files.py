"""Checkpoints are looked at before anything in them could run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict

from smalti.training.checkpoint_files import TABLE, check_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Touch:
    """Whose pickle makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A sharded checkpoint with an optimizer, as Lightning writes it."""
    folder = tmp_path_factory.mktemp("sharded") / "last.ckpt"
    model = torch.nn.Linear(3, 3).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"state_dict": weights, "optimizer_0": state}, checkpoint_id=folder)
    torch.save({"epoch": 1, "loops": {"fit": [1, 2]}}, folder / "meta.pt")
    return folder


@pytest.fixture
def sharded(saved, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "last.ckpt"))


def table(folder: Path) -> Metadata:
    return pickle.loads((folder / TABLE).read_bytes())


def test_what_training_saves_is_taken(sharded, tmp_path):
    check_checkpoint(sharded)
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 1}, tmp_path / "last.pt")
    check_checkpoint(tmp_path / "last.pt")
    check_checkpoint(tmp_path / "nowhere")


def test_code_in_a_file(tmp_path):
    torch.save({"state_dict": {}, "more": Touch(tmp_path / "made")}, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"last\.ckpt must hold tensors .* a pickle that asks for posix\.system, which"
    ):
        check_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "made").exists()


def test_code_in_the_table(sharded, tmp_path):
    (sharded / TABLE).write_bytes(pickle.dumps(Touch(tmp_path / "made")))
    wanted = r"\.metadata must hold .* asks for posix\.system, which .*; continue from another checkpoint$"
    with pytest.raises(ValueError, match=wanted):
        check_checkpoint(sharded)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("module", ["torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"])
def test_code_reached_through_a_module_of_tables(module, sharded):
    # protocol 4: SHORT_BINUNICODE module, SHORT_BINUNICODE name, STACK_GLOBAL, STOP
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, "os.system"))
    (sharded / TABLE).write_bytes(b"\x80\x04" + names + b"\x93.")
    with pytest.raises(ValueError, match=rf"asks for {module}\.os\.system, which can run any code"):
        check_checkpoint(sharded)


def test_code_in_a_plain_value(sharded, tmp_path):
    about = table(sharded)
    index = next(index for index in about.storage_data if index.fqn == "optimizer_0.param_groups.0.lr")
    place = about.storage_data[index]
    torch.save(Touch(tmp_path / "made"), sharded / "other")
    place.relative_path, place.offset, place.length = "other", 0, (sharded / "other").stat().st_size
    (sharded / TABLE).write_bytes(pickle.dumps(about))
    with pytest.raises(ValueError, match=r"^optimizer_0\.param_groups\.0\.lr in .* asks for posix\.system, which"):
        check_checkpoint(sharded)
    assert not (tmp_path / "made").exists()


def test_code_beside_the_parts(sharded, tmp_path):
    torch.save(Touch(tmp_path / "made"), sharded / "meta.pt")
    with pytest.raises(ValueError, match=r"meta\.pt must hold .* asks for posix\.system, which"):
        check_checkpoint(sharded)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"nothing", pickle.dumps([1])])
def test_a_damaged_table(content, sharded):
    (sharded / TABLE).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata (cannot be read|must be the table of a checkpoint, got list)"):
        check_checkpoint(sharded)
