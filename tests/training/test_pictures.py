"""Pictures with their texts: what an item holds, and that a run cut off in mid-epoch goes on exactly."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from smalti.data.folder import ImageFolder
from smalti.data.pictures import Pictures
from smalti.data.scenes import Scenes
from smalti.data.sources import BrokenImageError
from smalti.data.transforms import Crop
from smalti.training.encode import Pages, record_of
from smalti.training.pictures import PictureTextData

Seen = list[list[tuple[str, int, float]]]


class Recorder(LightningModule):
    """Writes down every batch: captions, numbers of questions, and a sum over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.validated: Seen = []

    def training_step(self, batch, batch_idx: int) -> Tensor:
        self.seen.append(told(batch))
        return self.weight * torch.stack([item["images"] for item in batch]).mean()

    def validation_step(self, batch, batch_idx: int) -> None:
        self.validated.append(told(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def told(batch) -> list[tuple[str, int, float]]:
    return [(item["caption"], len(item["questions"]), item["images"].double().sum().item()) for item in batch]


def trainer(tmp_path: Path, **options) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **(defaults | options),
    )  # fmt: skip


def scenes(count: int = 10, split="train") -> Scenes:
    return Scenes("small", split, count)


def data(workers: int = 0, **options) -> PictureTextData:
    """Ten scenes, three batches of three an epoch."""
    return PictureTextData(scenes(), 16, workers=workers, **({"batch_size": 3, "seed": 7} | options))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Eight steps: two whole epochs and two batches of the third."""
    model = Recorder()
    trainer(tmp_path_factory.mktemp("whole"), max_steps=8).fit(model, data())
    assert len(model.seen) == 8
    return model.seen


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Four pictures, the second of them text."""
    for number in range(4):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_text("no picture")
    return ImageFolder(str(tmp_path))


def test_an_item_is_a_picture_with_its_texts():
    source, items = scenes(), data().train_set()
    assert len(items) == 10
    for index in range(10):
        item = items[index]
        assert item.keys() == {"images", "caption", "questions"}
        assert item["images"].shape == (3, 16, 16)
        assert item["images"].dtype == torch.float32
        assert torch.equal(item["images"], Pictures(source, Crop(16))[index]["images"])
        assert item["caption"] == source.caption(index)
        assert item["questions"] == tuple((asked.question, asked.answer) for asked in source.questions(index))


def test_pictures_without_texts(folder):
    item = PictureTextData(folder, 8, batch_size=2).train_set()[0]
    assert (item["caption"], item["questions"]) == (None, ())


def test_batches_stay_lists_on_the_cpu():
    module = data()
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, list)
    assert len(batch) == 3
    assert module.transfer_batch_to_device(batch, torch.device("meta"), 0) is batch
    assert batch[0]["images"].device.type == "cpu"


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (3, 0), (4, 0), (4, 2)])
def test_resume_is_exact(tmp_path: Path, uninterrupted: Seen, step: int, workers: int):
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    options = {"callbacks": [saver], "enable_checkpointing": True}
    trainer(tmp_path, max_steps=step, **options).fit(Recorder(), data(workers))
    path = tmp_path / f"step={step}.ckpt"
    state = torch.load(path, weights_only=True)["PictureTextData"]
    assert (state["epoch"], state["batch"]) == divmod(step, 3)
    model = Recorder()
    trainer(tmp_path, max_steps=8).fit(model, data(workers), ckpt_path=path, weights_only=True)
    assert model.seen == uninterrupted[step:]


def test_resume_with_another_order_is_an_error(tmp_path: Path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1)
    trainer(tmp_path, max_steps=1, callbacks=[saver], enable_checkpointing=True).fit(Recorder(), data())
    with pytest.raises(ValueError, match="expected seed 7 as in the checkpoint, got 8; resume with the same data"):
        trainer(tmp_path, max_steps=2).fit(Recorder(), data(seed=8), ckpt_path=tmp_path / "step=1.ckpt")


def test_a_cache_changes_nothing_and_reads_once(tmp_path: Path, uninterrupted: Seen, monkeypatch: pytest.MonkeyPatch):
    read, paint = list[int](), Scenes.picture
    monkeypatch.setattr(Scenes, "picture", lambda self, index: read.append(index) or paint(self, index))
    model = Recorder()
    trainer(tmp_path, max_steps=8).fit(model, data(cache=True))
    assert model.seen == uninterrupted
    assert len(read) == len(set(read))


def test_validation_pictures_come_in_order_and_all(tmp_path: Path):
    other, model = scenes(4, "validation"), Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, data(validation=other))
    assert [caption for batch in model.validated for caption, _, _ in batch] == [other.caption(i) for i in range(4)]
    assert [len(batch) for batch in model.validated] == [3, 1]
    assert data().validation_set() is None


def test_a_broken_picture_gives_way_to_the_next_with_its_texts(folder, caplog: pytest.LogCaptureFixture):
    items = PictureTextData(folder, 8, batch_size=2).train_set()
    with caplog.at_level(logging.WARNING, "smalti.training.pictures"):
        shown = [items[1], items[1], items[2]]
    assert all(torch.equal(item["images"], shown[2]["images"]) for item in shown)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "1.png cannot be read, it and others like it are replaced by the next readable picture; "
        "pass on_error='raise' to stop at the first"
    )
    with pytest.raises(BrokenImageError, match="expected a readable picture"):
        PictureTextData(folder, 8, on_error="raise").train_set()[1]


def test_the_texts_are_those_of_the_picture_shown(monkeypatch: pytest.MonkeyPatch):
    source, paint = scenes(3), Scenes.picture

    def torn(self: Scenes, index: int) -> Image.Image:
        if index == 1:
            raise BrokenImageError("torn")
        return paint(self, index)

    monkeypatch.setattr(Scenes, "picture", torn)
    item, record = Pages(Pictures(source, Crop(16)))[1]
    assert (item["index"], item["skipped"], record) == (2, [1], record_of(source, 2))


def test_workers_receive_the_data_set():
    items = data().train_set()
    assert pickle.loads(pickle.dumps(items))[3]["caption"] == items[3]["caption"]


def test_refusals():
    with pytest.raises(ValueError, match="expected workers >= 0, got -1"):
        data(-1)
    with pytest.raises(ValueError, match="expected a seed >= 0, got -1"):
        data(seed=-1)
    with pytest.raises(ValueError, match="expected on_error of skip, raise, got 'ignore'"):
        data(on_error="ignore")
