"""Training of diffusion decoders: what learns and what rests, guidance's empty condition, resume, and refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from smalti.data.scenes import Scenes
from smalti.generation.detokenizers import load_decoder
from smalti.generation.diffusion import DecoderSampling
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.training.data import ImageData
from smalti.training.decoder import DecoderTraining
from smalti.training.optimizer import OptimizerSettings

SIDE = 16


@pytest.fixture
def folder(tmp_path):
    tower = VisionTower(SIDE, patch_size=4, width=16, layers=2, heads=2)
    tokenizer = SeedTokenizer(tower, QFormer(6, 16, 2, 2, 32, 16, reading="attention"), VectorQuantizer(4, 16))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def denoiser(side=SIDE):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16}
    shape = {"in_channels": 3, "out_channels": 3, "sample_size": side, "patch_size": 4}
    return PixArtTransformer2DModel(**sizes, **shape, norm_num_groups=1)


def data(size=SIDE, count=24, **options):
    return ImageData(Scenes("small", "train", count), size, Scenes("small", "validation", 8), batch_size=8, **options)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**({"max_steps": 3, "enable_checkpointing": False} | quiet | options), default_root_dir=tmp_path)


def module(folder, scheduler=None, **options):
    given = {"optimizer": OptimizerSettings(learning_rate=3e-3, schedule="constant")} | options
    return DecoderTraining(folder, denoiser(), scheduler or FlowMatchEulerDiscreteScheduler(), **given)


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(shift=2.0), DDIMScheduler()])
def test_the_decoder_learns_and_the_tokenizer_rests(folder, tmp_path, scheduler):
    trained = module(folder, scheduler, save_to=str(tmp_path / "decoder"), sampling=DecoderSampling(2))
    before = copy.deepcopy(trained.tokenizer.state_dict())
    weights = copy.deepcopy(trained.decoder.state_dict())
    run = trainer(tmp_path)
    run.fit(trained, datamodule=data())
    after = trained.tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in trained.tokenizer.parameters())
    assert not any("tokenizer" in name for name in trained.state_dict())  # no part of checkpoints
    assert not any(module.training for module in trained.tokenizer.modules())
    moved = {name for name, value in trained.decoder.state_dict().items() if not torch.equal(value, weights[name])}
    assert {"denoiser.proj_out.weight", "condition.enter.weight", "condition.places", "condition.nothing"} <= moved
    assert run.callback_metrics["val/psnr"] > 0
    tokenizer = VisualTokenizer.from_pretrained(folder)
    read = load_decoder(tmp_path / "decoder", tokenizer)
    assert read.fingerprint() == trained.decoder.fingerprint()
    assert read.tokenizer_fingerprint == tokenizer.fingerprint()


def test_codes_that_are_dropped_are_learned_as_nothing(folder, tmp_path):
    always = module(folder, condition_dropout=1.0)
    always.training_loss({"images": torch.zeros(4, 3, SIDE, SIDE)}).backward()
    grads = {name: value.grad for name, value in always.decoder.condition.named_parameters()}
    assert grads["nothing"] is not None
    assert not any(bool(grads[name].any()) for name in grads if name != "nothing" and grads[name] is not None)
    never = module(folder, condition_dropout=0.0)
    never.training_loss({"images": torch.zeros(4, 3, SIDE, SIDE)}).backward()
    nothing = never.decoder.condition.nothing.grad
    assert nothing is None or not bool(nothing.any())


def test_a_decoder_learns_its_pictures(folder, tmp_path):
    """The loss of one batch that comes again and again falls well below that of a decoder that says nothing."""
    trained = module(folder, DDIMScheduler(prediction_type="sample"))
    images = torch.stack([item["images"] for item in (data(count=8).train_set()[at] for at in range(8))])
    optimizer = torch.optim.Adam(trained.decoder.parameters(), 5e-3)
    losses = list[float]()
    for _ in range(60):
        loss = trained.training_loss({"images": images})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:3]) * 10 / 3


def test_averaged_weights_are_written(folder, tmp_path):
    trained = module(folder, save_to=str(tmp_path / "decoder"))
    average = EMAWeightAveraging(decay=0.5)
    trainer(tmp_path, callbacks=[average]).fit(trained, datamodule=data())
    read = load_decoder(tmp_path / "decoder", trained.tokenizer)
    assert read.fingerprint() == trained.decoder.fingerprint()
    plain = module(folder, save_to=str(tmp_path / "plain"))
    trainer(tmp_path).fit(plain, datamodule=data())
    assert plain.decoder.fingerprint() != read.fingerprint()


def test_copies_share_what_rests(folder):
    trained = module(folder)
    assert copy.deepcopy(trained).tokenizer is trained.tokenizer


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    whole = module(folder)
    trainer(tmp_path, max_steps=5).fit(whole, datamodule=data())
    half = module(folder)
    keep = ModelCheckpoint(tmp_path, "half", save_top_k=-1, every_n_train_steps=2)
    trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[keep]).fit(half, datamodule=data())
    rest = module(folder)
    trainer(tmp_path, max_steps=5).fit(rest, datamodule=data(), ckpt_path=tmp_path / "half.ckpt")
    expected = whole.decoder.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in rest.decoder.state_dict().items())


def test_larger_pictures_than_the_tokenizers_are_drawn(folder, tmp_path):
    trained = DecoderTraining(folder, denoiser(32), FlowMatchEulerDiscreteScheduler())
    trainer(tmp_path, max_steps=1).fit(trained, datamodule=data(32))
    codes = trained.tokenizer.encode(torch.zeros(1, 3, SIDE, SIDE))
    assert trained.decoder.decode(codes).shape == (1, 3, 32, 32)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"this decoder draws pictures of 16x16 pixels .* got 24x24; resize them"):
        trainer(tmp_path).fit(module(folder), datamodule=data(24))
    with pytest.raises(ValueError, match=r"condition_dropout must lie in \[0, 1\], got 1.5; 0.1 is usual"):
        module(folder, condition_dropout=1.5)
    with pytest.raises(FileNotFoundError, match=r"a tokenizer was expected in .*nothing, which is no folder"):
        module(str(tmp_path / "nothing"))


def test_a_seed_decides_all_weights(folder):
    assert module(folder).decoder.fingerprint() == module(folder).decoder.fingerprint()
    assert module(folder).decoder.fingerprint() != module(folder, seed=1).decoder.fingerprint()
