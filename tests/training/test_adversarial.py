"""Adversarial training: two adversaries in one optimizer, what each of them sees, and what keeps them in check."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import Discriminator, PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.adversarial import (
    AdversarialSettings,
    Reconstructed,
    adaptive_weight,
    adversarial_terms,
    generator_term,
    still,
)
from smalti.training.anchors import LogitAnchors, mean_logits
from smalti.training.resume import ResumableData
from smalti.training.seeding import Place, seed_batch
from smalti.training.tokenizer import TokenizerTraining

SIZE = 16
AT_ONCE = {"weight": 0.5, "warmup": 0, "ramp": 0, "clamp": (0.0, 1e4)}


class Noise(ResumableData):
    """Ten fixed pictures of noise, two to a batch."""

    def __init__(self) -> None:
        super().__init__(2, shuffle=False)
        images = torch.rand(10, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
        self.items = [{"images": image} for image in images]

    def train_set(self):
        return self.items

    def validation_set(self):
        return None


class Witness(Discriminator):
    """The mean of every image times a weight; remembers all that it was shown and how precisely."""

    def __init__(self) -> None:
        super().__init__()
        self.minimum, self.weight = 1, nn.Parameter(torch.tensor(2.0))
        self.seen: list[tuple[Tensor, bool]] = []

    def judge(self, images: Tensor) -> list[Tensor]:
        self.seen.append((images.detach().clone(), torch.is_autocast_enabled("cpu")))
        return [self.weight * images.mean((1, 2, 3))]


def discriminator() -> PatchDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PatchDiscriminator(width=8, layers=1)


def module(judge: Discriminator, training=TokenizerTraining, **settings) -> TokenizerTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16)
        tokenizer = VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), SIZE)
    return training(tokenizer, PixelLoss(), discriminator=judge, adversarial=AdversarialSettings(**AT_ONCE | settings))


def trainer(folder, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def copied(part: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch(requires_grad: bool = True) -> Reconstructed:
    generator = torch.Generator().manual_seed(3)
    images, made = (torch.rand(2, 3, SIZE, SIZE, generator=generator) for _ in range(2))
    last = torch.ones((), requires_grad=requires_grad)
    return Reconstructed(images, last * made, (last * made - images).abs().mean(), last)


def terms(judge: Discriminator, step: int = 0, anchors: LogitAnchors | None = None, **settings):
    chosen = AdversarialSettings(**AT_ONCE | settings)
    return adversarial_terms(judge, anchors, chosen, batch(), lambda images: images, Place(step, 0, 1), 0.5)


def test_gradients_equal_those_of_two_optimizers(tmp_path):
    class Seen(Callback):
        def on_after_backward(self, trainer, pl_module):
            self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}

    ours, seen, data = module(discriminator()), Seen(), Noise()
    reference, judge = copy.deepcopy(ours.tokenizer), copy.deepcopy(ours.discriminator)
    trainer(tmp_path, max_steps=1, callbacks=[seen]).fit(ours, data)

    images = torch.stack([item["images"] for item in data.items[:2]])
    seed_batch(0, 0, 0)  # k-means draws
    made = reference.training_step_terms(images)
    judge(images)  # the one step of the spectral norms that a batch is worth
    judge.eval()
    # the classical procedure: first the generator with the discriminator as it is, then the discriminator alone
    pixel = (made.reconstruction - images).abs().mean()
    adverse = -judge(made.reconstruction)[0].mean()
    last = reference.decoder.last_layer
    ratio = torch.autograd.grad(pixel, last, retain_graph=True)[0].norm()
    ratio = ratio / (torch.autograd.grad(adverse, last, retain_graph=True)[0].norm() + 1e-4)
    (pixel + made.losses["quantizer"] + 0.5 * ratio.detach() * adverse).backward()
    judge.zero_grad()
    margins = (1 - judge(images)[0]).relu().mean() + (1 + judge(made.reconstruction.detach())[0]).relu().mean()
    (0.5 * margins).backward()

    expected = {f"tokenizer.{name}": p.grad for name, p in reference.named_parameters() if p.grad is not None}
    expected |= {f"discriminator.{name}": p.grad for name, p in judge.named_parameters()}
    assert seen.found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen.found[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_each_adversarial_term_reaches_its_own_side(kind):
    judge, images = discriminator(), torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    before = copied(judge)
    generator_term(judge, images, kind).backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(p.grad is None for p in judge.parameters())
    assert equal(before, copied(judge))
    given = batch()
    losses = adversarial_terms(
        judge, None, AdversarialSettings(**AT_ONCE, loss=kind, r1=1.0), given, lambda x: x, Place(0, 0, 1), 1.0
    ).losses
    (losses["discriminator"] + losses["r1"]).backward()
    assert given.last.grad is None
    assert all(p.grad is not None for p in judge.parameters())


def test_terms_by_hand():
    judge, given = Witness(), batch()
    real, fake = 2 * given.images.mean((1, 2, 3)), 2 * given.reconstruction.mean((1, 2, 3)).detach()
    plain = terms(judge, adaptive=False)
    assert plain.losses["adversarial"].item() == pytest.approx(-0.5 * float(fake.mean()), rel=1e-5)
    assert plain.losses["discriminator"].item() == pytest.approx(
        0.5 * float((1 - real).relu().mean() + (1 + fake).relu().mean()), rel=1e-5
    )
    assert float(plain.seen["logits_real"]) == pytest.approx(float(real.mean()), rel=1e-5)
    assert float(plain.seen["logits_fake"]) == pytest.approx(float(fake.mean()), rel=1e-5)
    assert "adaptive_weight" not in plain.seen
    soft = terms(judge, adaptive=False, loss="non-saturating")
    assert soft.losses["adversarial"].item() == pytest.approx(
        0.5 * float(torch.log1p(torch.exp(-fake)).mean()), rel=1e-5
    )
    # each logit is the mean of 3 * 16 * 16 values times 2, so that every slope is 2 / 768
    sloped = terms(judge, step=32, r1=0.1, r1_every=16)
    assert float(sloped.losses["r1"]) == pytest.approx(0.1 * 16 * 768 * (2 / 768) ** 2, rel=1e-5)
    assert "r1" not in terms(judge, step=33, r1=0.1).losses


def test_discriminator_rests_trains_alone_and_then_counts(tmp_path):
    class States(Callback):
        def __init__(self):
            self.judges, self.logged = [], []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.judges.append(copied(pl_module.discriminator))
            self.logged.append(set(trainer.callback_metrics))

    run, states = module(discriminator(), weight=1.0, start=2, warmup=1, ramp=2), States()
    before = copied(run.discriminator)
    fitting = trainer(tmp_path, max_steps=5, callbacks=[states])
    fitting.fit(run, Noise())
    assert [equal(before, judge) for judge in states.judges] == [True, True, False, False, False]
    assert ["train/discriminator" in names for names in states.logged] == [False, False, True, True, True]
    assert ["train/adversarial" in names for names in states.logged] == [False, False, False, True, True]
    assert [run.adversarial.generator_weight(step) for step in range(6)] == [0, 0, 0, 0.5, 1.0, 1.0]
    assert fitting.global_step == 5


def test_warm_up_and_ramp_begin_anew_after_a_return():
    settings = AdversarialSettings(weight=1.0, start=10, warmup=1, ramp=2)
    assert [settings.generator_weight(step, since=20) for step in range(19, 25)] == [0, 0, 0.5, 1.0, 1.0, 1.0]
    assert settings.generator_weight(12, since=5) == 1.0  # a return before the start changes nothing


def test_adaptive_weight_is_the_clamped_ratio():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    pixel, adverse = (3 * last).sum(), (0.5 * last).sum()
    assert adaptive_weight(pixel, adverse, last, (0.0, 100.0)).item() == pytest.approx(6.0, rel=1e-3)
    assert adaptive_weight(pixel, adverse, last, (0.3, 5.0)).item() == 5.0
    assert adaptive_weight(adverse, pixel, last, (0.3, 5.0)).item() == pytest.approx(0.3)
    assert not adaptive_weight(pixel, adverse, last, (0.0, 9.0)).requires_grad


def test_spectral_norms_move_once_and_only_when_told_to():
    judge, images = discriminator(), torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.add_(torch.randn_like(parameter))
    start = copied(judge)
    with still(judge, move=False):
        first, second = judge(images)[0], judge(images)[0]
    assert torch.equal(first, second)
    assert equal(start, copied(judge))
    moved = copy.deepcopy(judge)
    moved(images)  # in training mode, a call moves them by one step
    with still(judge, move=True):
        judge(images)
        judge(images)
    assert equal(copied(moved), copied(judge))
    assert not equal(start, copied(judge))
    judge(images)
    assert not equal(copied(moved), copied(judge))  # as it was before


def test_anchors_by_hand():
    anchors, logits = LogitAnchors(decay=0.75), [torch.tensor([1.0, 3.0])]
    anchors.begin_step()
    assert float(anchors.loss(logits, logits)) == 0  # nothing to hold on to yet
    anchors.collect(torch.tensor([2.0, -1.0]))
    anchors.collect(torch.tensor([4.0, -3.0]))
    anchors.begin_step()
    assert anchors.means.tolist() == [3.0, -2.0]  # the first step becomes the averages
    # real logits 1 and 3 above the anchor -2 of fakes: 9 and 25; fake logits 0 and 4 below the anchor 3 of reals: 9, 0
    assert float(anchors.loss(logits, [torch.tensor([0.0, 4.0])])) == pytest.approx(17 + 4.5)
    anchors.collect(torch.tensor([7.0, 2.0]))
    anchors.begin_step()
    anchors.begin_step()  # a step without batches says nothing
    assert anchors.means.tolist() == [0.75 * 3 + 0.25 * 7, 0.75 * -2 + 0.25 * 2]
    assert float(anchors.steps) == 2


def test_mean_logits_weigh_heads_alike():
    heads = [torch.tensor([1.0, 3.0]), torch.tensor([[[5.0]]])]
    assert mean_logits(heads, heads[:1]).tolist() == [3.5, 2.0]


def test_lecam_is_weighted_and_sees_the_steps_before():
    judge, anchors = Witness(), LogitAnchors()
    assert float(terms(judge, 0, anchors, lecam=0.3).losses["lecam"]) == 0
    later = terms(judge, 1, anchors, lecam=0.3)
    real, fake = (2 * images.mean((1, 2, 3)) for images in (batch().images, batch().reconstruction))
    expected = (real - fake.mean()).relu().square().mean() + (real.mean() - fake).relu().square().mean()
    assert float(later.losses["lecam"]) == pytest.approx(0.3 * float(expected), rel=1e-4)


def test_real_and_fake_are_augmented_alike_and_anew_each_step(tmp_path):
    class Echo(TokenizerTraining):
        """The images themselves as reconstruction."""

        def _terms(self, batch):
            found, losses, pixel = super()._terms(batch)
            return replace(found, reconstruction=found.reconstruction * 0 + batch["images"]), losses, pixel

    run = module(Witness(), Echo, augment=("color", "translation", "cutout"))
    trainer(tmp_path, max_steps=6).fit(run, Noise())  # six steps: the first batch is seen twice
    seen = [images for images, _ in run.discriminator.seen]
    assert len(seen) == 18
    for generated, real, fake in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        torch.testing.assert_close(generated, fake)
        torch.testing.assert_close(real, fake)
    assert not torch.equal(seen[0], torch.stack([item["images"] for item in Noise().items[:2]]))
    assert not torch.equal(seen[0], seen[15])


def test_everything_at_once_in_bfloat16(tmp_path):
    run = module(Witness(), augment=("color",), lecam=0.1, r1=0.1, r1_every=2, loss="non-saturating")
    fitting = trainer(tmp_path, max_steps=3, precision="bf16-mixed")
    fitting.fit(run, Noise())
    mixed = [mixed for _, mixed in run.discriminator.seen]
    assert mixed == [True] * 3 + [False] + [True] * 6 + [False]  # three steps, the penalty in the first and the last
    assert {images.dtype for images, mixed in run.discriminator.seen if not mixed} == {torch.float32}
    names = ("adversarial", "discriminator", "lecam", "r1", "adaptive_weight", "logits_real", "logits_fake")
    assert all(bool(fitting.callback_metrics[f"train/{name}"].isfinite()) for name in names)
    assert run.guard.skipped == 0


def test_a_checkpoint_of_a_run_without_lecam_can_go_on_with_it(tmp_path):
    before = trainer(tmp_path, max_steps=2)
    before.fit(module(discriminator()), Noise())
    before.save_checkpoint(tmp_path / "plain.ckpt")
    run = module(discriminator(), lecam=0.1)
    trainer(tmp_path, max_steps=4).fit(run, Noise(), ckpt_path=tmp_path / "plain.ckpt")
    assert float(run.anchors.steps) == 1  # of two steps, the last is still pending
    assert module(discriminator()).anchors is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, r"start, warmup and ramp must be >= 0 steps, got -1, 500 and 1000"),
        ({"clamp": (2.0, 1.0)}, r"clamp must be 0 <= low <= high, got \(2.0, 1.0\)"),
        ({"lecam": -0.1}, r"weight, lecam and r1 must be >= 0, got 0.75, -0.1 and 0.0; 0 leaves a term out"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0.0; null takes the generator's"),
        ({"lecam_decay": 1.0}, r"lecam_decay must lie in \[0, 1\), got 1.0; 0.999 is usual"),
        ({"r1_every": 0}, r"r1_every must be >= 1 step, got 0; 16 is usual"),
        ({"loss": "wasserstein"}, r"loss must be one of hinge, non-saturating.*, got wasserstein"),
        ({"augment": ("colour",)}, r"policy must be some of color, translation, cutout, got colour"),
    ],
)
def test_adversarial_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AdversarialSettings(**options)
