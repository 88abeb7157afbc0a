"""Codes of a batch: from a store, from a tokenizer that rests, and from one that learns from the language model."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Trainer

from smalti.data.scenes import Scenes
from smalti.data.transforms import Crop
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.codes import Codes
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.losses import PixelLoss
from smalti.tokenizers.quantizers import Quantizer, VectorQuantizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.coding import Coder, Tuning
from smalti.training.encode import texts_of
from smalti.training.lm import LanguageModelTraining, TokenData
from smalti.training.optimizer import OptimizerSettings
from smalti.training.pictures import PictureTextData
from smalti.training.tokenize import TokenizeSettings, tokenize_source

SIDE = 16
CODEBOOK = {"kind": "codebook"}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **SIZES, "max_position_embeddings": 256}


def trainer(root, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options = quiet | {"enable_model_summary": False, "num_sanity_val_steps": 0} | options
    return Trainer(**options, default_root_dir=root)


def scenes(count=6) -> Scenes:
    return Scenes("small", "train", count, size=SIDE)


def tokenizer(quantizer: Quantizer | None = None) -> VQTokenizer:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), quantizer or GradientQuantizer(4, 16), ConvDecoder(**parts), SIDE)


@pytest.fixture
def folder(tmp_path):
    found = tokenizer()
    found.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def module(folder, vocabulary=None, **options) -> LanguageModelTraining:
    words = Vocabulary.train(texts_of(scenes(60))) if vocabulary is None else vocabulary
    options = {"embedding": CODEBOOK, "optimizer": OptimizerSettings(1e-2, warmup_steps=1)} | options
    return LanguageModelTraining(str(folder), words, LLAMA, **options)


def items(count=3):
    data = PictureTextData(scenes(count), SIDE)
    return [data.train[index] for index in range(count)]


def test_stored_codes_are_taken_as_they_are():
    ids = torch.randint(0, 16, (2, 16, 1))
    coded = Coder(tokenizer())([{"ids": row} for row in ids], torch.device("cpu"))
    assert all(torch.equal(*pair) for pair in zip(coded.ids, ids, strict=True))
    assert coded.read_as == [None, None]
    assert coded.losses == {}


def test_a_resting_tokenizer_codes_pictures_and_keeps_still():
    found, pictures = tokenizer(), items()
    coder = Coder(found).train()
    coded = coder(pictures, torch.device("cpu"))
    expected = found.encode(torch.stack([item["images"] for item in pictures])).ids
    assert torch.equal(torch.stack(coded.ids), expected)
    assert coded.losses == {}
    assert not found.training
    assert list(coder.parameters()) == []


def test_a_tuned_tokenizer_is_read_through_its_embedding():
    found, pictures = tokenizer(), items()
    coder = Coder(found, Tuning(0.5, PixelLoss(1.0), {"quantizer": 2.0})).train()
    coded = coder(pictures, torch.device("cpu"))
    images = torch.stack([item["images"] for item in pictures])
    terms = found.training_step_terms(images)
    embedded = found.embed(Codes.full(torch.stack(coded.ids), found.spec))
    torch.testing.assert_close(torch.stack(coded.read_as), embedded)
    assert list(coded.losses) == ["l1", "quantizer"]
    torch.testing.assert_close(coded.losses["l1"], 0.5 * (terms.reconstruction - images).abs().mean())
    torch.testing.assert_close(coded.losses["quantizer"], 0.5 * 2.0 * terms.losses["quantizer"])


@pytest.mark.parametrize(
    "quantizer", [GradientQuantizer(4, 16), VectorQuantizer(4, 16), VectorQuantizer(4, 16, 2, shared=True)]
)
def test_every_quantizer_lets_the_gradient_through(quantizer):
    coder = Coder(tokenizer(quantizer), Tuning())
    assert coder.tuned.training
    coded = coder(items(), torch.device("cpu"))
    torch.stack(list(coded.read_as)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in coder.tuned.encoder.parameters())


def test_the_loss_of_the_language_model_reaches_codebook_and_encoder(folder):
    found = module(folder, tune_tokenizer=True, tuning=Tuning(weight=0.0), reading=1.0).train()
    found.log_dict = lambda *args, **options: None
    found.training_loss(items()).backward()
    gradients = {name: p.grad for name, p in found.coder.named_parameters() if p.grad is not None}
    reached = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
    assert "tuned.quantizer.table" in reached
    assert any(name.startswith("tuned.encoder") for name in reached)
    assert not any(name.startswith("tuned.decoder") for name in reached)  # that is the reconstruction's


def test_tuning_moves_the_tokenizer_and_says_what_it_did_to_reconstruction(folder, tmp_path):
    data = PictureTextData(scenes(), SIDE, scenes(3), batch_size=3)
    found = module(folder, tune_tokenizer=True, save_to=str(tmp_path / "model"))
    run = trainer(tmp_path, max_steps=3, check_val_every_n_epoch=1)
    run.fit(found, datamodule=data)
    assert {"val/psnr", "val/answers", "train/tokenizer/l1"} <= set(run.callback_metrics)
    pipeline = TextToImagePipeline.from_pretrained(tmp_path / "model")  # the fingerprints agree
    before, after = VisualTokenizer.from_pretrained(folder), pipeline.tokenizer
    moved = [name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])]
    assert {name.split(".")[0] for name in moved} >= {"encoder", "quantizer", "decoder"}
    images = torch.stack([data.validation[index]["images"] for index in range(3)])
    told = json.loads((tmp_path / "model" / "tuning.json").read_text())
    for key, model in (("psnr_before", before), ("psnr_after", after)):
        rebuilt = model.decode(model.encode(images))
        decibel = 10 * torch.log10(4 / (rebuilt - images).square().flatten(1).mean(1))
        assert told[key] == pytest.approx(float(decibel.mean()), abs=1e-3)
    codes = after.encode(images)
    torch.testing.assert_close(pipeline.lm.embedding.vectors()["pixel"], after.code_vectors()["pixel"])
    question = data.validation[0]["questions"][0][0]
    assert len(pipeline.answer_ids(codes.ids, [question] * 3)) == 3


def test_a_resumed_run_still_knows_how_the_tokenizer_began(folder, tmp_path):
    def run(steps, resume=None):
        steady = OptimizerSettings(1e-2, warmup_steps=0, schedule="constant")
        place = str(tmp_path / f"model{steps}{resume is None}")
        learner = module(folder, tune_tokenizer=True, save_to=place, optimizer=steady)
        made = trainer(tmp_path, max_steps=steps, limit_val_batches=0)
        made.fit(learner, datamodule=PictureTextData(scenes(), SIDE, scenes(3), batch_size=3), ckpt_path=resume)
        return made, learner

    half, _ = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(4, tmp_path / "half.ckpt")
    _, whole = run(4)
    first, second = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = [json.loads((tmp_path / name / "tuning.json").read_text()) for name in ("model4False", "model4True")]
    assert told[0] == told[1]


def test_pictures_and_stored_codes_teach_the_same(folder, tmp_path):
    saved = VisualTokenizer.from_pretrained(folder)
    tokenize_source(saved, scenes(), tmp_path / "codes", "scenes", TokenizeSettings(Crop(SIDE)))
    found = []
    for data in (PictureTextData(scenes(), SIDE, batch_size=3), TokenData(str(tmp_path / "codes"), batch_size=3)):
        learner = module(folder)
        trainer(tmp_path, max_steps=2).fit(learner, datamodule=data)
        found.append(learner.model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_stored_codes_cannot_be_tuned(folder, tmp_path):
    saved = VisualTokenizer.from_pretrained(folder)
    tokenize_source(saved, scenes(), tmp_path / "codes", "scenes", TokenizeSettings(Crop(SIDE)))
    with pytest.raises(ValueError, match="tuned on pictures, got a store of codes; use PictureTextData"):
        trainer(tmp_path, max_steps=1).fit(module(folder, tune_tokenizer=True), TokenData(str(tmp_path / "codes")))


def test_tuning_needs_an_embedding_of_codebooks(folder):
    with pytest.raises(ValueError, match=r"what the language model reads of it, got embedding 'sum'; set embedding to"):
        module(folder, tune_tokenizer=True, embedding=None)


def test_tables_that_are_added_cannot_be_tuned():
    tower, decoder = VisionTower(SIDE, 8, 16, 2, 2), ConvDecoder(16, 8, (1, 1, 1, 2), 1)
    parts = (VectorQuantizer(8, 16), VectorQuantizer(8, 12, depth=2))
    with pytest.raises(ValueError, match=r"DualTokenizer whose semantic, pixel.0, pixel.1 do not; share one table"):
        Coder(DualTokenizer(tower, *parts, decoder, 1, 0), Tuning())
    parts = (VectorQuantizer(8, 16), VectorQuantizer(8, 12, depth=2, shared=True))
    assert Coder(DualTokenizer(tower, *parts, decoder, 1, 0), Tuning()).tuned is not None


def test_weights_of_unknown_terms(folder):
    coder = Coder(tokenizer(), Tuning(weights={"quantiser": 1.0})).train()
    with pytest.raises(ValueError, match="weights must name terms out of quantizer, got quantiser; correct it"):
        coder(items(), torch.device("cpu"))


def test_classes_are_numbers_in_captions(folder):
    learner = LanguageModelTraining(str(folder), None, LLAMA, classes=3, caption_dropout=0.5, rotary="axial")
    learner.log_dict = lambda *args, **options: None
    ids = torch.randint(0, 16, (16, 1))
    batch = [{"ids": ids, "caption": text, "questions": ()} for text in ("0", "2", "1", "2")]
    torch.manual_seed(0)
    learner.training_loss(batch).backward()
    assert learner.model.classes.weight.grad.abs().sum() > 0
    for text in ("3", "a dog", None):
        with pytest.raises(ValueError, match=rf"draws classes in \[0, 3\), got {text!r}; pass a number of those"):
            learner.training_loss([{"ids": ids, "caption": text, "questions": ()}])


@pytest.mark.parametrize(("text", "classes", "came"), [(True, 3, "a vocabulary and 3"), (False, 0, "no vocabulary")])
def test_text_or_classes(folder, text, classes, came):
    words = Vocabulary.train(["a"]) if text else None
    with pytest.raises(ValueError, match=f"learns from text or from classes, got {came}"):
        LanguageModelTraining(str(folder), words, LLAMA, classes=classes)


def test_a_backbone_or_a_pretrained_model(folder):
    with pytest.raises(ValueError, match="from backbone or from pretrained, got neither; give one"):
        LanguageModelTraining(str(folder), Vocabulary.train(["a"]))


def test_packed_rows_teach_the_same(folder):
    losses = []
    for pack in (None, 200):
        torch.manual_seed(0)
        learner = module(folder, pack=pack, seed=1)
        learner.log_dict = lambda *args, **options: None
        torch.manual_seed(1)
        losses.append(learner.training_loss(items()).detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
