"""``last.ckpt``: when it is written, and that a full disk or Ctrl-C leaves it whole."""

from __future__ import annotations

import csv
import errno
import os
import signal

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from smalti.data.files import DiskFullError
from smalti.training.base import TrainingModule
from smalti.training.interrupt import GracefulInterrupt


class Line(TrainingModule):
    """A line through the origin."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)

    def training_loss(self, batch: Tensor) -> Tensor:
        return self.line(batch).square().mean()


class CtrlC(Callback):
    """Presses Ctrl-C during a batch, once or twice."""

    def __init__(self, batch: int, times: int = 1) -> None:
        self.batch, self.times = batch, times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def fit(folder, *callbacks, **options) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(list(torch.randn(10, 3, 2)), batch_size=None))
    return trainer


def saved_step(path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_saves_every_few_steps_and_at_the_end(tmp_path):
    class Steps(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            path = tmp_path / "last.ckpt"
            self.seen[batch_idx] = saved_step(path) if path.exists() else None

    steps = Steps()
    steps.seen = {}
    fit(tmp_path, GracefulInterrupt(every=4), steps)
    assert list(steps.seen.values()) == [None] * 4 + [4] * 4 + [8] * 2
    assert saved_step(tmp_path / "last.ckpt") == 10
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    path, before = tmp_path / "elsewhere" / "now.ckpt", signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match=r"^1$"):
        fit(tmp_path, GracefulInterrupt(every=100, path=str(path)), CtrlC(2), accumulate_grad_batches=2)
    assert saved_step(path) == 2  # batches 2 and 3 make the second step
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    with pytest.raises(SystemExit, match=r"^1$"):
        fit(tmp_path, GracefulInterrupt(every=100), CtrlC(2, times=2))
    assert not (tmp_path / "last.ckpt").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save = Trainer.save_checkpoint

    def full(self, path, *args, **kwargs):
        if self.global_step > 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(DiskFullError, match=r"last.ckpt needs more room than its disk has left"):
        fit(tmp_path, GracefulInterrupt(every=4))
    assert saved_step(tmp_path / "last.ckpt") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_is_checked():
    with pytest.raises(ValueError, match=r"every must be >= 1 step, got 0"):
        GracefulInterrupt(every=0)


def test_a_step_is_saved_after_its_validation(tmp_path):
    class Judged(Line):
        def validation_step(self, batch, batch_idx):
            path = tmp_path / "last.ckpt"
            seen.append((self.global_step, saved_step(path) if path.exists() else None))

    seen = []
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        default_root_dir=tmp_path, callbacks=[GracefulInterrupt(every=2)], val_check_interval=4, num_sanity_val_steps=0,
    )  # fmt: skip
    pictures = DataLoader(list(torch.randn(10, 3, 2)), batch_size=None)
    trainer.fit(Judged(), pictures, DataLoader(list(torch.randn(1, 3, 2)), batch_size=None))
    assert seen == [(4, 2), (8, 6)]
    assert saved_step(tmp_path / "last.ckpt") == 10


def test_the_row_of_the_saved_step_is_logged_by_the_run_that_goes_on(tmp_path):
    """Lightning logs a step after its checkpoint is written: a process may die in between."""

    class Dies(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if step == 3 and self.version == 0:
                raise ZeroDivisionError("killed")
            super().log_metrics(metrics, step)

    def train(**options) -> None:
        trainer = Trainer(
            accelerator="cpu", logger=Dies(tmp_path), enable_progress_bar=False, enable_model_summary=False,
            max_epochs=1, default_root_dir=tmp_path, callbacks=[GracefulInterrupt(every=4)], log_every_n_steps=1,
        )  # fmt: skip
        torch.manual_seed(1)
        trainer.fit(Line(), DataLoader(list(torch.randn(10, 3, 2)), batch_size=None), weights_only=True, **options)

    with pytest.raises(ZeroDivisionError, match="killed"):
        train()
    assert saved_step(tmp_path / "last.ckpt") == 4
    train(ckpt_path=tmp_path / "last.ckpt")
    tables = sorted(tmp_path.rglob("metrics.csv"))
    steps = [int(row["step"]) for table in tables for row in csv.DictReader(table.open()) if row["train/loss"]]
    assert steps == list(range(10))
