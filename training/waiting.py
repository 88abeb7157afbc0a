"""How much of its time training stands still because its next batch is not there."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .resume import ResumableData


class Waiting(Callback):
    """Logs ``data/waiting``, the share of the time since it was logged last, in [0, 1], for data of `ResumableData`.

    Above a few percent the model is starved: more ``workers``, ``cache``, or a token store in place of pictures.
    """

    def __init__(self) -> None:
        self._since = self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._since, self._waited = time.perf_counter(), _waited(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log with the steps that are logged."""
        found: Any = trainer  # Lightning leaves its own attributes untyped
        every = found.log_every_n_steps
        due = every and trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate()
        if due and isinstance(found.datamodule, ResumableData):
            now, waited = time.perf_counter(), _waited(trainer)
            pl_module.log("data/waiting", (waited - self._waited) / max(now - self._since, 1e-9))
            self._since, self._waited = now, waited


def _waited(trainer: Trainer) -> float:
    data: Any = getattr(trainer, "datamodule", None)
    return data.waited if isinstance(data, ResumableData) else 0.0
