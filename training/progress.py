"""Progress for logs and pipes, where a bar that redraws itself would fill the file."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

_log = logging.getLogger(__name__)


class ProgressLines(ProgressBar):
    """One line every so many seconds: step, speed and the values a bar would show.

    Args:
        seconds: between lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._printed, self._step = 0.0, 0

    def disable(self) -> None:
        """Lightning's switch; lines are cheap and stay."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._printed, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line where one is due."""
        now = time.monotonic()
        if now - self._printed < self.seconds or not trainer.is_global_zero:
            return
        self._write(trainer, pl_module, now)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last line."""
        if trainer.is_global_zero:
            self._write(trainer, pl_module, time.monotonic())

    def _write(self, trainer: Trainer, pl_module: LightningModule, now: float) -> None:
        speed = (trainer.global_step - self._step) / max(now - self._printed, 1e-9)
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"
        )
        _log.info("step %d of %s, %.2f steps/s, %s", trainer.global_step, _total(trainer), speed, values)
        self._printed, self._step = now, trainer.global_step


def _total(trainer: Trainer) -> str:
    total = trainer.estimated_stepping_batches
    return str(int(total)) if total != float("inf") else "?"
