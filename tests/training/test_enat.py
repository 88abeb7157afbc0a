"""Training of masked prediction: it learns, its average follows, it resumes exactly, and refuses what does not fit."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from smalti.data.store import TokenRecord, TokenStore, write_store
from smalti.generation.enat import ENATPipeline, MaskedSampling, model_sampling, write_masked
from smalti.lm.conditions import ClassEncoder
from smalti.lm.enat import ENAT
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.enat import ENATTraining
from smalti.training.lm import TokenData
from smalti.training.optimizer import OptimizerSettings

SIZES = {"width": 32, "heads": 2, "encoder_blocks": 2, "decoder_blocks": 1}
CAPTIONS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, two and eight pictures coded with it for classes, two for sentences, one of another tokenizer."""
    root = tmp_path_factory.mktemp("codes")
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8)
    tokenizer.save_pretrained(root / "tokenizer")
    ids, spec = torch.randint(0, 16, (8, 16, 1)), tokenizer.spec.to_dict()
    named = {"two": ["0", "1"], "eight": ["0", "1"] * 4, "captioned": CAPTIONS, "nameless": [None, None]}
    for name, texts in named.items():
        records = [TokenRecord(text) for text in texts]
        write_store(root / name, ids[: len(texts)], records, {"spec": spec, "fingerprint": tokenizer.fingerprint()})
    write_store(root / "foreign", ids[:1], [TokenRecord("0")], {"spec": spec, "fingerprint": "0123456789abcdef"})
    return root


def module(folder, **options) -> ENATTraining:
    options = {"optimizer": OptimizerSettings(learning_rate=1e-2, warmup_steps=5)} | options
    kind = {} if "vocabulary" in options else {"classes": 2}
    return ENATTraining(str(folder / "tokenizer"), **SIZES, **kind, **options)


def trainer(root, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options = quiet | {"enable_model_summary": False, "num_sanity_val_steps": 0} | options
    return Trainer(**options, default_root_dir=root)


def fitted(folder, tmp_path, steps=6, resume=None, callbacks=(), **options) -> ENATTraining:
    found = module(folder, **options)
    tokens = TokenData(str(folder / "eight"), batch_size=2)
    trainer(tmp_path, max_steps=steps, callbacks=list(callbacks)).fit(found, tokens, ckpt_path=resume)
    return found


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def batch(folder, name="two") -> list:
    store = TokenStore(folder / name)
    return [store[index] for index in range(len(store))]


@pytest.fixture
def passes(monkeypatch):
    """Every pass: whose, how many positions are new, and what it goes on from."""
    kept = []
    forward = ENAT.forward

    def noted(self, ids, new, conditions, earlier=None):
        kept.append((self, new, earlier, torch.is_grad_enabled()))
        return forward(self, ids, new, conditions, earlier)

    monkeypatch.setattr(ENAT, "forward", noted)
    return kept


def loss(found, items) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logging without a trainer
        return found.training_loss(items)


def test_two_pictures_are_learned_by_heart(folder, tmp_path):
    sampling = MaskedSampling(steps=4, sampling_temperature=0.0)
    settings = {"label_smoothing": 0.0, "condition_dropout": 0.0, "ema": 0.9, "dropout": 0.0}
    found = module(folder, save_to=str(tmp_path / "model"), sampling=sampling, **settings)
    data = TokenData(str(folder / "two"), str(folder / "two"), batch_size=2)
    run = trainer(tmp_path, max_steps=50, check_val_every_n_epoch=50)
    run.fit(found, data)
    assert run.callback_metrics["train/loss"].item() < 0.1
    assert run.callback_metrics["val/pixel"].item() < 0.1

    pipeline = ENATPipeline.from_pretrained(tmp_path / "model")
    assert equal(pipeline.model, found.averaged)
    assert model_sampling(pipeline.model) == sampling
    assert all(not parameter.requires_grad for parameter in found.averaged.parameters())
    for reuse in (True, False):
        settings = MaskedSampling(steps=4, guidance=0.0, sampling_temperature=0.0, reuse=reuse)
        written = write_masked(pipeline.model, [0, 1], [torch.Generator(), torch.Generator()], settings)
        assert torch.equal(written.ids, data.train.ids())


def test_sentences_are_learned_from(folder, tmp_path):
    found = module(
        folder, vocabulary=Vocabulary.train(CAPTIONS), condition_dropout=0.0, save_to=str(tmp_path / "model")
    )
    run = trainer(tmp_path, max_steps=3, precision="bf16-mixed")
    run.fit(found, TokenData(str(folder / "captioned"), batch_size=2))
    assert run.callback_metrics["guard/skipped"].item() == 0
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in found.parameters())
    assert ENATPipeline.from_pretrained(tmp_path / "model").generate("a square", progress=False).shape == (1, 3, 8, 8)


def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path):
    class SaveAt(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:  # of the four batches of an epoch
                trainer.save_checkpoint(tmp_path / "third.ckpt")

    whole = fitted(folder, tmp_path, callbacks=[SaveAt()])
    assert not equal(whole.averaged, whole.model)
    assert equal(fitted(folder, tmp_path, resume=tmp_path / "third.ckpt"), whole)


def test_the_average_follows_each_step(folder, tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append([part.places.weight.clone() for part in (pl_module.model, pl_module.averaged)])

    start = module(folder).model.places.weight.detach()
    fitted(folder, tmp_path, steps=3, callbacks=[Watch()], ema=0.2)
    expected = start
    for step, (weight, mean) in enumerate(seen):
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
        torch.testing.assert_close(mean, expected)


def test_a_step_that_is_left_out_leaves_the_average_alone(folder, tmp_path, monkeypatch):
    plain = ENATTraining.training_loss
    monkeypatch.setattr(ENATTraining, "training_loss", lambda self, batch: plain(self, batch) * torch.inf)
    found, start = fitted(folder, tmp_path, steps=2), module(folder)
    assert equal(found.averaged, start.averaged)


@pytest.mark.parametrize("reuse", [0.0, 1.0])
def test_an_earlier_pass_is_the_averages_and_sees_a_part_of_what_is_visible(folder, passes, reuse):
    found = module(folder, reuse=reuse)
    counts = set()
    for _ in range(20):
        passes.clear()
        loss(found, batch(folder)).backward()
        assert [one[0] is found.averaged for one in passes] == [True, False][2 - len(passes) :]
        assert len(passes) == 1 + reuse
        (_, new, earlier, learning) = passes[-1]
        assert learning
        assert (earlier is None) == (reuse == 0)
        if reuse:
            assert not passes[0][3]
            assert not earlier.features.requires_grad
            assert torch.equal(passes[0][1], earlier.visible)
            counts.add(earlier.visible.shape[1] > 0)
            new = torch.cat([earlier.visible, new], dim=1)
        assert all(len(set(row)) == len(row) < 16 for row in new.tolist())
    assert counts == ({True, False} if reuse else set())
    assert all(parameter.grad is None for parameter in found.averaged.parameters())


def test_the_share_that_is_hidden_is_that_of_the_paper(folder, passes):
    found = module(folder, reuse=0.0)
    for _ in range(100):
        loss(found, batch(folder))
    hidden = torch.tensor([1 - new.shape[1] / 16 for _, new, _, _ in passes])
    assert float(hidden.mean()) == pytest.approx(0.8, abs=0.03)  # of Beta(12, 3)
    assert float(hidden.std()) == pytest.approx(0.1, abs=0.03)
    assert float(hidden.max()) <= 1


def test_hidden_codes_alone_are_learned(folder, passes):
    found = module(folder, reuse=0.0, label_smoothing=0.3, dropout=0.0, condition_dropout=0.0)
    items = batch(folder)
    torch.manual_seed(5)
    value = loss(found, items)
    net, new, _, _ = passes[0]
    ids = torch.stack([item["ids"] for item in items])
    passed = net(ids, new, net.conditions([0, 1]))
    terms = []
    for row, column in zip(*passed.hidden.shape and (range(2), passed.hidden), strict=True):
        likelihoods = net.logits(passed.features[row, column])[0].log_softmax(-1)
        right = likelihoods.gather(1, ids[row, column])[:, 0]
        terms.append(-(0.7 * right + 0.3 * likelihoods.mean(1)))
    torch.testing.assert_close(value, torch.cat(terms).mean())


@pytest.mark.parametrize(("name", "share", "expected"), [("two", 0.0, [0, 1]), ("two", 1.0, [None, None])])
def test_conditions_are_dropped(folder, monkeypatch, name, share, expected):
    kept = []
    forward = ClassEncoder.forward
    monkeypatch.setattr(ClassEncoder, "forward", lambda self, wanted: kept.append([*wanted]) or forward(self, wanted))
    loss(module(folder, condition_dropout=share, reuse=1.0), batch(folder, name))
    assert kept == [expected, expected]  # the same for the earlier pass
    kept.clear()
    loss(module(folder, condition_dropout=0.0, reuse=0.0), batch(folder, "nameless"))
    assert kept == [[None, None]]


def test_building_a_model_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    first, other = module(folder, seed=7), module(folder, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first.averaged, first.model)
    assert not equal(first.model, other.model)


def test_codes_of_another_tokenizer_are_an_error(folder, tmp_path):
    run = trainer(tmp_path, max_steps=1)
    with pytest.raises(
        ValueError, match=r"store must come from tokenizer .* got one of 0123456789abcdef in .*: fingerprint was"
    ):
        run.fit(module(folder), TokenData(str(folder / "foreign"), batch_size=1))
    with pytest.raises(ValueError, match="got one of 0123456789abcdef"):
        run.fit(module(folder), TokenData(str(folder / "two"), str(folder / "foreign"), batch_size=1))


@pytest.mark.parametrize("name", ["dropout", "label_smoothing", "reuse", "condition_dropout", "ema"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_an_error(folder, name, share):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {share}; 0\.\d+ is usual"):
        module(folder, **{name: share})


def test_text_and_classes_exclude_each_other(folder):
    with pytest.raises(ValueError, match="from text or from classes, got a vocabulary and 2 classes; give one"):
        ENATTraining(str(folder / "tokenizer"), Vocabulary.train(CAPTIONS), 2, **SIZES)
    with pytest.raises(ValueError, match="got no vocabulary and 0 classes; give one of the two"):
        ENATTraining(str(folder / "tokenizer"), **SIZES)


def test_captions_that_are_no_classes_are_an_error(folder):
    with pytest.raises(ValueError, match=r"this model draws classes in \[0, 2\), got 'a red circle'; pass a number"):
        loss(module(folder, condition_dropout=0.0), batch(folder, "captioned"))


@pytest.mark.parametrize(("given", "used"), [({}, True), ({"find_unused_parameters": False}, False)])
def test_ddp_is_told_of_what_rests(folder, tmp_path, given, used):
    found, strategy = module(folder), DDPStrategy(**given)
    found.trainer = trainer(tmp_path, strategy=strategy)
    found.setup("fit")
    assert strategy._ddp_kwargs == {"find_unused_parameters": used}
