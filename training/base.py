"""The base of all training modules: one optimizer, exact resume, and steps that are finite or do not count.

Adversarial training needs no second optimizer here. Generator and discriminator share no parameter, so they are two
parts of one optimizer and their losses are added; each loss must reach its own part only (see ``adversarial.py``).
Steps, accumulation, half-precision scaling and schedules are then Lightning's own, and ``global_step`` counts one per
optimizer step, which moves both networks: the start, warm-up and ramp of a discriminator are counted in these steps,
however many batches a step is made of. A step that is left out, or that ends in a return to a snapshot, is counted too,
so that a run ends where it was told to.

Lightning drops the gradients of a step that a checkpoint finds incomplete; they are saved here, so that a run resumed
in the middle of an accumulated step goes on as if it had never stopped.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from .guard import GUARD, GuardSettings, Stateful, StepGuard, poisoned, spread
from .optimizer import OPTIMIZER, MuonAdamW, OptimizerSettings, Trained, gradients, parameter_groups, schedule
from .seeding import Place, seed_batch
from .unfinished import restore_gradients, unfinished_gradients

_log = logging.getLogger(__name__)


class TrainingModule(LightningModule):
    """A subclass says what its loss is; the rest is here.

    Torch is seeded anew for every training batch from ``seed``, the rank and the number of batches trained on. A step
    whose loss or gradient is not finite on any rank, or whose quantizer raises ``FloatingPointError``, changes no
    parameter, moment or buffer; it is counted in ``guard/skipped``. Several such steps in a row, or a watched loss that
    rises far above its best and stays there, bring the last snapshot back, counted in ``guard/rollbacks``; from then on
    all learning rates are lower by the factor ``guard/cooling``. The loss that is watched is the training loss, unless
    :meth:`training_loss` names another with :meth:`watch`. Gradient norms are clipped for each part apart and logged as
    ``grad/<part>``.

    Args:
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite, and with a loss that rises.
        seed: of all that training draws, except the order of the data.
    """

    save_to: str | None = None  #: folder that receives what was trained when training ends

    def __init__(self, optimizer: OptimizerSettings = OPTIMIZER, guard: GuardSettings = GUARD, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.seed = optimizer, seed
        self.guard = StepGuard(guard)
        self._ended = False
        self._watched: Tensor | None = None
        self._unfinished: dict[str, Tensor] = {}

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """The scalar loss of one batch; log its terms here."""

    def trained(self) -> Mapping[str, Trained]:
        """The parts that are optimized, by name; the whole module by default."""
        return {"model": Trained(self, self.settings.learning_rate)}

    def watch(self, loss: Tensor) -> None:
        """Say in :meth:`training_loss` which loss, a scalar, only falls in a healthy run, where the total does not."""
        self._watched = loss.detach()

    def place(self) -> Place:
        """Where the batch under way stands in the run."""
        trainer: Any = self.trainer
        parts = trainer.accumulate_grad_batches
        return Place(self.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.processed % parts, parts)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's hook around :meth:`training_loss`."""
        self._watched = None
        try:
            with _attention(self.device):
                loss = self.training_loss(batch)
        except FloatingPointError as error:
            _log.warning("batch %d is left out: %s", batch_idx, error)
            loss = poisoned(self)
            self.guard.note(loss.detach())
            return loss
        self.guard.note(loss.detach() if self._watched is None else self._watched)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return spread(loss)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (and Muon, where asked for) over the parts, with warm-up and schedule counted in optimizer steps."""
        settings = self.settings
        groups = [group for name, part in self.trained().items() for group in parameter_groups(name, part, settings)]
        optimizer = MuonAdamW(groups, settings.betas)
        total = self.trainer.estimated_stepping_batches if settings.schedule == "cosine" else float("inf")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._cooled(schedule(settings, total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_run(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """Look at what a run is made of before it starts; the command line does so before anything is written.

        Args:
            trainer: that will run.
            data: that it will read; None for plain loaders.

        Raises:
            ValueError: the trainer would clip gradients a second time, or the data does not fit the model.
        """
        if trainer.gradient_clip_val:
            raise ValueError(
                f"gradients are clipped by the model, part by part, got trainer.gradient_clip_val "
                f"{trainer.gradient_clip_val}; set model.init_args.optimizer.clip instead"
            )

    def on_fit_start(self) -> None:
        """Check the run, however it was started."""
        self.check_run(self.trainer, getattr(self.trainer, "datamodule", None))
        self._ended = False

    def on_train_end(self) -> None:
        """Note that training came to its end in this run."""
        self._ended = True

    def on_fit_end(self) -> None:
        """Write what was trained to ``save_to``, once.

        Averaged weights are put in place before, where a resumed run had no step left: Lightning then leaves that out.
        """
        trainer: Any = self.trainer
        for callback in () if self._ended else trainer.callbacks:
            if isinstance(callback, WeightAveraging):
                callback.on_train_end(trainer, self)
        if self.save_to is not None and trainer.is_global_zero:
            self.save(Path(self.save_to))

    def save(self, folder: Path) -> None:
        """Write what was trained to a folder, whole or not at all; nothing by default."""

    def on_train_start(self) -> None:
        """Take the first snapshot, and put back gradients that a resumed run has begun to sum up."""
        self._snapshot()
        restore_gradients(self, self._unfinished)
        self._unfinished = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed torch and open a guarded step."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        seed_batch(self.seed, self.global_rank, progress.total.processed)
        self.guard.open(self)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each part by its own norm, or drop all gradients where any is not finite on any rank.

        Where the run has gone wrong it goes back to the last snapshot, and this step changes nothing.
        """
        parts = gradients(optimizer)
        norms = {name: get_total_norm(found) for name, found in parts.items() if found}
        bad = not all(bool(norm.isfinite()) for norm in norms.values())
        if self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            self.guard.skip(self, optimizer)
        else:
            self._clip(optimizer, norms)
            self.guard.accept()
        if self.guard.roll_back(self, self._stateful()):
            optimizer.zero_grad(set_to_none=True)
            self.on_roll_back()
        self.log_dict({f"grad/{name}": norm for name, norm in norms.items()})
        counts = {"skipped": self.guard.skipped, "rollbacks": self.guard.rollbacks, "cooling": self.guard.cooling}
        self.log_dict({f"guard/{name}": float(count) for name, count in counts.items()})

    def on_roll_back(self) -> None:
        """Called where the run has gone back to a snapshot; nothing by default. ``global_step`` is not turned back."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a snapshot where one is due."""
        self._snapshot()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the guard has counted and, in the middle of an accumulated step, its gradients."""
        checkpoint["guard"] = self.guard.state_dict()
        if self.guard.is_open:
            checkpoint["gradients"] = unfinished_gradients(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting and summing."""
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
        self._unfinished = checkpoint.get("gradients", {})

    def _clip(self, optimizer: torch.optim.Optimizer, norms: Mapping[str, Tensor]) -> None:
        if self.settings.clip is None:
            return
        for group in optimizer.param_groups:
            if group["part"] in norms:
                clip_grads_with_norm_(group["params"], self.settings.clip, norms[group["part"]])

    def _cooled(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) * self.guard.cooling

    def _snapshot(self) -> None:
        self.guard.snapshot(self.global_step, self, self._stateful())

    def _stateful(self) -> list[Stateful]:
        """All that goes back with the module: averages of its weights would keep what it has left."""
        trainer: Any = self.trainer
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        averages = [found._average_model for found in trainer.callbacks if isinstance(found, WeightAveraging)]
        return [*trainer.optimizers, *schedulers, *(average for average in averages if average is not None)]


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """Plain attention on a CPU in bfloat16: flash attention's backward pass is 2 to 10 times slower below 150 tokens.

    The forward pass decides for both.
    """
    short = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
