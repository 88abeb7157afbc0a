"""The share of time that training waits for its batches."""

from __future__ import annotations

import time

import pytest
import torch
from lightning.pytorch import Trainer

from smalti.training.base import TrainingModule
from smalti.training.resume import ResumableData
from smalti.training.waiting import Waiting


class Slow(ResumableData):
    """Sixteen items that take a moment each."""

    def __init__(self, seconds: float) -> None:
        super().__init__(batch_size=2)
        self.seconds = seconds

    def train_set(self):
        seconds = self.seconds

        class Items(list):
            def __getitem__(self, index):
                time.sleep(seconds)
                return torch.ones(1)

        return Items(range(16))

    def validation_set(self):
        return None


class Learner(TrainingModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = torch.nn.Linear(1, 1), seconds

    def training_loss(self, batch):
        time.sleep(self.seconds)
        return self.layer(batch).square().mean()


@pytest.mark.parametrize(("reading", "learning", "low", "high"), [(0.04, 0.0, 0.6, 1.0), (0.0, 0.08, 0.0, 0.2)])
def test_the_share_is_that_of_the_clock(tmp_path, reading, learning, low, high):
    trainer = Trainer(
        max_steps=6, log_every_n_steps=3, callbacks=[Waiting()], default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    data = Slow(reading)
    trainer.fit(Learner(learning), data)
    assert low <= float(trainer.callback_metrics["data/waiting"]) <= high
    assert data.waited >= 12 * reading
