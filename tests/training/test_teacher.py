"""The small SigLIP: its loss by hand, its captions, what it writes."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.vision import VisionTower
from smalti.training.optimizer import OptimizerSettings
from smalti.training.teacher import TeacherTraining, retrieval, sigmoid_loss

CAPTIONS = ["a red circle", "a blue square", "a green star", "a red square"]


def teacher(**options) -> TeacherTraining:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "text_length": 6}
    return TeacherTraining(Vocabulary.train(CAPTIONS), **(sizes | options))


def test_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    terms = [[2.0, 1.0], [-0.5, 3.0]]
    expected = -sum(math.log(1 / (1 + math.exp(-term))) for row in terms for term in row) / 2
    assert sigmoid_loss(logits, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(expected)


def test_retrieval_counts_equal_captions():
    logits = torch.tensor([[0.0, 5.0, 0.0], [9.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    pairs = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert retrieval(logits, pairs).item() == pytest.approx(2 / 3)


def test_equal_captions_are_pairs():
    batch = {"images": torch.rand(3, 3, 16, 16), "text": ["a red circle", "a green star", "a red circle"]}
    module = teacher()
    pictures, texts, ids = module._features(batch)
    logits, pairs = module._compare(pictures, ids, texts, ids)
    assert torch.equal(logits, module.model(input_ids=ids, pixel_values=batch["images"]).logits_per_image)
    assert pairs.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_captions_are_padded_and_must_fit():
    module = teacher()
    ids = module.text_ids(["a red circle"])
    assert ids.shape == (1, 6)
    assert ids[0, 3:].tolist() == [module.padding] * 3
    with pytest.raises(ValueError, match=r"at most 2 pieces here, got 3; shorten them or raise text_length"):
        teacher(text_length=2).text_ids(["a red circle"])


def test_learns_pairs_and_saves_a_tower(tmp_path):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"images": images, "text": CAPTIONS}
    settings = OptimizerSettings(learning_rate=3e-3, schedule="constant")
    module = teacher(optimizer=settings, save_to=str(tmp_path / "teacher"))
    trainer = Trainer(
        accelerator="cpu", max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    first = module.training_loss(batch).item()
    trainer.fit(module, DataLoader([batch] * 40, batch_size=None), DataLoader([batch], batch_size=None))
    assert float(trainer.callback_metrics["val/loss"]) < first / 2
    assert float(trainer.callback_metrics["val/retrieval"]) == 1.0
    tower = VisionTower.from_checkpoint(str(tmp_path / "teacher"))
    features = module.model.eval().vision_model(pixel_values=images)
    torch.testing.assert_close(tower.eval()(images).pooled, features.pooler_output)


def test_a_validation_that_broke_off_leaves_nothing_to_the_next():
    module = teacher().eval()
    module.validation_step({"images": torch.rand(4, 3, 16, 16), "text": CAPTIONS}, 0)
    assert (len(module._held_out), module._together) == (4, 4)
    module.on_validation_start()
    assert (module._held_out, module._together) == ([], 0)
