from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from smalti.data.order import Draw
from smalti.data.pictures import Pictures, collate
from smalti.data.sources import BrokenImageError, ImageFolder, ImageSource
from smalti.data.transforms import Crop


class Listed(ImageSource):
    """Flat pictures of level = index; the broken ones raise."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.reads = count, broken, 0

    def __len__(self) -> int:
        return self.count

    def picture(self, index: int) -> Image.Image:
        self.reads += 1
        if index in self.broken:
            raise BrokenImageError(f"picture {index} is broken")
        levels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        levels[0] = index
        return Image.fromarray(levels)

    def caption(self, index: int) -> str | None:
        return None if index == 0 else f"c{index}"

    def name(self, index: int) -> str:
        return str(index)


def noise(mode: str, height: int, width: int) -> Image.Image:
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Sound: 1-5, of mixed sizes and modes, one turned by EXIF; broken: 0 (truncated) and 6 (text)."""
    buffer = io.BytesIO()
    noise("RGB", 90, 90).save(buffer, "JPEG")
    (tmp_path / "0-truncated.jpg").write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    noise("RGB", 50, 70).save(tmp_path / "1-plain.jpg")
    noise("L", 33, 35).save(tmp_path / "2-grey.jpg")
    noise("CMYK", 64, 20).save(tmp_path / "3-cmyk.jpg")
    noise("RGBA", 20, 64).save(tmp_path / "4-alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    noise("RGB", 40, 50).save(tmp_path / "5-turned.jpg", exif=exif)
    (tmp_path / "6-text.jpg").write_text("not a picture")
    return tmp_path


def test_a_messy_folder_works_and_two_are_skipped(messy: Path):
    data = Pictures(ImageFolder(messy), Crop(16))
    batch = next(iter(DataLoader(data, batch_size=7, collate_fn=collate)))
    assert batch["images"].shape == (7, 3, 16, 16)
    assert batch["images"].dtype == torch.float32
    assert batch["images"].abs().max() <= 1
    assert batch["skipped"] == [0, 6, 0]  # the last one's next readable picture is found around the end
    assert batch["index"].tolist() == [1, 1, 2, 3, 4, 5, 1]
    with pytest.raises(BrokenImageError, match="0-truncated"):
        Pictures(ImageFolder(messy), Crop(16), on_error="raise")[0]


def test_items_name_what_they_show():
    data = Pictures(Listed(4, broken=(1, 2)), Crop(12))
    item = data[1]
    assert (item["index"], item["text"], item["skipped"]) == (3, "c3", [1, 2])
    assert data[0]["text"] == ""
    assert item["images"][:, 0].eq(3 / 127.5 - 1).all()


def test_chance_depends_on_seed_epoch_and_index_alone():
    def images(seed: int, epoch: int, workers: int = 0) -> torch.Tensor:
        data = Pictures(Listed(6, broken=(4,)), Crop(8, "random", flip=True), seed=seed)
        data.set_epoch(epoch)
        loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=collate)
        return torch.cat([batch["images"] for batch in loader])

    reference = images(0, 0)
    assert torch.equal(reference, images(0, 0, workers=2))
    assert torch.equal(
        reference[[5, 1]], torch.stack([Pictures(Listed(6), Crop(8, "random", flip=True))[i]["images"] for i in (5, 1)])
    )
    for other in (images(1, 0), images(0, 1)):
        assert not any(torch.equal(a, b) for a, b in zip(reference, other, strict=True))


def test_a_draw_brings_its_epoch():
    data = Pictures(Listed(6), Crop(8, "random"))
    drawn = data[Draw(2, 5)]["images"]
    assert not torch.equal(drawn, data[2]["images"])
    data.set_epoch(5)
    assert torch.equal(drawn, data[2]["images"])


def test_cache_reads_once_and_changes_nothing():
    source = Listed(3, broken=(1,))
    data = Pictures(source, Crop(12), cache=True)
    first, again = data[0]["images"], data[0]["images"]
    assert source.reads == 1
    assert torch.equal(first, again)
    first.zero_()  # what a user does to a batch stays out of the cache
    assert torch.equal(data[0]["images"], Pictures(Listed(3), Crop(12))[0]["images"])


def test_errors():
    with pytest.raises(ValueError, match="expected at least one readable picture, got 2 broken ones"):
        Pictures(Listed(2, broken=(0, 1)), Crop(8))[0]
    with pytest.raises(IndexError, match=r"expected an index in \[0, 2\), got 2"):
        Pictures(Listed(2), Crop(8))[2]
    with pytest.raises(ValueError, match="expected on_error of skip, raise, got 'ignore'"):
        Pictures(Listed(2), Crop(8), on_error="ignore")
    with pytest.raises(ValueError, match="expected a seed >= 0, got -3"):
        Pictures(Listed(2), Crop(8), seed=-3)
    with pytest.raises(ValueError, match="expected a crop without chance for cache=True, got mode 'random'"):
        Pictures(Listed(2), Crop(8, "random"), cache=True)
