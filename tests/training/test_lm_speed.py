"""Seconds of a training step: the run's own step, counted, and nothing written."""

from __future__ import annotations

import time

import pytest
import torch

from smalti.data.store import TokenRecord, write_store
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.lm import LanguageModelTraining, TokenData
from smalti.training.lm_speed import step_speed

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def run(tmp_path):
    """A model that would save itself, and its data."""
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    tokenizer = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    records = [TokenRecord("a red circle", (("how many ?", "two"),))] * 8
    write_store(tmp_path / "codes", torch.randint(0, 16, (8, 16, 1)), records, tokenizer.identity())
    vocabulary = Vocabulary.train(["a red circle", "how many ?", "two"])
    options = {"save_to": str(tmp_path / "model")}
    model = LanguageModelTraining(str(tmp_path / "tokenizer"), vocabulary, dict(LLAMA), **options)
    return model, TokenData(str(tmp_path / "codes"), batch_size=4)


def test_the_median_of_the_steps_after_the_first_three(run, monkeypatch, tmp_path):
    model, data = run
    seconds = iter([9, 9, 9, 0.05, 0.01, 0.01, 0.3, 0.02])
    clock, ends = [0.0], [False]

    def tick() -> float:
        clock[0] += next(seconds) if ends[0] else 0
        ends[0] = not ends[0]
        return clock[0]

    steps = list[int]()
    learned = model.training_loss
    monkeypatch.setattr(model, "training_loss", lambda batch: steps.append(len(batch)) or learned(batch))
    before = [weight.detach().clone() for weight in model.model.parameters()]
    monkeypatch.setattr(time, "perf_counter", tick)
    speed = step_speed(model, data, "bf16-mixed", "cpu", steps=5)
    assert not all(map(torch.equal, before, model.model.parameters()))  # it does train
    assert speed.seconds == pytest.approx(0.02)
    assert steps == [4] * 8
    assert (speed.steps, speed.batch, speed.precision, speed.device) == (5, 4, "bf16-mixed", "cpu")
    assert speed.describe() == "median of 5 training steps of 4 images after 3, bf16-mixed, 1 CPU threads"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "tokenizer"]


def test_no_step_is_no_median(run):
    with pytest.raises(ValueError, match=r"at least 1 step must be timed, got 0; 20 give a steady median"):
        step_speed(*run, steps=0)
