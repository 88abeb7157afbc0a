"""Tokenizer training: terms, stages, exact resume, what is written."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.queries import GridReader
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import TransformerDecoder, VisionTower
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.adversarial import AdversarialSettings
from smalti.training.contrast import Contrast, TextTower
from smalti.training.interrupt import GracefulInterrupt
from smalti.training.optimizer import OptimizerSettings
from smalti.training.resume import ResumableData
from smalti.training.tokenizer import TokenizerTraining

SIZE = 16


class Noise(ResumableData):
    """A few fixed pictures of noise; batch ``bad`` may be damaged."""

    def __init__(self, count: int = 10, batch_size: int = 2, bad: int | None = None) -> None:
        super().__init__(batch_size, shuffle=False)
        images = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
        if bad is not None:
            images[bad * batch_size] = torch.nan
        self.items = [{"images": image} for image in images]

    def train_set(self):
        return self.items

    def validation_set(self):
        return self.items[:2]


def tokenizer(**quantizer) -> VQTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
        quantizer = VectorQuantizer(dim=4, codebook_size=16, **quantizer)
        return VQTokenizer(ConvEncoder(**parts), quantizer, ConvDecoder(**parts), SIZE)


def discriminator() -> PatchDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PatchDiscriminator(width=8, layers=1)


def module(**options) -> TokenizerTraining:
    return TokenizerTraining(options.pop("tokenizer", None) or tokenizer(), PixelLoss(), **options)


def trainer(folder, **options) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**(defaults | options), default_root_dir=folder, enable_model_summary=False)


def copied(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_nan_batch_leaves_codebooks_weights_and_moments_alone(tmp_path):
    class States(Callback):
        def __init__(self):
            self.states = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            moments = trainer.optimizers[0].state_dict()["state"]
            flat = {f"{index}.{key}": value.clone() for index, row in moments.items() for key, value in row.items()}
            self.states.append(copied(pl_module) | flat)

    states = States()
    settings = AdversarialSettings(warmup=0, ramp=0)
    run = module(discriminator=discriminator(), adversarial=settings)
    trainer(tmp_path, max_steps=4, callbacks=[states], limit_val_batches=0).fit(run, Noise(bad=2))
    assert equal(states.states[1], states.states[2])
    codebook = next(name for name in states.states[0] if name.endswith("_codebook.embed"))
    assert not torch.equal(states.states[2][codebook], states.states[3][codebook])
    assert run.guard.skipped == 1


class Interrupt(Callback):
    """Ctrl-C in the first half of an accumulated step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and batch_idx % 2 == 0:
            os.kill(os.getpid(), signal.SIGINT)


def resumable(folder, *callbacks) -> tuple[TokenizerTraining, Trainer]:
    average = EMAWeightAveraging(decay=0.8)
    settings = AdversarialSettings(start=1, warmup=1, ramp=3)
    run = module(
        tokenizer=tokenizer(revive_below=2.0), discriminator=discriminator(), adversarial=settings,
        optimizer=OptimizerSettings(warmup_steps=2),
    )  # fmt: skip
    fitting = trainer(
        folder, max_steps=8, accumulate_grad_batches=2, callbacks=[average, GracefulInterrupt(every=8), *callbacks],
        enable_checkpointing=True, limit_val_batches=0,
    )  # fmt: skip
    return run, fitting


def test_a_run_that_is_interrupted_in_mid_epoch_resumes_exactly(tmp_path):
    def data() -> Noise:
        return Noise(count=24)  # six steps an epoch

    straight, whole = resumable(tmp_path / "whole")
    whole.fit(straight, data())
    first, cut = resumable(tmp_path / "cut", Interrupt())
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match=r"^1$"):  # Lightning's answer to Ctrl-C
        cut.fit(first, data())
    assert cut.interrupted
    assert cut.global_step == 4
    assert signal.getsignal(signal.SIGINT) is handler
    again, rest = resumable(tmp_path / "cut")
    torch.manual_seed(99)
    rest.fit(again, data(), ckpt_path=tmp_path / "cut" / "last.ckpt")
    expected = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    found = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert found["global_step"] == expected["global_step"] == 8
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert equal(found[key], expected[key]), key
    assert not equal(expected["state_dict"], expected["current_model_state"])
    for mine, theirs in zip(_moments(found), _moments(expected), strict=True):
        assert torch.equal(mine, theirs)
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    assert found["loops"] == expected["loops"]


def _moments(checkpoint) -> list[Tensor]:
    rows = checkpoint["optimizer_states"][0]["state"]
    return [rows[index][key] for index in sorted(rows) for key in sorted(rows[index])]


def test_save_to_holds_the_averaged_tokenizer(tmp_path):
    average = EMAWeightAveraging(decay=0.5)
    run = module(save_to=str(tmp_path / "saved"))
    trainer(tmp_path, max_steps=3, callbacks=[average], limit_val_batches=0).fit(run, Noise())
    saved = VisualTokenizer.from_pretrained(tmp_path / "saved")
    inner = average._average_model.module.tokenizer
    assert equal(copied(saved), copied(inner))


def test_save_to_in_half_precision(tmp_path):
    run = module(save_to=str(tmp_path / "saved"), save_dtype="bfloat16")
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(run, Noise())
    saved, trained = VisualTokenizer.from_pretrained(tmp_path / "saved"), run.tokenizer
    assert {p.dtype for p in trained.parameters()} == {p.dtype for p in saved.parameters()} == {torch.float32}
    for name, value in saved.named_parameters():
        exact = dict(trained.named_parameters())[name]
        kept = exact if name.startswith("quantizer") else exact.bfloat16().float()
        assert torch.equal(value, kept), name


def test_validation_measures_psnr_l1_and_usage(tmp_path):
    run, data = module(), Noise()
    run.tokenizer.eval()
    images = torch.stack([item["images"] for item in data.items[:2]])
    difference = (run.tokenizer.decode(run.tokenizer.encode(images)) - images).detach()
    expected = [10 * torch.log10(4 / image.square().mean()) for image in difference]
    metrics = trainer(tmp_path).validate(run, data, verbose=False)[0]
    assert metrics["val/psnr"] == pytest.approx(float(sum(expected) / 2), rel=1e-5)
    assert metrics["val/l1"] == pytest.approx(float(difference.abs().mean()), rel=1e-5)
    assert metrics["val/usage/pixel"] == len(run.tokenizer.encode(images).ids.unique()) / 16


def test_weights_scale_the_terms_of_the_family(tmp_path):
    losses = []
    for weight in (1.0, 3.0):
        run = module(weights={"quantizer": weight})
        fitting = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        fitting.fit(run, Noise())
        losses.append(float(fitting.callback_metrics["train/quantizer"]))
    assert losses[1] == pytest.approx(3 * losses[0])


def test_weights_of_unknown_terms_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"terms of VQTokenizer, which are quantizer, got quantiser"):
        trainer(tmp_path, max_steps=1).fit(module(weights={"quantiser": 1.0}), Noise())


def test_a_teacher_needs_a_family_that_learns_from_it(tmp_path):
    teacher = VisionTower(image_size=SIZE, patch_size=8, width=8, layers=1, heads=1)
    run = module(teacher=teacher)
    assert not any(name.startswith("_teacher") for name in run.state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match=r"VQTokenizer learns nothing from a teacher; leave the teacher out"):
        trainer(tmp_path, max_steps=1).fit(run, Noise())


def test_a_discriminator_needs_a_pixel_decoder():
    class Blind(VisualTokenizer):
        def __init__(self):
            super().__init__()

    with pytest.raises(
        ValueError, match=r"needs a tokenizer with a pixel decoder and a pixel loss beside it, got a Blind without"
    ):
        module(tokenizer=Blind(), discriminator=discriminator())


class Captioned(Noise):
    """Noise with captions."""

    def __init__(self) -> None:
        super().__init__()
        self.items = [item | {"text": f"picture {at % 4}"} for at, item in enumerate(self.items)]


def seed_tokenizer() -> SeedTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = VisionTower(SIZE, 8, 16, 1, 2)
        qformer = QFormer(4, 16, 2, 2, 32, 16, dropout=0.0)
        quantizer = VectorQuantizer(dim=4, codebook_size=16)
        reader, decoder = GridReader(16, 16, 2, 1, 2), TransformerDecoder(16, 2, 8, 16, 1, 2)
        return SeedTokenizer(tower, qformer, quantizer, reader, decoder)


def compared() -> Contrast:
    words = Vocabulary.train([f"picture {number}" for number in range(4)])
    return Contrast(16, TextTower(words, width=8, layers=1, heads=2, length=4), dim=8)


CONTRASTIVE = {"contrast": 1.0, "quantizer": 0.0, "states": 0.0}


def test_a_contrastive_stage_trains_the_parts_it_names_and_nothing_else(tmp_path):
    training = TokenizerTraining(
        seed_tokenizer(), None, contrast=compared(), weights=CONTRASTIVE, only=["qformer", "vision_norm"]
    )
    before = copied(training)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(training, datamodule=Captioned())
    changed = {name for name, value in copied(training).items() if not torch.equal(value, before[name])}
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert {"tokenizer.qformer", "tokenizer.vision_norm", "contrast.text", "contrast.temperature"} <= parts
    assert not parts & {f"tokenizer.{name}" for name in ("encoder", "quantizer", "decoder", "down", "up", "reader")}
    assert "val/contrast" in run.callback_metrics
    assert "val/psnr" not in run.callback_metrics
    assert "train/quantizer" not in run.callback_metrics


def test_parts_at_rest_stay_in_evaluation_mode(tmp_path):
    """Averages of a resting quantizer do not move, and a resting Q-Former drops nothing out."""
    training = TokenizerTraining(seed_tokenizer(), PixelLoss(), only=["decoder"])
    training.train()
    assert not training.tokenizer.quantizer.training
    assert not training.tokenizer.qformer.training
    assert training.tokenizer.decoder.training


def test_a_part_of_a_part_can_be_trained_alone():
    training = TokenizerTraining(seed_tokenizer(), None, only=["encoder.model.encoder.layers.0", "down"])
    training.train()
    inner = training.tokenizer.encoder.model
    assert inner.encoder.layers[0].self_attn.training
    assert not inner.embeddings.training
    trained = {name for name, weight in training.tokenizer.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.startswith(("encoder.model.encoder.layers.0.", "down.")) for name in trained)


def test_a_tokenizer_without_pixels_is_trained_without_a_pixel_loss(tmp_path):
    tower, qformer = VisionTower(SIZE, 8, 16, 1, 2), QFormer(4, 16, 2, 2, 32, 16, dropout=0.0)
    blind = SeedTokenizer(tower, qformer, VectorQuantizer(dim=4, codebook_size=16), image_dim=12)
    teacher = VisionTower(2 * SIZE, 8, 12, 1, 2)  # of another size: it is shown resized pictures
    training = TokenizerTraining(blind, None, teacher=teacher, weights={"distill.pooled": 2.0})
    before, run = blind.image.out.weight.detach().clone(), trainer(tmp_path, max_epochs=1)
    run.fit(training, datamodule=Noise())
    assert {"train/distill.pooled", "val/distill.pooled", "val/states"} <= set(run.callback_metrics)
    assert not torch.equal(blind.image.out.weight, before)
    with pytest.raises(ValueError, match="a pixel loss needs a tokenizer with a pixel decoder, got a SeedTokenizer"):
        trainer(tmp_path, max_steps=1, num_sanity_val_steps=0).fit(module(tokenizer=blind), datamodule=Noise())


def test_stages_that_cannot_be_trained_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"only must name parts of SeedTokenizer, .* got qformers"):
        TokenizerTraining(seed_tokenizer(), None, only=["qformers"])
    with pytest.raises(ValueError, match="VQTokenizer has no feature to compare with captions; leave the contrast out"):
        trainer(tmp_path, max_steps=1).fit(module(contrast=compared()), datamodule=Captioned())
    with pytest.raises(ValueError, match="an adversarial loss needs a tokenizer with a pixel decoder and a pixel loss"):
        TokenizerTraining(tokenizer(), None, discriminator=discriminator())
