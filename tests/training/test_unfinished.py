"""A run that is cut off in the middle of an accumulated step goes on as if it had never stopped."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, OnExceptionCheckpoint
from torch import Tensor, nn

from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.adversarial import AdversarialSettings
from smalti.training.base import TrainingModule
from smalti.training.optimizer import OptimizerSettings
from smalti.training.resume import ResumableData
from smalti.training.tokenizer import TokenizerTraining
from smalti.training.unfinished import restore_gradients, unfinished_gradients

SIZE, PARTS = 16, 3


class Noise(ResumableData):
    """24 pictures of noise, two to a batch: four steps of three batches."""

    def __init__(self) -> None:
        super().__init__(2)
        images = torch.rand(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
        self.items = [{"images": image} for image in images]

    def train_set(self):
        return self.items

    def validation_set(self):
        return None


class Recorder(Callback):
    """What every batch logged."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        place = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.logged[place] = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Stop(Callback):
    """Ends the run, as a crash would, before a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.batch:
            raise RuntimeError("the power is gone")


def adversarial() -> TokenizerTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
        tokenizer = VQTokenizer(
            ConvEncoder(**parts), VectorQuantizer(4, 16, revive_below=2.0), ConvDecoder(**parts), SIZE
        )
        judge = PatchDiscriminator(width=8, layers=1)
    settings = AdversarialSettings(
        weight=0.5, start=1, warmup=1, ramp=2, augment=("color", "translation"), lecam=0.3, r1=0.1, r1_every=2
    )
    return TokenizerTraining(
        tokenizer, PixelLoss(), discriminator=judge, adversarial=settings, optimizer=OptimizerSettings(warmup_steps=2)
    )


def trainer(folder, *callbacks, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip


def run(folder, *callbacks, resume=None) -> Trainer:
    steps = {"max_steps": 6, "accumulate_grad_batches": PARTS}
    fitting = trainer(folder, EMAWeightAveraging(decay=0.8), *callbacks, **steps)
    torch.manual_seed(99)
    fitting.fit(adversarial(), Noise(), ckpt_path=resume)
    fitting.save_checkpoint(folder / "end.ckpt")
    return fitting


def flat(value, name="") -> dict[str, object]:
    """A checkpoint without its nesting."""
    if isinstance(value, dict):
        return {key: item for part in value for key, item in flat(value[part], f"{name}/{part}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    run(folder, recorder)
    return flat(torch.load(folder / "end.ckpt", weights_only=True)), recorder.logged


@pytest.mark.parametrize("batch", [10, 14])  # the second batch of step 3, and the third of the next epoch's first
def test_a_run_cut_off_in_an_accumulated_step_resumes_exactly(tmp_path, whole, batch):
    first, second = Recorder(), Recorder()
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(tmp_path, first, Stop(batch), OnExceptionCheckpoint(tmp_path, "cut"))
    cut = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert cut["guard"]["buffers"] is not None
    assert {name.split(".")[0] for name in cut["gradients"]} == {"tokenizer", "discriminator"}
    run(tmp_path, second, resume=tmp_path / "cut.ckpt")
    expected, logged = whole
    found = flat(torch.load(tmp_path / "end.ckpt", weights_only=True))
    assert {name for name in found.keys() ^ expected.keys() if not name.startswith("/callbacks")} == set()
    shared = {name for name in found.keys() & expected.keys() if not name.startswith("/callbacks/ModelCheckpoint")}
    differing = [name for name in shared if not same(found[name], expected[name])]
    # Lightning counts the batch that was begun twice, and may give the logger one step more.
    assert [name for name in differing if not name.endswith(("total/ready", "_batches_that_stepped"))] == []
    assert first.logged.keys() | second.logged.keys() == logged.keys()
    assert {"train/lecam", "train/adversarial", "usage/pixel"} <= set(logged[18])
    for place, values in (first.logged | second.logged).items():
        assert {name: logged[place][name] for name in values} == values, place


def test_a_checkpoint_between_steps_holds_no_gradients(tmp_path):
    run(tmp_path)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert "gradients" not in saved
    assert saved["guard"]["buffers"] is saved["guard"]["noted"] is None


def test_checkpoints_of_before_still_load(tmp_path):
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(tmp_path, Stop(10), OnExceptionCheckpoint(tmp_path, "cut"))
    old = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    for key in ("gradients", "usage", "adversarial"):
        del old[key]
    old["guard"] = {name: old["guard"][name] for name in ("skipped", "rollbacks", "consecutive")}
    torch.save(old, tmp_path / "old.ckpt")
    assert run(tmp_path, resume=tmp_path / "old.ckpt").global_step == 6


class Mean(TrainingModule):
    """A line, and a running mean in a buffer that every batch moves."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.line = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def training_loss(self, batch: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(batch.nan_to_num().mean(0), alpha=0.1)
        return self.line(batch).square().mean()


class Rows(ResumableData):
    """Random rows; those of one batch are damaged."""

    def __init__(self, bad: int) -> None:
        super().__init__(3, shuffle=False)
        self.rows = torch.randn(18, 4, generator=torch.Generator().manual_seed(1))
        self.rows[3 * bad : 3 * bad + 3] = math.nan

    def train_set(self):
        return self.rows

    def validation_set(self):
        return None


def test_a_resumed_step_that_turns_out_bad_is_undone_from_its_beginning(tmp_path):
    """Three batches to a step: cut off after the second one's first batch, whose last batch is damaged."""

    def fitted(*callbacks, resume=None) -> Mean:
        module = Mean()
        trainer(tmp_path, *callbacks, max_epochs=1, accumulate_grad_batches=3).fit(module, Rows(5), ckpt_path=resume)
        return module

    expected = fitted()
    assert expected.guard.skipped == 1
    with pytest.raises(RuntimeError, match="the power is gone"):
        fitted(Stop(4), OnExceptionCheckpoint(tmp_path, "cut"))
    found = fitted(resume=tmp_path / "cut.ckpt")
    assert found.guard.skipped == 1
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_gradients_by_name():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[1].weight.requires_grad_(False)
    module[0].bias.grad = torch.tensor([1.0, 2.0])
    found = unfinished_gradients(module)
    assert {name: gradient.tolist() for name, gradient in found.items()} == {"0.bias": [1.0, 2.0]}
    module[0].bias.grad.zero_()  # a copy was saved
    restore_gradients(module, found)
    assert module[0].bias.grad.tolist() == [1.0, 2.0]
    assert unfinished_gradients(module[1].requires_grad_(False)) == {}
