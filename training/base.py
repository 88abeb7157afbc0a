"""The base of all training modules: one optimizer, exact resume, and steps that are finite or do not count.

Adversarial training needs no second optimizer here. Generator and discriminator share no parameter, so they are two
parts of one optimizer and their losses are added; each loss must reach its own part only (see ``adversarial.py``).
Steps, accumulation, half-precision scaling and schedules are then Lightning's own, and ``global_step`` counts one per
optimizer step, which moves both networks: the start, warm-up and ramp of a discriminator are counted in these steps,
however many batches a step is made of. A step that is left out, or that ends in a return to a snapshot, is counted too,
so that a run ends where it was told to.

Lightning drops the gradients of a step that a checkpoint finds incomplete; they are saved here, so that a run resumed
in the middle of an accumulated step goes on as if it had never stopped.

Nothing here depends on the number of processes, at an equal global batch, but for rounding and for what is drawn from
torch's own generators (see ``seeding.py``): samples bring their seeds, losses are means over all samples or tokens of a
batch wherever they are, and every item is validated once. Weights are whole (DDP) or sharded (``sharding.py``).
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
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..data.places import check_model_place
from .guard import GUARD, GuardSettings, Stateful, StepGuard, poisoned, spread
from .optimizer import OPTIMIZER, MuonAdamW, OptimizerSettings, Trained, gradients, parameter_groups, schedule
from .processes import averaged
from .scores import Scores
from .seeding import Draws, Place, seed_batch, step_draws, validation_draws
from .sharding import consolidated, gather, release, shard, sharded, whole
from .unfinished import restore_gradients, unfinished_gradients

_log = logging.getLogger(__name__)


class TrainingModule(LightningModule):
    """A subclass says what its loss is; the rest is here.

    What samples draw comes from :meth:`draws`; torch is seeded anew for every training batch from ``seed``, the rank
    and the number of batches trained on, for what draws inside networks. Training metrics are
    means over all processes' batches at steps that are logged; in between they are this process's term of that mean,
    which weighs its tokens by their share of all. Of accumulated batches they show the last. A step
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
        self._shown: dict[str, Tensor] = {}
        self._scores, self._validated = Scores(), 0

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """The scalar loss of one batch, whose average over processes is trained on; :meth:`show` its terms."""

    def trained(self) -> Mapping[str, Trained]:
        """The parts that are optimized, by name; the whole module by default."""
        return {"model": Trained(self, self.settings.learning_rate)}

    def watch(self, loss: Tensor) -> None:
        """Say in :meth:`training_loss` which loss, a scalar, only falls in a healthy run, where the total does not."""
        self._watched = loss.detach()

    def show(self, terms: Mapping[str, Tensor]) -> None:
        """Log scalars of the training batch under way by their names, such as ``train/text``."""
        self._shown |= {name: value.detach() for name, value in terms.items()}

    def score(self, means: Mapping[str, Tensor], count: int | Tensor) -> None:
        """Add means over so many items of a validation batch; what is logged are means over all items there are."""
        self._scores.add(means, count)

    @property
    def logs_now(self) -> bool:
        """Whether the step under way is logged, so that it is worth asking the other processes."""
        trainer: Any = self.trainer
        return trainer.world_size == 1 or trainer._logger_connector.should_update_logs

    def draws(self, count: int) -> Draws:
        """What the training batch under way draws from.

        Args:
            count: its samples on this process.
        """
        rank, world = self._seat()
        return step_draws(self.seed, self.place(), count, rank, world)

    def validation_draws(self, count: int, batch_idx: int) -> Draws:
        """What a validation batch draws from, the same every time; to be called once for every batch.

        Args:
            count: its samples on this process.
            batch_idx: its number on this process.
        """
        rank, world = self._seat()
        numbers = range(self._validated * world + rank, (self._validated + count) * world + rank, world)
        self._validated += count
        return validation_draws(self.seed, batch_idx, numbers)

    def place(self) -> Place:
        """Where the batch under way stands in the run; without a trainer, a step that torch draws."""
        trainer: Any = self._trainer
        if trainer is None:
            return Place(int(torch.randint(2**62, ())), 0, 1)
        parts = trainer.accumulate_grad_batches
        return Place(self.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.processed % parts, parts)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's hook around :meth:`training_loss`."""
        self._watched, self._shown = None, {}
        loss = self.guarded_loss(batch, batch_idx)
        self.guard.note(loss.detach() if self._watched is None else self._watched)
        if self._shown:
            self._log_shown()
        return loss

    def guarded_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss, NaN in all gradients where it is not finite or a quantizer raises ``FloatingPointError``."""
        try:
            with _attention(self.device):
                loss = self.training_loss(batch)
        except FloatingPointError as error:
            _log.warning("batch %d is left out: %s", batch_idx, error)
            self._watched, self._shown = None, {}
            return poisoned(self)
        self.show({"train/loss": loss})
        return spread(loss)

    def configure_model(self) -> None:
        """Shard the weights where the trainer's strategy is Lightning's ``ModelParallelStrategy``.

        Raises:
            ValueError: a strategy that cuts single matrices, or averaged weights, which have no parts.
        """
        strategy: Any = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or sharded(self):
            return
        mesh = strategy.device_mesh
        if (cut := mesh["tensor_parallel"].size()) > 1:
            raise ValueError(
                f"weights are sharded over processes and no matrix is cut in itself, got a tensor_parallel_size of "
                f"{cut}; set the strategy's data_parallel_size to {strategy.world_size} and tensor_parallel_size to 1"
            )
        self._check_averages(self.trainer)
        half = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        shard(self, mesh["data_parallel"], ("guarded_loss", "validation_step"), half)

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
            ValueError: the trainer would clip gradients a second time, weights are averaged and sharded, ``save_to``
                cannot be written or holds something else than a model, or the data does not fit the model.
        """
        if trainer.gradient_clip_val:
            raise ValueError(
                f"gradients are clipped by the model, part by part, got trainer.gradient_clip_val "
                f"{trainer.gradient_clip_val}; set model.init_args.optimizer.clip instead"
            )
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self._check_averages(trainer)
        if self.save_to is not None:
            check_model_place(self.save_to, "save_to")

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
        if self.save_to is not None:
            with consolidated(self, keep=trainer.is_global_zero):
                if trainer.is_global_zero:
                    self.save(Path(self.save_to))
            trainer.strategy.barrier()

    def save(self, folder: Path) -> None:
        """Write what was trained to a folder, whole or not at all; nothing by default. Weights are not sharded here."""

    def on_validation_start(self) -> None:
        """Gather weights that are sharded: processes validate different numbers of batches."""
        gather(self)
        self._scores, self._validated = Scores(), 0

    def on_validation_epoch_end(self) -> None:
        """Log the means of what was scored, over the items of all processes, and give up the weights of others."""
        self.log_dict(self._scores.compute(self.device), prog_bar=True, sync_dist=True)
        release(self)

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
        norms = {name: whole(get_total_norm(found)) for name, found in parts.items() if found}
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

    def _seat(self) -> tuple[int, int]:
        """Rank, and number of processes; those of one process without a trainer."""
        trainer: Any = self._trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _log_shown(self) -> None:
        """Log the terms of the batch; where a step is logged, their means over all processes, in one reduction."""
        values = torch.stack([value.float() for value in self._shown.values()])
        found = dict(zip(self._shown, averaged(values) if self.logs_now else values, strict=True))
        self.log("train/loss", found.pop("train/loss"), prog_bar=True)
        self.log_dict(found)

    @staticmethod
    def _check_averages(trainer: Any) -> None:
        averaging = [type(found).__name__ for found in trainer.callbacks if isinstance(found, WeightAveraging)]
        if averaging:
            raise ValueError(
                f"averaged weights have no parts, got {averaging[0]} beside sharded weights; leave it out or train "
                "with DDP"
            )

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
