"""The shared base: parts, schedule, clipping, seeding, and steps that are not finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from smalti.lm.adapters import Lora, train_part
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec
from smalti.training.base import TrainingModule
from smalti.training.guard import DivergedError, GuardSettings, StepGuard
from smalti.training.optimizer import MuonAdamW, OptimizerSettings, Trained, parameter_groups, schedule
from smalti.training.seeding import seed_batch


class Regression(TrainingModule):
    """Two linear parts, a running mean in a buffer, and batches that may be damaged."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.draws: list[Tensor] = []
        self.raises = False

    def trained(self):
        rate = self.settings.learning_rate
        return {"left": Trained(self.left, rate), "right": Trained(self.right, rate / 2)}

    def training_loss(self, batch: Tensor) -> Tensor:
        self.draws.append(torch.rand(2))
        self.mean.mul_(0.9).add_(batch.nan_to_num().mean(0), alpha=0.1)
        if self.raises and not bool(batch.isfinite().all()):
            raise FloatingPointError("latents must be finite")
        return self.left(batch).square().mean() + 100 * self.right(batch).square().mean()

    def state(self) -> dict[str, Tensor]:
        moments = self.trainer.optimizers[0].state
        found = {name: value.clone() for name, value in self.state_dict().items()}
        for name, parameter in self.named_parameters():
            found |= {f"{name}.{key}": value.clone() for key, value in moments[parameter].items()}
        return found


def trainer(folder, **options) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**defaults, default_root_dir=folder, enable_model_summary=False, **options)


def batches(count: int, bad: tuple[int, ...] = (), value: float = math.nan) -> DataLoader[Tensor]:
    data = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(1))
    data[list(bad)] = value
    return DataLoader(list(data), batch_size=None)


class Recorder(Regression):
    """Remembers its state after every optimizer step."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.states: list[dict[str, Tensor]] = []
        self.norms: list[tuple[float, float]] = []

    def on_before_zero_grad(self, optimizer) -> None:
        norms = [_norm(part) for part in (self.left, self.right)]
        self.norms.append((norms[0], norms[1]))

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.states.append(self.state())


def _norm(part: nn.Module) -> float:
    found = [p.grad.norm() for p in part.parameters() if p.grad is not None]
    return float(torch.stack(found).norm()) if found else 0.0


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (3, 2), (4, 2)])
def test_global_step_counts_optimizer_steps(tmp_path, accumulate, steps):
    run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate)
    run.fit(Regression(), batches(6))
    assert run.global_step == steps


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_batch_changes_nothing(tmp_path, raises, value):
    module = Recorder()
    module.raises = raises
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, batches(4, bad=(2,), value=value))
    assert equal(module.states[1], module.states[2])
    assert not equal(module.states[2], module.states[3])
    assert module.guard.skipped == 1
    assert float(run.callback_metrics["guard/skipped"]) == 1
    assert run.global_step == 4


def test_a_bad_batch_leaves_out_all_that_it_is_accumulated_with(tmp_path):
    module = Recorder()
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module, batches(6, bad=(2,)))
    assert equal(module.states[1], module.states[3])
    assert not equal(module.states[3], module.states[5])


def test_an_infinite_loss_with_finite_gradients_is_left_out(tmp_path):
    class Offset(Recorder):
        def training_loss(self, batch: Tensor) -> Tensor:
            return super().training_loss(batch.nan_to_num(0)) + (math.inf if batch.isnan().any() else 0.0)

    module = Offset()
    trainer(tmp_path, max_epochs=1).fit(module, batches(3, bad=(1,)))
    assert equal(module.states[0], module.states[1])
    assert module.guard.skipped == 1


def test_persistent_damage_rolls_back_to_the_last_snapshot(tmp_path):
    module = Recorder(guard=GuardSettings(max_bad_steps=3, snapshot_every=2))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, batches(9, bad=(3, 4, 5)))
    snapshot, back = module.states[1], module.states[5]  # snapshots after 0 and 2 steps
    assert not equal(module.states[2], snapshot)
    assert equal(back, snapshot)
    assert float(run.callback_metrics["guard/rollbacks"]) == 1
    assert module.guard.skipped == 3


def test_damage_that_returns_ends_the_run(tmp_path):
    module = Regression(guard=GuardSettings(max_bad_steps=2, snapshot_every=5, max_rollbacks=1))
    with pytest.raises(DivergedError, match=r"not finite for 2 steps in a row and 1 returns.*lower the learning rate"):
        trainer(tmp_path, max_epochs=1).fit(module, batches(9, bad=tuple(range(1, 9))))


def test_counts_of_the_guard_survive_a_checkpoint(tmp_path):
    module = Regression()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, batches(4, bad=(2,)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Regression()
    trainer(tmp_path, max_epochs=2).fit(again, batches(4), ckpt_path=tmp_path / "a.ckpt")
    assert again.guard.skipped == 1


def test_guard_settings_are_checked():
    with pytest.raises(ValueError, match=r"must be >= 1, got 0, 200, 5 and 20"):
        GuardSettings(max_bad_steps=0)


def test_no_rollback_before_the_limit():
    guard, module = StepGuard(GuardSettings(max_bad_steps=2)), nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    guard.snapshot(0, module, [optimizer])
    guard.open(module)
    guard.skip(module, optimizer)
    assert not guard.roll_back(module, [optimizer])


def test_each_part_is_clipped_by_its_own_norm(tmp_path):
    module = Recorder(optimizer=OptimizerSettings(clip=0.5))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, batches(2))
    free = Recorder(optimizer=OptimizerSettings(clip=None))
    trainer(tmp_path, max_epochs=1).fit(free, batches(2))
    small, large = free.norms[1]
    assert large > 0.5
    assert module.norms[1] == pytest.approx((min(small, 0.5), 0.5), rel=1e-4)
    assert float(run.callback_metrics["grad/right"]) > 0.5


def test_clipping_twice_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"clipped by the model, part by part, got trainer.gradient_clip_val 1.0"):
        trainer(tmp_path, max_epochs=1, gradient_clip_val=1.0).fit(Regression(), batches(2))


def test_what_a_batch_draws_depends_on_its_place_alone(tmp_path):
    first, second, third = Regression(seed=3), Regression(seed=3), Regression(seed=4)
    for module, salt in ((first, 1), (second, 2), (third, 1)):
        torch.manual_seed(salt)
        trainer(tmp_path, max_epochs=2).fit(module, batches(3))
    assert torch.equal(torch.stack(first.draws), torch.stack(second.draws))
    assert len({tuple(draw.tolist()) for draw in first.draws}) == 6
    assert not torch.equal(first.draws[0], third.draws[0])


def test_ranks_draw_differently():
    assert len({seed_batch(0, rank, batch) for rank in range(4) for batch in range(50)}) == 200


def test_weight_decay_falls_on_matrices_only():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Embedding(3, 4), nn.Linear(2, 2))
    module.positions = nn.Parameter(torch.zeros(3, 4))
    module[3].bias.requires_grad_(False)
    decayed, plain = parameter_groups("model", Trained(module, 0.1), OptimizerSettings(weight_decay=0.05))
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3), (2, 2)]
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(2,), (2,), (2,), (3, 4), (3, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["lr"]) == (0.05, 0.0, 0.1)


class Network(nn.Sequential):
    """Matrices between a table and an output matrix that transformers knows as such."""

    def __init__(self):
        super().__init__(nn.Embedding(3, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4))
        config = {"vocab_size": 3, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 4}
        self.append(GPT2LMHeadModel(GPT2Config(**config, tie_word_embeddings=False)))


def test_muon_takes_the_matrices_between_input_and_output():
    module = Network()
    settings = OptimizerSettings(learning_rate=0.1, muon=0.5, weight_decay=0.05)
    matrices, decayed, plain = parameter_groups("model", Trained(module, 0.2), settings)
    assert all(p.ndim == 2 for p in matrices["params"])
    assert any(p is module[1].weight for p in matrices["params"])
    assert [p is module[4].lm_head.weight for p in decayed["params"]] == [True]
    assert (matrices["muon"], decayed["muon"], plain["muon"]) == (True, False, False)
    assert (matrices["lr"], decayed["lr"], matrices["weight_decay"]) == (1.0, 0.2, 0.05)
    count = sum(len(group["params"]) for group in (matrices, decayed, plain))
    assert count == len(list(module.parameters()))


def both(weight: float, muon: float | None):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    settings = OptimizerSettings(learning_rate=0.01, muon=muon, weight_decay=weight)
    return module, MuonAdamW(parameter_groups("model", Trained(module, 0.01), settings), (0.9, 0.95))


def descend(module, optimizers, steps=5):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        module(torch.randn(8, 4, generator=generator)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_new_rows_adapters_and_classifiers_are_no_matrices():
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7, 2),))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone, words = {"model_type": "llama", **sizes}, Vocabulary.train(["a red circle"])
    model = SharedLM.build(backbone, words, spec, "f00d", {"kind": "parallel"}, new_rows=True)
    train_part(model, Lora(rank=2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = OptimizerSettings(muon=0.02, weight_decay=0.05)
    groups = parameter_groups("model", Trained(model, 0.1), settings)
    kinds = {names[id(p)]: "muon" if g["muon"] else g["weight_decay"] for g in groups for p in g["params"]}
    assert "muon" not in kinds.values()
    assert {kinds["new_inputs"], kinds["new_outputs"]} == {0.0}
    assert kinds["head.classifiers.0.weight"] == kinds[next(name for name in kinds if ".lora_A." in name)] == 0.05


def test_muon_and_adamw_step_as_they_do_alone():
    module, optimizer = both(0.1, 0.02)
    descend(module, [optimizer])
    other, _ = both(0.1, 0.02)
    weights, biases = [other[0].weight, other[1].weight], [other[0].bias, other[1].bias]
    muon = torch.optim.Muon(weights, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    descend(other, [muon, torch.optim.AdamW(biases, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("muon", [None, 0.02])
def test_optimizer_state_survives_saving(muon):
    module, optimizer = both(0.0, muon)
    descend(module, [optimizer], 3)
    kept = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    descend(module, [optimizer], 3)
    again, restored = both(0.0, muon)
    again.load_state_dict(kept[0])
    restored.load_state_dict(kept[1])
    descend(again, [restored], 3)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_a_closure_gives_its_loss():
    module, optimizer = both(0.0, 0.02)

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(1, 4)).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).requires_grad


def test_schedule_warms_up_and_falls():
    factor = schedule(OptimizerSettings(warmup_steps=4, final_fraction=0.2), 104)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(54) == pytest.approx(0.6)
    assert factor(104) == factor(500) == pytest.approx(0.2)
    assert schedule(OptimizerSettings(schedule="constant"), math.inf)(10**6) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0.0"),
        ({"muon": 0.0}, r"muon must be a rate above 0, got 0.0; null trains everything with AdamW"),
        ({"warmup_steps": -1}, r"warmup_steps must be >= 0, got -1"),
        ({"clip": 0.0}, r"clip must be above 0, got 0.0; null"),
    ],
)
def test_optimizer_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**options)


def test_a_cosine_needs_an_end(tmp_path):
    with pytest.raises(ValueError, match=r"cosine schedule needs to know where the run ends.*trainer.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(Regression(), batches(2))
