"""Training of the language model from stored codes: it learns, resumes exactly, and refuses what does not fit."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from smalti.data.store import TokenRecord, TokenStore, write_store
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling, model_sampling
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.lm import LanguageModelTraining, TokenData
from smalti.training.optimizer import OptimizerSettings

RECORDS = [
    TokenRecord("a red circle", (("how many ?", "two"), ("what color ?", "red"))),
    TokenRecord("a blue square", (("how many ?", "one"), ("what color ?", "blue"))),
]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, two pictures and eight pictures coded with it, one picture of another tokenizer."""
    root = tmp_path_factory.mktemp("codes")
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8)
    tokenizer.save_pretrained(root / "tokenizer")
    ids, spec = torch.randint(0, 16, (8, 16, 1)), tokenizer.spec.to_dict()
    write_store(root / "two", ids[:2], RECORDS, {"spec": spec, "fingerprint": tokenizer.fingerprint()})
    write_store(root / "eight", ids, RECORDS * 4, {"spec": spec, "fingerprint": tokenizer.fingerprint()})
    write_store(root / "foreign", ids[:1], RECORDS[:1], {"spec": spec, "fingerprint": "0123456789abcdef"})
    return root


def module(folder, **options) -> LanguageModelTraining:
    vocabulary = Vocabulary.train(text for r in RECORDS for text in (r.caption, *sum(r.questions, ())))
    options = {"optimizer": OptimizerSettings(learning_rate=1e-2, warmup_steps=5)} | options
    return LanguageModelTraining(str(folder / "tokenizer"), vocabulary, dict(LLAMA), **options)


def trainer(root, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options = quiet | {"enable_model_summary": False, "num_sanity_val_steps": 0} | options
    return Trainer(**options, default_root_dir=root)


def fitted(folder, tmp_path, steps=6, resume=None, callbacks=(), **options) -> LanguageModelTraining:
    found = module(folder, reading=0.5, **options)
    tokens = TokenData(str(folder / "eight"), batch_size=2)
    trainer(tmp_path, max_steps=steps, callbacks=list(callbacks)).fit(found, tokens, ckpt_path=resume)
    return found


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("head", [{"kind": "flat"}, {"kind": "depth", "heads": 2}], ids=["flat", "depth"])
def test_two_pictures_are_learned_by_heart_in_both_directions(folder, tmp_path, head):
    found = module(folder, head=head, save_to=str(tmp_path / "model"))
    data = TokenData(str(folder / "two"), str(folder / "two"), batch_size=2)
    run = trainer(tmp_path, max_steps=150, check_val_every_n_epoch=150)
    run.fit(found, data)
    scores = run.callback_metrics
    assert scores["train/pixel"].item() < 0.06  # which of both a picture without caption is cannot be known
    assert scores["train/text"].item() < 0.04
    assert scores["val/pixel"].item() < 0.02
    assert scores["val/answers"].item() == 1.0

    pipeline = TextToImagePipeline.from_pretrained(tmp_path / "model")
    assert equal(pipeline.lm, found.model)
    ids = data.train.ids()
    captions = [record.caption for record in RECORDS]
    generators = [torch.Generator().manual_seed(0) for _ in captions]
    written = sample_codes(pipeline.lm, captions, generators, Sampling(guidance=1.0, temperature=0.0))
    assert torch.equal(written.ids, ids)
    assert pipeline.answer_ids(ids, ["how many ?", "what color ?"]) == ["two", "blue"]


def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path):
    class SaveAt(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:  # of the four batches of an epoch
                trainer.save_checkpoint(tmp_path / "third.ckpt")

    whole = fitted(folder, tmp_path, callbacks=[SaveAt()])
    resumed = fitted(folder, tmp_path, resume=tmp_path / "third.ckpt")
    assert equal(whole, resumed)


def test_one_seed_gives_bit_equal_weights_on_two_threads(folder, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, same = (fitted(folder, tmp_path, steps=3) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert equal(one, same)


def test_another_seed_gives_other_weights(folder, tmp_path):
    assert not equal(fitted(folder, tmp_path, steps=1), fitted(folder, tmp_path, steps=1, seed=1))


def test_building_a_model_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    module(folder, seed=7)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_training_stays_finite(folder, tmp_path):
    found = module(folder)
    run = trainer(tmp_path, max_steps=3, precision="bf16-mixed")
    run.fit(found, TokenData(str(folder / "two"), batch_size=2))
    assert run.callback_metrics["guard/skipped"].item() == 0
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in found.parameters())


def batch(folder, name="two") -> list:
    store = TokenStore(folder / name)
    return [store[index] for index in range(len(store))]


def seen(monkeypatch, found, items):
    """The batch that the model gets."""
    kept = []
    forward = type(found.model).forward
    monkeypatch.setattr(type(found.model), "forward", lambda self, *args: kept.append(args[0]) or forward(self, *args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logging without a trainer
        found.training_loss(items)
    return kept[0]


def test_a_picture_follows_its_caption(folder, monkeypatch):
    found = module(folder, reading=0.0)
    (given,) = seen(monkeypatch, found, batch(folder))
    layout, store = found.model.layout, TokenStore(folder / "two")
    assert len(given.tokens) == 2
    for row, record in enumerate(RECORDS):
        ids = store[row]["ids"]
        assert matches(given, row, layout.text_to_image(record.caption, ids))


def test_a_picture_that_is_read_is_followed_by_questions_and_its_caption(folder, monkeypatch):
    found = module(folder, reading=1.0, questions=1, describing=0.0)
    (given,) = seen(monkeypatch, found, batch(folder))
    layout, store = found.model.layout, TokenStore(folder / "two")
    for row, record in enumerate(RECORDS):
        ids = store[row]["ids"]
        options = [layout.image_to_text(ids, record.caption, [pair], learn_codes=True) for pair in record.questions]
        assert any(matches(given, row, option) for option in options)


def test_a_share_of_the_pictures_read_is_described_without_questions(folder, monkeypatch):
    found = module(folder, reading=1.0, describing=1.0)
    (given,) = seen(monkeypatch, found, batch(folder))
    ids = TokenStore(folder / "two")[0]["ids"]
    assert matches(given, 0, found.model.layout.image_to_text(ids, RECORDS[0].caption, learn_codes=True))
    items = [item | {"caption": None} for item in batch(folder)]
    assert all(found._asked(item, torch.Generator()) for item in items)


def test_pictures_without_a_caption_are_learned_as_such(folder, monkeypatch):
    items = [item | {"caption": None, "questions": ()} for item in batch(folder)]
    found = module(folder, reading=0.0)
    (given,) = seen(monkeypatch, found, items)
    assert matches(given, 0, found.model.layout.image_to_text(items[0]["ids"], None, learn_codes=True))


def matches(batch, row, example) -> bool:
    length = len(example.tokens)
    same = torch.equal(batch.tokens[row, :length], example.tokens)
    return same and torch.equal(batch.learned[row, :length], example.learned) and not batch.learned[row, length:].any()


def test_both_directions_are_padded_apart(folder, monkeypatch):
    found = module(folder, reading=0.5)
    written, read = seen(monkeypatch, found, batch(folder, "eight"))
    assert written.tokens.shape[1] < read.tokens.shape[1]
    assert len(written.tokens) + len(read.tokens) == 8


def test_codes_that_look_alike_start_alike(folder):
    found = module(folder)
    vectors = found.coder.tokenizer.code_vectors()["pixel"]
    block = found.model.vocabulary.block("pixel")
    rows = found.model.backbone.get_input_embeddings().weight[block.start : block.stop]
    apart = lambda table: torch.cdist(table, table)[*torch.triu_indices(len(table), len(table), 1)]  # noqa: E731
    assert torch.corrcoef(torch.stack([apart(vectors), apart(rows.detach())]))[0, 1] > 0.5


def test_weights_reach_the_loss(folder):
    items = batch(folder)
    losses = []
    for weights in ({"text": 1.0, "pixel": 0.0}, {"text": 0.0, "pixel": 1.0}, {}):
        torch.manual_seed(0)
        losses.append(module(folder, weights=weights).training_loss(items))
    torch.testing.assert_close(losses[0] + losses[1], losses[2])


def test_sampling_is_kept_with_the_model(folder, tmp_path):
    options = {"sampling": Sampling(guidance=1.5, temperature=0.5), "save_dtype": "bfloat16"}
    found = fitted(folder, tmp_path, steps=1, save_to=str(tmp_path / "model"), **options)
    pipeline = TextToImagePipeline.from_pretrained(tmp_path / "model")
    assert model_sampling(pipeline.lm) == options["sampling"]
    half = {name: value.bfloat16().float() for name, value in found.model.state_dict().items()}
    assert all(torch.equal(half[name], value) for name, value in pipeline.lm.state_dict().items())
    sizes = [(tmp_path / "model" / part).stat().st_size for part in ("lm/model.safetensors",)]
    assert sizes[0] < 2.5 * sum(p.numel() for p in found.model.parameters()) + 10_000


def test_a_tokenizer_is_rounded_only_where_that_changes_nothing(folder, tmp_path):
    written = folder / "tokenizer"
    fitted(folder, tmp_path, steps=1, save_to=str(tmp_path / "model"), save_dtype="bfloat16")
    kept = VisualTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    assert kept.fingerprint() == VisualTokenizer.from_pretrained(written).fingerprint()


def test_a_store_of_another_tokenizer_is_refused(folder, tmp_path):
    found = module(folder)
    expected = found.model.config.tokenizer_fingerprint
    message = f"must come from tokenizer {expected}, got one of 0123456789abcdef in .*: fingerprint was 01234567"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(found, TokenData(str(folder / "foreign"), batch_size=1))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(found, TokenData(str(folder / "two"), str(folder / "foreign"), batch_size=1))


def test_weights_of_unknown_losses_are_an_error(folder):
    with pytest.raises(ValueError, match="weights must name the losses text, pixel, got semantic; correct or remove"):
        module(folder, weights={"semantic": 1.0})


@pytest.mark.parametrize("share", [-0.1, 1.5])
@pytest.mark.parametrize(("name", "usual"), [("reading", 0.4), ("describing", 0.25)])
def test_a_share_out_of_range_is_an_error(folder, name, usual, share):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {share}; {usual} is usual"):
        module(folder, **{name: share})


def test_a_folder_without_a_store_is_an_error(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="a token store was expected in"):
        TokenData(str(tmp_path))


def test_sequences_are_built_on_the_cpu_whatever_the_device(folder):
    data = TokenData(str(folder / "two"), batch_size=1)
    kept = data.transfer_batch_to_device([data.train[0]], torch.device("meta"), 0)
    assert kept[0]["ids"].device.type == "cpu"
