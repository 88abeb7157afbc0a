"""Archives are read where they lie: whatever their members are called, nothing is written."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.folder import ImageFolder
from smalti.data.tables import CaptionTable
from smalti.data.webdataset import WebDataset
from smalti.eval.images.exports import read_images, write_adm, write_png_folder
from smalti.eval.images.feature_statistics import Reference


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def inside(tmp_path, monkeypatch) -> Path:
    """The current folder, three levels down, so that what climbs out of it can be seen."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_tar_whose_members_would_leave_the_folder(inside, tmp_path):
    names = ["../../climbs.png", str(tmp_path / "absolute.png"), "/absolute.png", "..png", "a/../../b.png", "plain.png"]
    with tarfile.open("set.tar", "w") as tar:
        for level, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(picture(level))
            tar.addfile(info, io.BytesIO(picture(level)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"../special-{ord(kind)}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = tree(tmp_path)
    source = WebDataset("set.tar")
    found = [int(np.asarray(source.picture(index))[0, 0, 0]) for index in range(len(source))]
    assert found == [0, 1, 2, 4, 5]  # a hidden file and what is no file are passed over
    assert source.name(0) == "set.tar/../../climbs.png"
    assert tree(tmp_path) == before


def test_an_npz_whose_members_would_leave_the_folder(inside, tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    for name, options in (("stored.npz", {}), ("packed.npz", {"compression": zipfile.ZIP_DEFLATED})):
        with zipfile.ZipFile(name, "w", **options) as archive:
            for member in ("../../climbs.npy", str(tmp_path / "absolute.npy"), "/absolute.npy", "arr_0.npy"):
                content = io.BytesIO()
                np.save(content, images)
                archive.writestr(member, content.getvalue())
            link = zipfile.ZipInfo("../link.npy")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    before = tree(tmp_path)
    for name in ("stored.npz", "packed.npz"):
        files = read_images(name)
        assert np.array_equal(np.stack([files[index] for index in range(len(files))]), images)
    assert tree(tmp_path) == before


def test_statistics_whose_members_would_leave_the_folder(inside, tmp_path):
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3), "../../climbs": np.ones(2), "/absolute": np.ones(2)}
    with zipfile.ZipFile("statistics.npz", "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
    before = tree(tmp_path)
    about = {"split": "train", "count": 10, "dataset": "d", "extractor": "e", "weights_hash": "w"}
    assert Reference.from_adm("statistics.npz", **about).statistics.mean.tolist() == [0.0, 0.0, 0.0]
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../climbs.png", "a/b.png", "/absolute.png", "..", "a\\..\\..\\b.png/../c.png"])
def test_pictures_are_written_under_plain_names(name, inside, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"expected names like 000001\.png, each once, got .* no such name"):
        write_png_folder("out", iter(np.zeros((1, 4, 4, 3), np.uint8)), [name])
    assert tree(tmp_path) == before


def test_an_npz_is_written_whole_and_alone(inside, tmp_path):
    write_adm("set.npz", iter(np.zeros((1, 4, 4, 3), np.uint8)), 1)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["set.npz"]


def test_a_table_may_name_pictures_anywhere_and_reads_nothing_else(inside, tmp_path):
    Path("../elsewhere.png").write_bytes(picture(7))
    Path("../secret.txt").write_text("a secret\n")
    Path("table.csv").write_text(
        f"image,caption\n../elsewhere.png,a\n{tmp_path}/a/b/elsewhere.png,b\n../secret.txt,c\n"
    )
    source = CaptionTable("table.csv")
    assert [int(np.asarray(source.picture(index))[0, 0, 0]) for index in (0, 1)] == [7, 7]
    with pytest.raises(ValueError, match="not a known picture format") as found:
        source.picture(2)
    assert "a secret" not in str(found.value)


def test_links_in_a_folder_of_pictures_are_read_and_nothing_is_written(inside, tmp_path):
    Path("../elsewhere.png").write_bytes(picture(7))
    Path("pictures").mkdir()
    Path("pictures/link.png").symlink_to(Path("../elsewhere.png").resolve())
    before = tree(tmp_path)
    source = ImageFolder("pictures")
    assert int(np.asarray(source.picture(0))[0, 0, 0]) == 7
    assert tree(tmp_path) == before
