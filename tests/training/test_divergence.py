"""Runs that diverge without a single step that is not finite: they go back, cool down, and end finite."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from smalti.data.scenes import Scenes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.adversarial import AdversarialSettings, generator_term, still
from smalti.training.base import TrainingModule
from smalti.training.guard import DivergedError, GuardSettings
from smalti.training.optimizer import OptimizerSettings
from smalti.training.resume import ResumableData
from smalti.training.rise import RiseMeter
from smalti.training.tokenizer import TokenizerTraining

SIZE = 16


def observed(meter: RiseMeter, *levels: float) -> RiseMeter:
    for level in levels:
        meter.observe(level)
    return meter


def test_a_rise_by_hand():
    meter = observed(RiseMeter(2.0, patience=2), *[1.0] * 22, 11.0)
    assert meter.ratio == pytest.approx(1.5)  # 0.95 * 1 + 0.05 * 11
    assert not meter.near_best  # above sqrt(2)
    observed(meter, 21.0)
    assert meter.ratio == pytest.approx(2.475)
    assert not meter.risen
    assert observed(meter, 21.0).risen
    observed(meter, 0.0)
    assert meter.ratio == pytest.approx(0.95 * (0.95 * 2.475 + 1.05))
    assert meter.risen
    assert not observed(meter, *[0.0] * 10).risen


def test_nothing_counts_as_a_rise_in_the_first_steps_but_the_best_does():
    meter = observed(RiseMeter(2.0, patience=2), 1.0, *[5.0] * 19)
    assert meter.ratio == pytest.approx(5 - 4 * 0.95**19)  # 3.5
    assert not meter.near_best
    assert not observed(meter, 5.0).risen
    assert observed(meter, 5.0).risen


def test_near_its_best_is_average_and_last_value():
    meter = observed(RiseMeter(2.0, 5), *[1.0] * 25)
    assert meter.near_best
    assert not observed(meter, 1.5).near_best
    assert observed(meter, 1.4).near_best


def test_ratios_near_zero_and_of_negative_losses_mean_nothing():
    meter = observed(RiseMeter(2.0, 3), *[1.0] * 21, *[0.0] * 200)
    assert meter.ratio < 1  # the least best is a tenth of the first
    assert not observed(meter, *[0.15] * 50).risen
    assert observed(meter, *[0.25] * 50).risen
    assert not observed(RiseMeter(2.0, 3), *[-1.0] * 30, *[50.0] * 30).risen
    assert not observed(RiseMeter(None, 3), *[1.0] * 30, *[50.0] * 30).risen


def test_a_loss_that_is_not_finite_is_a_rise():
    meter = observed(RiseMeter(2.0, 3), *[1.0] * 25, math.inf, math.nan)
    assert not meter.risen
    assert not meter.near_best
    assert observed(meter, math.inf).risen
    assert not observed(meter, 1.0).risen


def test_a_meter_goes_on_where_it_was():
    levels = [1.0 + 0.1 * (step % 7) for step in range(60)]
    meter, half = observed(RiseMeter(2.0, 3), *levels), observed(RiseMeter(2.0, 3), *levels[:33])
    again = RiseMeter(2.0, 3)
    again.load_state_dict(half.state_dict())
    assert observed(again, *levels[33:]).state_dict() == meter.state_dict()


class Told(TrainingModule):
    """A line, whose watched loss is what it is told for every step."""

    def __init__(self, levels: list[float], **options) -> None:
        super().__init__(**options)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.line = nn.Linear(4, 4)
        self.levels, self.returns = levels, list[int]()

    def training_loss(self, batch: Tensor) -> Tensor:
        self.watch(torch.tensor(self.levels[self.global_step]))
        return self.line(batch).square().mean()

    def on_roll_back(self) -> None:
        self.returns.append(self.global_step)


class States(Callback):
    """Weights, moments and rates after every step."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.moments: list[Tensor] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        weight = pl_module.line.weight
        self.weights.append(weight.detach().clone())
        self.moments.append(trainer.optimizers[0].state[weight]["exp_avg"].clone())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


GUARD = GuardSettings(snapshot_every=4, patience=5, max_rollbacks=2)
CONSTANT = OptimizerSettings(learning_rate=0.01, schedule="constant")


def trainer(folder, *callbacks, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def rows(count: int) -> DataLoader[Tensor]:
    data = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(data), batch_size=None)


def told(folder, levels: list[float], *callbacks, guard=GUARD, optimizer=CONSTANT) -> tuple[Told, Trainer]:
    module = Told(levels, guard=guard, optimizer=optimizer)
    run = trainer(folder, *callbacks, max_steps=len(levels))
    run.fit(module, rows(len(levels)))
    return module, run


def test_a_rise_goes_back_to_before_it_and_cools_down(tmp_path, caplog):
    states, average = States(), EMAWeightAveraging(decay=0.5)
    with caplog.at_level(logging.WARNING, "smalti"):
        # Near its best until step 30; the last snapshot was taken after 28 steps. Above 1.5 times its best from the
        # second high step on, and five times in a row at step 35: 9 - 8 * 0.95**6 is 3.1.
        module, run = told(tmp_path, [1.0] * 30 + [9.0] * 7 + [1.0] * 13, average, states)
    assert module.returns == [35]
    assert torch.equal(states.weights[35], states.weights[27])
    assert torch.equal(states.moments[35], states.moments[27])
    assert not torch.equal(states.weights[34], states.weights[35])
    assert states.rates[:35] == [0.01] * 35
    assert states.rates[35:] == [0.005] * 15
    assert torch.isfinite(states.weights[-1]).all()
    assert run.callback_metrics["guard/rollbacks"] == 1
    assert run.callback_metrics["guard/cooling"] == 0.5
    assert run.callback_metrics["guard/skipped"] == 0
    assert run.global_step == 50
    assert [record.getMessage() for record in caplog.records] == [
        "the training loss rose to 3.1 times its best; back to the weights of step 28, learning rates times 0.5"
    ]


def test_averaged_weights_go_back_too(tmp_path):
    class Averages(Callback):
        def __init__(self, average):
            self.average, self.weights = average, []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights.append(self.average._average_model.module.line.weight.detach().clone())

    average = EMAWeightAveraging(decay=0.5)
    averages, states = Averages(average), States()
    told(tmp_path, [1.0] * 30 + [9.0] * 7 + [1.0] * 3, average, averages, states)
    expected = 0.5 * averages.weights[27] + 0.5 * states.weights[27]  # updated with the weights that came back
    torch.testing.assert_close(averages.weights[35], expected)


def test_a_return_survives_schedule_and_checkpoint(tmp_path):
    optimizer = OptimizerSettings(learning_rate=0.01, warmup_steps=10, muon=0.02)
    levels = [1.0] * 30 + [9.0] * 6 + [1.0] * 14
    _, run = told(tmp_path, levels, optimizer=optimizer)
    run.save_checkpoint(tmp_path / "cooled.ckpt")
    again = Told(levels + [1.0] * 10, guard=GUARD, optimizer=optimizer)
    longer = trainer(tmp_path, max_steps=60)
    longer.fit(again, rows(60), ckpt_path=tmp_path / "cooled.ckpt")
    assert (again.guard.rollbacks, again.guard.cooling) == (1, 0.5)
    groups = longer.optimizers[0].param_groups
    scheduler = longer.lr_scheduler_configs[0].scheduler
    factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
    assert [group["lr"] for group in groups] == [group["initial_lr"] * factor for group in groups]
    assert scheduler.last_epoch == 60 - 7  # the schedule went back from step 35 to step 28
    assert factor < 0.5


def test_a_rise_that_returns_ends_the_run(tmp_path):
    message = (
        r"the training loss rose to \d\.\d times its best and 2 returns to a snapshot did not help; lower the lear"
    )
    with pytest.raises(DivergedError, match=message):
        told(tmp_path, [1.0] * 30 + [9.0] * 30)


def test_healthy_runs_are_the_same_with_and_without_a_watch(tmp_path):
    levels = [1.0 / (1 + step) for step in range(40)]
    watched, _ = told(tmp_path, levels)
    free, _ = told(tmp_path, levels, guard=GuardSettings(max_rise=None))
    assert torch.equal(watched.line.weight, free.line.weight)
    assert watched.guard.rollbacks == 0


def test_a_rise_is_not_looked_for_where_it_is_switched_off(tmp_path):
    module, _ = told(tmp_path, [1.0] * 30 + [9.0] * 30, guard=GuardSettings(max_rise=None, patience=5))
    assert module.guard.rollbacks == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, r"max_rollbacks and patience must be >= 1, got 10, 200, 5 and 0"),
        ({"max_rise": 1.0}, r"max_rise must be above 1, got 1.0; 1.5 is usual, null watches no loss"),
        ({"cooling": 0.0}, r"cooling must lie in \(0, 1\], got 0.0; 0.5 halves all learning rates"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GuardSettings(**options)


class Scarce(ResumableData):
    """A few small scenes."""

    def __init__(self) -> None:
        super().__init__(4)
        scenes = Scenes("small", "train", 32)
        pixels = torch.stack([torch.from_numpy(scenes.pixels(index)) for index in range(len(scenes))])
        images = F.interpolate(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, (SIZE, SIZE), mode="area")
        self.items = [{"images": image} for image in images]

    def train_set(self):
        return self.items

    def validation_set(self):
        return None


def adversarial(rate: float, training=TokenizerTraining, **settings) -> TokenizerTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 16, "multipliers": (1, 1), "blocks": 1}
        tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 32), ConvDecoder(**parts), SIZE)
        judge = PatchDiscriminator(width=8, layers=1)
    return training(
        tokenizer, PixelLoss(), discriminator=judge, guard=GuardSettings(max_rollbacks=20),
        adversarial=AdversarialSettings(weight=0.75, warmup=10, ramp=10, **settings),
        optimizer=OptimizerSettings(learning_rate=rate, warmup_steps=20, schedule="constant"),
    )  # fmt: skip


class Curve(Callback):
    """The sum of pixel losses, step by step."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.levels.append(float(trainer.callback_metrics["train/l1"]))


def test_a_hostile_adversarial_run_rolls_back_ends_finite_and_says_so(tmp_path, caplog):
    """Thirty times the learning rate that such a tokenizer is trained with."""
    module, curve = adversarial(30 * 2e-3), Curve()
    run = trainer(tmp_path, curve, max_steps=140, limit_val_batches=0)
    with caplog.at_level(logging.WARNING, "smalti"):
        run.fit(module, Scarce())
    rollbacks = module.guard.rollbacks
    said = [
        record.getMessage() for record in caplog.records if "the sum of pixel losses rose to" in record.getMessage()
    ]
    assert len(said) == rollbacks >= 1
    assert run.callback_metrics["guard/cooling"] == 0.5**rollbacks
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert sum(curve.levels[-10:]) / 10 < max(curve.levels) / 2
    checkpoint = dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["adversarial"]["since"] >= 20


def test_the_adversarial_term_begins_anew_and_lower_after_a_return(tmp_path):
    """Its warm-up takes ten steps, in which the generator learns of no discriminator."""

    class Cooled(TokenizerTraining):
        def _adversarial(self, *arguments):
            found = super()._adversarial(*arguments)
            weights.append(float(found["adversarial"] / term(self, arguments)) if "adversarial" in found else 0.0)
            if self.global_step == 24:
                self.guard.cooling = 0.5
                self.on_roll_back()
            return found

    def term(module, arguments) -> float:
        judge, _, reconstruction, _ = arguments
        with torch.no_grad(), still(judge, move=False):
            return float(generator_term(judge, reconstruction))

    weights: list[float] = []
    module = adversarial(1e-3, Cooled, adaptive=False)
    trainer(tmp_path, max_steps=46, limit_val_batches=0).fit(module, Scarce())
    ramp = [0.075 * step for step in range(1, 11)]
    anew = [0.0] * 10 + [step / 2 for step in ramp] + [0.375]
    assert weights == pytest.approx([0.0] * 10 + ramp + [0.75] * 5 + anew, abs=1e-4)
