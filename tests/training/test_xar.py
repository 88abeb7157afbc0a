"""Training of xAR: it learns, resumes exactly, writes a pipeline that draws, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from smalti.data.scenes import Scenes
from smalti.data.store import TokenRecord, write_store
from smalti.generation.latents import AutoencoderLatents, TokenizerLatents, tokenizer_latents
from smalti.generation.pictures import seeded
from smalti.generation.xar import DrawnNoise, XARPipeline, XARSampling, sample_latents
from smalti.lm.vocabulary import Vocabulary
from smalti.lm.xar import XAR
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.lm import TokenData
from smalti.training.optimizer import OptimizerSettings
from smalti.training.pictures import PictureTextData
from smalti.training.xar import XARTraining

SCENES = Scenes("small", "train", 10)
SIZES = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of 8 x 8 pixels with a grid of 4 x 4."""
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=3, codebook_size=16), ConvDecoder(**parts), 8)
    tokenizer.save_pretrained(tmp_path_factory.mktemp("tokenizer") / "saved")
    return tmp_path_factory.getbasetemp() / "tokenizer0" / "saved"


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([SCENES.caption(index) for index in range(len(SCENES))])


def module(folder, vocabulary, **options) -> XARTraining:
    options = {"optimizer": OptimizerSettings(learning_rate=1e-2), "entity": {"kind": "cell", "side": 2}} | options
    return XARTraining(tokenizer_latents(str(folder)), vocabulary, **SIZES, **options)


def trainer(root, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options = quiet | {"enable_model_summary": False, "num_sanity_val_steps": 0} | options
    return Trainer(**options, default_root_dir=root)


def data(**options) -> PictureTextData:
    return PictureTextData(SCENES, 8, **{"batch_size": 4} | options)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_of_a_fixed_batch_falls(folder, vocabulary):
    torch.manual_seed(0)
    found = module(folder, vocabulary, dropout=0.0, condition_dropout=0.0)
    batch = [data().train[index] for index in range(4)]
    images = torch.stack([item["images"] for item in batch])
    found.latents.measure([images])
    latents, wanted = found.latents.encode(images), [item["caption"] for item in batch]
    times, noise = torch.rand(4, 4), torch.randn(4, 16, 3)
    optimizer, losses = torch.optim.Adam(found.model.parameters(), 1e-2), list[float]()
    for _ in range(60):
        optimizer.zero_grad()
        loss = found.model(latents, wanted, times, noise).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2, abs=0.5)  # of noise and latents, both of variance 1
    assert losses[-1] < 0.5 * losses[0]


def test_latents_learned_by_heart_are_drawn():
    """What is learned and what is drawn belong together: each class has one latent, and drawing it gives that one."""
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "channels": 2, "grid": (2, 2), "entity": {"kind": "scale"}}
    found = XAR.build(Vocabulary(), width=32, heads=2, classes=2, **sizes)
    latents = torch.randn(1, 2, 2, 2).sign() * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    optimizer = torch.optim.Adam(found.parameters(), 5e-3)
    for step in range(150):
        optimizer.zero_grad()
        found(latents.repeat(24, 1, 1, 1), [None] * 48 if step % 5 == 0 else [0, 1] * 24).loss.backward()
        optimizer.step()
    noise = DrawnNoise(seeded(0, 1) + seeded(1, 1), found.entities.sizes, 2)
    drawn = sample_latents(found.eval(), [0, 1], noise, XARSampling(12, 1.5))
    torch.testing.assert_close(drawn, latents, atol=0.4, rtol=0)


def test_a_run_writes_a_pipeline_that_draws(folder, vocabulary, tmp_path):
    sampling = XARSampling(2, 1.5)
    found = module(folder, vocabulary, save_to=str(tmp_path / "model"), sampling=sampling)
    run = trainer(tmp_path, max_steps=3)
    run.fit(found, data(validation=Scenes("small", "validation", 3)))
    assert run.callback_metrics["val/loss"] > 0
    pipe = XARPipeline.from_pretrained(tmp_path / "model")
    assert equal(pipe.xar, found.model)
    assert pipe.latents.fingerprint() == found.latents.fingerprint() == pipe.xar.config.tokenizer_fingerprint
    pixels = pipe.generate([SCENES.caption(0)], progress=False)
    assert pixels.shape == (1, 3, 8, 8)
    assert torch.equal(pixels, pipe.generate([SCENES.caption(0)], 0, sampling, progress=False))


def test_a_resumed_run_equals_an_uninterrupted_one(folder, vocabulary, tmp_path):
    class SaveAt(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:  # of the three batches of an epoch
                trainer.save_checkpoint(tmp_path / "second.ckpt")

    def fitted(callbacks, resume=None) -> XARTraining:
        found = module(folder, vocabulary)
        trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(found, data(), ckpt_path=resume)
        return found

    whole = fitted([SaveAt()])
    resumed = fitted([], tmp_path / "second.ckpt")
    assert equal(whole.model, resumed.model)
    assert whole.latents.numbers() == resumed.latents.numbers()


def test_a_resumed_run_keeps_its_scale(folder, vocabulary, tmp_path):
    found = module(folder, vocabulary)
    trainer(tmp_path, max_steps=1).fit(found, data())
    checkpoint = {}
    found.on_save_checkpoint(checkpoint)
    other = XARTraining(TokenizerLatents(found.latents.tokenizer, [0.0] * 3, [1.0] * 3), vocabulary, **SIZES,
                        entity={"kind": "scale"})  # fmt: skip
    other.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="a run must go on with the latents that it began with"):
        trainer(tmp_path, max_steps=1).fit(other, data())


def test_conditions_are_dropped_in_training_alone(folder, vocabulary):
    found, seen = module(folder, vocabulary, condition_dropout=0.5), []
    batch = [data().train[index] for index in range(10)]
    found.latents.measure([torch.stack([item["images"] for item in batch])])
    found.model.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for _ in range(10):
        found.training_loss(batch)
    dropped = sum(wanted.count(None) for wanted in seen)
    assert 30 < dropped < 70
    found.log = lambda *_, **__: None
    found.validation_step(batch, 0)
    assert seen[-1] == [item["caption"] for item in batch]


def test_the_latents_of_an_autoencoder_are_drawn_in_training_and_known_in_validation(vocabulary):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "mid_block_add_attention": False}
    found = XARTraining(AutoencoderLatents(AutoencoderKL(**blocks, **sizes), 8), vocabulary, **SIZES,
                        entity={"kind": "subsample"})  # fmt: skip
    seen, said = [], []
    found.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found.score = lambda means, count: said.append((means["val/loss"].item(), count))
    batch = [data().train[index] for index in range(2)]
    for _ in range(2):
        found.training_loss(batch)
        found.on_validation_start()
        found.validation_step(batch, 7)
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert said[0] == said[1]


def test_classes(folder):
    found = module(folder, None, classes=3)
    batch = [{**data().train[index], "caption": text} for index, text in enumerate(["2", None, "0"])]
    found.latents.measure([torch.stack([item["images"] for item in batch])])
    assert found.training_loss(batch).item() > 0
    found.condition_dropout = 0.0
    with pytest.raises(ValueError, match=r"this model draws classes in \[0, 3\), got 'red'; pass a number of those"):
        found.training_loss([{**batch[0], "caption": "red"}])
    with pytest.raises(ValueError, match=r"draws classes in \[0, 3\), got '3'"):
        found.training_loss([{**batch[0], "caption": "3"}])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"condition_dropout": 1.5}, r"condition_dropout must lie in \[0, 1\], got 1.5; 0.1 is usual"),
        ({"classes": 3}, "a model learns from text or from classes, got a vocabulary and 3 classes; give one of the"),
        ({"entity": {"kind": "cell", "side": 3}}, "a cell of 3x3 tokens must be smaller than the 4x4 grid and divide"),
    ],
)
def test_what_cannot_be_trained(folder, vocabulary, options, said):
    with pytest.raises(ValueError, match=said):
        module(folder, vocabulary, **options)
    with pytest.raises(ValueError, match="got no vocabulary and 0 classes; give one of the two"):
        module(folder, None)


def test_data_that_does_not_fit(folder, vocabulary, tmp_path):
    found = module(folder, vocabulary)
    coded = found.latents.tokenizer
    ids = torch.zeros(2, 16, 1, dtype=torch.long)
    write_store(tmp_path / "codes", ids, [TokenRecord("a")] * 2, coded.identity())
    with pytest.raises(ValueError, match="latents are computed from pictures, got TokenData; use PictureTextData"):
        trainer(tmp_path, max_steps=1).fit(found, TokenData(str(tmp_path / "codes")))
    loader = torch.utils.data.DataLoader(data().train, 2, collate_fn=PictureTextData.collate)
    with pytest.raises(ValueError, match="the scale of latents is measured on the training pictures, got plain loader"):
        trainer(tmp_path, max_steps=1).fit(found, loader)
