"""How long a training step of a language model takes: the step of the run itself, on its own data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .lm import LanguageModelTraining, TokenData

#: Steps that are not timed: the first ones allocate memory and choose kernels.
_WARM = 3


@dataclass(frozen=True)
class StepSpeed:
    """Of one model on one machine."""

    seconds: float  #: of a step: forward, backward, clipping and optimizer; the median
    steps: int  #: timed
    batch: int  #: images a step
    precision: str
    device: str
    threads: int

    def describe(self) -> str:
        """In words, without the number itself."""
        where = f"{self.threads} CPU threads" if self.device == "cpu" else f"one {self.device} device"
        return f"median of {self.steps} training steps of {self.batch} images after {_WARM}, {self.precision}, {where}"


def step_speed(
    model: LanguageModelTraining,
    data: TokenData,
    precision: str | int = "32-true",
    accelerator: str = "auto",
    steps: int = 20,
) -> StepSpeed:
    """Train for a few steps, in memory alone, and time each: reading of the batch and saving are left out.

    Args:
        model: trained further, and kept from saving itself.
        data: what it learns from, in the batches of its run.
        precision: of Lightning's trainer.
        accelerator: of Lightning's trainer; one device is used.
        steps: timed.

    Raises:
        ValueError: less than one step, or codes of another tokenizer.
    """
    if steps < 1:
        raise ValueError(f"at least 1 step must be timed, got {steps}; 20 give a steady median")
    model.save_to, clock = None, _Clock()
    trainer = Trainer(
        max_steps=_WARM + steps,
        precision=precision,  # pyright: ignore[reportArgumentType]: Lightning names every precision, and checks it
        accelerator=accelerator,
        devices=1,
        callbacks=[clock],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    device = str(model.device.type)
    taken = median(clock.taken[_WARM:])
    return StepSpeed(taken, steps, data.batch_size, str(trainer.precision), device, torch.get_num_threads())


class _Clock(Callback):
    """Seconds of every training step, from its batch at hand to its weights updated."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start."""
        self._begun = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop."""
        self.taken.append(_now(pl_module.device) - self._begun)


def _now(device: torch.device | str) -> float:
    if str(device).startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
