"""``last.ckpt``: written while training runs and when it is interrupted, from which the run resumes exactly."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from ..data.files import atomic_file, atomic_folder


class GracefulInterrupt(Checkpoint):
    """Keeps ``last.ckpt`` up to date, and on the first Ctrl-C saves it before the run ends.

    The step under way is finished, including all batches whose gradients it accumulates; a second Ctrl-C ends the run
    at once. Lightning runs checkpoint callbacks last, so averaged weights are up to date when they are saved. The file
    is replaced as a whole: where the disk is full the old one stays. Where weights are sharded it is a folder that
    holds the parts of all processes (``torch.distributed.checkpoint``), which any number of processes can read; it
    takes its place when all of them have written.

    A run that goes on does not validate again: where a step is validated, it is saved after that. Lightning logs a step
    after it was saved: what it is about to log is saved too, and logged by the run that goes on. A run killed in
    between so lacks no row; Ctrl-C does not wait for a validation.

    Args:
        every: optimizer steps between saves.
        path: of the checkpoint; by default ``last.ckpt`` in the trainer's ``default_root_dir``.

    Raises:
        ValueError: ``every`` below 1.
    """

    def __init__(self, every: int = 500, path: str | None = None) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1 step, got {every}; 500 is usual")
        self.every, self.path = every, path
        self.interrupted = False  #: whether Ctrl-C has been pressed, at any of the processes once they have agreed
        self._previous: Any = None
        self._saved_step = -1
        self._pending = False  # to be saved when validation is done
        self._row: tuple[int, dict[str, float]] | None = None  # that the next logging of Lightning would write

    @property
    def saved_step(self) -> int | None:
        """Optimizer steps of what this run has saved last; None before."""
        return self._saved_step if self._saved_step >= 0 else None

    def checkpoint_path(self, trainer: Trainer) -> Path:
        """Where the checkpoint is written."""
        return Path(trainer.default_root_dir) / "last.ckpt" if self.path is None else Path(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C, which only the main thread can, after Lightning has noted what to put back."""
        if self._row is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self._row[1], self._row[0])
                logger.save()
            self._row = None
        self.interrupted = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, and end the run where it was asked to end."""
        if trainer.fit_loop._should_accumulate():
            return
        stop = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        self.interrupted = self.interrupted or stop  # it may be pressed while they agree
        step = trainer.global_step
        due = stop or trainer.should_stop or step % self.every == 0 or step == trainer.estimated_stepping_batches
        if (due or self._pending) and step != self._saved_step:
            self._pending = not stop and _validates(trainer)
            if not self._pending:
                self._row = _row(trainer)
                self._save(trainer)
                self._row = None
        if stop:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step that was validated, where that is due."""
        if self._pending:
            self._pending = False
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The row that is still to be logged, where this callback saves."""
        return {} if self._row is None else {"step": self._row[0], "row": self._row[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Log that row when training starts."""
        self._row = (state_dict["step"], state_dict["row"]) if state_dict else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def _save(self, trainer: Trainer) -> None:
        self._write(trainer)
        self._saved_step = trainer.global_step

    def _write(self, trainer: Trainer) -> None:
        target = self.checkpoint_path(trainer)
        if not trainer.is_global_zero:  # takes part in gathering, and writes its parts to where the first one says
            trainer.save_checkpoint(target)
            return
        with (atomic_folder if _in_parts(trainer) else atomic_file)(target) as partial:
            trainer.save_checkpoint(partial)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


def check_parts(path: Path, trainer: Trainer) -> None:
    """Raise unless a checkpoint was saved as a run would save it: in parts, or as one file.

    Args:
        path: of the checkpoint.
        trainer: of the run that is to go on from it.

    Raises:
        ValueError: weights whole in one and sharded in the other.
    """
    saved = path.is_dir()
    if saved != _in_parts(trainer):
        kinds = ("whole weights, which are one file", "sharded weights, which are a folder")
        strategy = "ModelParallelStrategy" if saved else "another strategy than ModelParallelStrategy"
        raise ValueError(
            f"expected a checkpoint of {kinds[not saved]}, got {path} of {kinds[saved]}; go on with {strategy}, as the "
            "run was begun"
        )


def _validates(trainer: Trainer) -> bool:
    """Whether Lightning validates once the callbacks are done with the batch."""
    loop: Any = trainer.fit_loop.epoch_loop
    return bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher)) and not loop.val_loop.skip


def _row(trainer: Trainer) -> tuple[int, dict[str, float]] | None:
    """Step and values that Lightning logs once the callbacks are done with the batch; None where it logs none."""
    connector = trainer._logger_connector
    if not connector.should_update_logs or not trainer.loggers:
        return None
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    return trainer.fit_loop.epoch_loop._batches_that_stepped, {**values, "epoch": float(trainer.current_epoch)}


def _in_parts(trainer: Trainer) -> bool:
    strategy = trainer.strategy
    return isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint
