"""The base of all training modules: one optimizer, exact resume, and steps that are finite or do not count.

Adversarial training needs no second optimizer here. Generator and discriminator share no parameter, so they are two
parts of one optimizer and their losses are added; each loss must reach its own part only (see ``adversarial.py``).
Steps, accumulation, half-precision scaling, schedules and resume are then Lightning's own, and ``global_step`` counts
one per optimizer step.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
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
from .seeding import seed_batch

_log = logging.getLogger(__name__)


class TrainingModule(LightningModule):
    """A subclass says what its loss is; the rest is here.

    Torch is seeded anew for every training batch from ``seed``, the rank and the number of batches trained on. A step
    whose loss or gradient is not finite on any rank, or whose quantizer raises ``FloatingPointError``, changes no
    parameter, moment or buffer; it is counted in ``guard/skipped``. Several such steps in a row bring the last snapshot
    back, counted in ``guard/rollbacks``. Gradient norms are clipped for each part apart and logged as ``grad/<part>``.

    Args:
        optimizer: learning rate, schedule, decay and clipping.
        guard: patience with steps that are not finite.
        seed: of all that training draws, except the order of the data.
    """

    save_to: str | None = None  #: folder that receives what was trained when training ends

    def __init__(self, optimizer: OptimizerSettings = OPTIMIZER, guard: GuardSettings = GUARD, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.seed = optimizer, seed
        self.guard = StepGuard(guard)
        self._ended = False

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """The scalar loss of one batch; log its terms here."""

    def trained(self) -> Mapping[str, Trained]:
        """The parts that are optimized, by name; the whole module by default."""
        return {"model": Trained(self, self.settings.learning_rate)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's hook around :meth:`training_loss`."""
        try:
            with _attention(self.device):
                loss = self.training_loss(batch)
        except FloatingPointError as error:
            _log.warning("batch %d is left out: %s", batch_idx, error)
            return poisoned(self)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return spread(loss)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (and Muon, where asked for) over the parts, with warm-up and schedule counted in optimizer steps."""
        settings = self.settings
        groups = [group for name, part in self.trained().items() for group in parameter_groups(name, part, settings)]
        optimizer = MuonAdamW(groups, settings.betas)
        total = self.trainer.estimated_stepping_batches if settings.schedule == "cosine" else float("inf")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings, total))
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
        """Take the first snapshot."""
        self._snapshot()

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
        """Clip each part by its own norm, or drop all gradients where any is not finite on any rank."""
        parts = gradients(optimizer)
        norms = {name: get_total_norm(found) for name, found in parts.items() if found}
        bad = not all(bool(norm.isfinite()) for norm in norms.values())
        if self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            self.guard.skip(self, optimizer)
            self.guard.roll_back(self, self._stateful())
        else:
            self._clip(optimizer, norms)
            self.guard.accept()
        self.log_dict({f"grad/{name}": norm for name, norm in norms.items()})
        self.log_dict({"guard/skipped": float(self.guard.skipped), "guard/rollbacks": float(self.guard.rollbacks)})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a snapshot where one is due."""
        self._snapshot()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save how many steps were left out."""
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])

    def _clip(self, optimizer: torch.optim.Optimizer, norms: Mapping[str, Tensor]) -> None:
        if self.settings.clip is None:
            return
        for group in optimizer.param_groups:
            if group["part"] in norms:
                clip_grads_with_norm_(group["params"], self.settings.clip, norms[group["part"]])

    def _snapshot(self) -> None:
        self.guard.snapshot(self.global_step, self, self._stateful())

    def _stateful(self) -> list[Stateful]:
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return [*self.trainer.optimizers, *schedulers]


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """Plain attention on a CPU in bfloat16: flash attention's backward pass is 2 to 10 times slower below 150 tokens.

    The forward pass decides for both.
    """
    short = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
