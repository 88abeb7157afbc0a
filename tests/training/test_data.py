from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from smalti.data.sources import BrokenImageError, ImageSource
from smalti.training.data import ImageData
from smalti.training.resume import ResumableData, end_with

BROKEN = (3, 11)


class Noise(ImageSource):
    def __init__(self, count: int = 26) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def picture(self, index: int) -> Image.Image:
        if index in BROKEN:
            raise BrokenImageError(f"picture {index} is broken")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8))

    def caption(self, index: int) -> str | None:
        return f"c{index}"

    def name(self, index: int) -> str:
        return f"noise-{index}"


Seen = list[tuple[list[int], list[int], float]]


class Recorder(LightningModule):
    """Writes down every batch: indices, skips, and a sum over the pixels that tells one random crop from another."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.seen: Seen = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx: int) -> Tensor:
        if self.fail_at == len(self.seen):
            raise RuntimeError("killed")
        self.seen.append((batch["index"].tolist(), batch["skipped"], batch["images"].double().sum().item()))
        return self.weight * batch["images"].mean()

    def validation_step(self, batch, batch_idx: int) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path: Path, **options) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **(defaults | options),
    )  # fmt: skip


def data(workers: int = 0, **options) -> ImageData:
    """26 - 4 held out = 22 pictures, 5 batches of 4 an epoch."""
    defaults = {"batch_size": 4, "crop": "random", "flip": True, "seed": 7, "held_out": 4}
    return ImageData(Noise(), 8, workers=workers, **(defaults | options))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """13 steps: two whole epochs and three batches of the third."""
    model = Recorder()
    trainer(tmp_path_factory.mktemp("whole"), max_steps=13).fit(model, data())
    assert len(model.seen) == 13
    assert {index for _, skipped, _ in model.seen for index in skipped} == set(BROKEN)
    return model.seen


def checkpoints(folder: Path, **options) -> dict[str, object]:
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **options)
    return {"callbacks": [saver], "enable_checkpointing": True}


def by_step(tmp_path: Path, step: int, workers: int) -> Path:
    """Stopped by max_steps, after a checkpoint in the middle of an epoch."""
    options = checkpoints(tmp_path, every_n_train_steps=1)
    trainer(tmp_path, max_steps=step, **options).fit(Recorder(), data(workers))
    return tmp_path / f"step={step}.ckpt"


def by_error(tmp_path: Path, step: int, workers: int) -> Path:
    """Killed in the middle of a step; the last checkpoint is that of the step before."""
    options = checkpoints(tmp_path, every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, max_epochs=4, **options).fit(Recorder(fail_at=step), data(workers))
    return tmp_path / f"step={step}.ckpt"


def after_the_end(tmp_path: Path, step: int, workers: int) -> Path:
    """Saved by hand when fit has returned: Lightning then counts the broken-off epoch as finished."""
    runner = trainer(tmp_path, max_steps=step)
    runner.fit(Recorder(), data(workers))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


CUTS = [(cut, step, 0) for cut in (by_step, by_error, after_the_end) for step in (4, 5, 7)]


@pytest.mark.parametrize(("cut", "step", "workers"), [*CUTS, (by_step, 4, 2), (by_error, 7, 2), (after_the_end, 7, 2)])
def test_resume_is_exact(
    tmp_path: Path, uninterrupted: Seen, cut: Callable[[Path, int, int], Path], step: int, workers: int
):
    path = cut(tmp_path, step, workers)
    state = torch.load(path, weights_only=True)["ImageData"]
    assert (state["epoch"], state["batch"]) == divmod(step, 5)
    model = Recorder()
    trainer(tmp_path, max_steps=13).fit(model, data(workers), ckpt_path=path, weights_only=True)
    assert model.seen == uninterrupted[step:]


def test_resume_with_epochs_as_the_limit(tmp_path: Path, uninterrupted: Seen):
    path = by_error(tmp_path, 7, 0)
    model = Recorder()
    runner = trainer(tmp_path, max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="You're resuming from a checkpoint that ended before the epoch")
        runner.fit(model, data(), ckpt_path=path)
    assert model.seen == uninterrupted[7:10]
    assert runner.current_epoch == 2


def test_resume_from_the_end_of_an_epoch(tmp_path: Path, uninterrupted: Seen):
    options = checkpoints(tmp_path, every_n_epochs=1, save_on_train_epoch_end=True)
    trainer(tmp_path, max_epochs=1, **options).fit(Recorder(), data())
    model = Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, data(), ckpt_path=tmp_path / "step=5.ckpt")
    assert model.seen == uninterrupted[5:10]


def test_resume_twice_and_with_accumulated_gradients(tmp_path: Path, uninterrupted: Seen):
    options = checkpoints(tmp_path, every_n_train_steps=1)
    trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, **options).fit(Recorder(), data())
    second = Recorder()
    trainer(tmp_path, max_steps=4, accumulate_grad_batches=2, **options).fit(
        second, data(), ckpt_path=tmp_path / "step=1.ckpt"
    )
    third = Recorder()
    trainer(tmp_path, max_steps=6, accumulate_grad_batches=2).fit(third, data(), ckpt_path=tmp_path / "step=4.ckpt")
    seen = second.seen + third.seen
    assert seen == uninterrupted[2 : 2 + len(seen)]
    assert len(seen) >= 8


def test_a_second_fit_with_a_new_trainer_starts_over(tmp_path: Path, uninterrupted: Seen):
    shared = data()
    for _ in range(2):
        model = Recorder()
        trainer(tmp_path, max_steps=3).fit(model, shared)
        assert model.seen == uninterrupted[:3]


def test_limited_epochs_go_on_where_they_stopped(tmp_path: Path, uninterrupted: Seen):
    model = Recorder()
    trainer(tmp_path, max_epochs=3, limit_train_batches=3).fit(model, data())
    assert model.seen == uninterrupted[:9]


def test_overfitting_repeats_one_batch(tmp_path: Path, uninterrupted: Seen):
    model = Recorder()
    trainer(tmp_path, max_epochs=3, overfit_batches=1).fit(model, data(held_out=0, on_error="skip"))
    assert len(model.seen) == 3
    assert model.seen[0] == model.seen[1] == model.seen[2]


def test_resume_with_another_order_is_an_error(tmp_path: Path):
    path = by_step(tmp_path, 4, 0)
    for options, message in [
        ({"batch_size": 2}, "expected global batch size 4 as in the checkpoint, got 2; resume with the same data"),
        ({"held_out": 5}, "expected items 22 as in the checkpoint, got 21"),
        ({"seed": 8}, "expected seed 7 as in the checkpoint, got 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, max_steps=6).fit(Recorder(), data(**options), ckpt_path=path)


def test_held_out_pictures_are_validated_and_never_trained_on(tmp_path: Path):
    module, model = data(), Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, module)
    assert model.validated == [0, 1, 2, 3] * 2
    validation = module.validation_set()
    assert validation is not None
    assert [validation.source.name(index) for index in range(4)] == [f"noise-{index}" for index in range(22, 26)]
    assert max(index for batch, _, _ in model.seen for index in batch) < 22
    assert validation.crop.deterministic


def test_without_validation_and_with_a_source_for_it(tmp_path: Path):
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, data(held_out=0))
    assert model.validated == []
    trainer(tmp_path, max_epochs=1).fit(model, data(held_out=0, validation=Noise(3)))
    assert model.validated == [0, 1, 2]


def test_skipped_pictures_are_counted_once_logged_and_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    with caplog.at_level(logging.WARNING, "smalti.training.data"):
        trainer(tmp_path, max_epochs=3, logger=logger, log_every_n_steps=1).fit(Recorder(), data(held_out=2))
    (message,) = [record.getMessage() for record in caplog.records if record.name == "smalti.training.data"]
    assert message == (
        "2 of 24 training pictures cannot be read and are replaced by the next readable one: noise-3, noise-11; "
        "pass on_error='raise' to stop at the first"
    )
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("data/skipped")
    assert [line.split(",")[column] for line in lines[1:] if line.split(",")[column]] == ["2.0", "2.0", "2.0"]


def test_on_error_raise_stops_training(tmp_path: Path):
    with pytest.raises(BrokenImageError, match="picture 3 is broken"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), data(on_error="raise", seed=0, batch_size=22))


def test_skipped_pictures_survive_a_resume(tmp_path: Path):
    path = by_step(tmp_path, 9, 0)
    assert torch.load(path, weights_only=True)["ImageData"]["skipped"] == list(BROKEN)
    module = data()
    trainer(tmp_path, max_steps=10).fit(Recorder(), module, ckpt_path=path)
    assert module.state_dict()["skipped"] == list(BROKEN)


def test_cache_with_persistent_workers(tmp_path: Path):
    model = Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, data(2, crop="center", flip=False, cache=True, held_out=0))
    plain = Recorder()
    trainer(tmp_path, max_epochs=2).fit(plain, data(crop="center", flip=False, held_out=0))
    assert model.seen == plain.seen


def test_workers_end_with_the_fit(tmp_path: Path):
    trainer(tmp_path, max_epochs=1).fit(Recorder(), data(2))
    assert multiprocessing.active_children() == []


class Numbers(ResumableData):
    """Not pictures: what a data module of token sequences looks like."""

    def train_set(self) -> TensorDataset:
        return TensorDataset(torch.arange(10))

    def validation_set(self) -> None:
        return None


def test_any_map_style_data_set_can_be_resumed():
    module = Numbers(batch_size=2, shuffle=False)
    assert module.state_dict() == {}
    assert [batch[0].tolist() for batch in module.train_dataloader()] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert (module.state_dict()["epoch"], module.state_dict()["batch"]) == (0, 0)
    assert module.val_dataloader() == []
    assert pickle.loads(pickle.dumps(module.collate))([torch.tensor(1)]).tolist() == [1]


def test_errors(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="expected workers >= 0, got -1"):
        data(-1)
    with pytest.raises(ValueError, match="expected held_out >= 0, got -1"):
        data(held_out=-1)
    with pytest.raises(ValueError, match=r"expected validation or held_out, got both \(held_out=4\)"):
        data(validation=Noise())
    with pytest.raises(ValueError, match="expected held_out < 26 pictures, got 26"):
        data(held_out=26).train_set()

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ()

    monkeypatch.setattr(Numbers, "train_set", lambda self: Endless())
    with pytest.raises(TypeError, match="expected a map-style data set with a length, got Endless; define __len__"):
        Numbers().train_dataloader()


def test_a_worker_whose_parent_is_gone_ends():
    if not (child := os.fork()):
        end_with(os.getppid() + 1, 0)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    if not (child := os.fork()):
        end_with(os.getppid(), 0)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
