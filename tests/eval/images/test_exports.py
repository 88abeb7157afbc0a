"""Pictures written for other evaluators and read back, one at a time; and everything that is no such set."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.decoding import BrokenImageError
from smalti.eval.images.exports import AdmFile, PictureFolder, read_images, write_adm, write_png_folder
from smalti.eval.images.picture_sets import ArraySource, ContentHash, PictureSet


def pictures(count: int, height: int = 5, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_adm_is_what_numpy_reads(tmp_path: Path):
    images = pictures(4)
    write_adm(tmp_path / "sub" / "set.npz", iter(images), 4)
    with np.load(tmp_path / "sub" / "set.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        assert np.array_equal(arrays["arr_0"], images)
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["set.npz"]


def test_adm_holds_one_picture_at_a_time_and_repeats_its_bytes(tmp_path: Path):
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.append(-1)

    def drawn() -> object:
        for image in pictures(20):
            alive.append(1)
            assert sum(alive) <= 3
            yield image.copy().view(Counted)

    write_adm(tmp_path / "first.npz", drawn(), 20)
    write_adm(tmp_path / "second.npz", list(pictures(20)), 20)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_adm_is_read_from_any_npz_of_pictures(tmp_path: Path):
    images = pictures(3)
    write_adm(tmp_path / "ours.npz", images, 3)
    np.savez(tmp_path / "theirs.npz", images)
    np.savez(tmp_path / "labelled.npz", np.asfortranarray(images), np.arange(3))
    np.savez_compressed(tmp_path / "small.npz", images)
    files = [read_images(tmp_path / f"{name}.npz") for name in ("ours", "theirs", "labelled", "small")]
    for file in files:
        assert isinstance(file, AdmFile)
        assert (len(file), file.size) == (3, (5, 7))
        assert np.array_equal(np.stack(list(file)), images)
    assert isinstance(files[0]._array, np.memmap)  # not read whole
    assert np.array_equal(pickle.loads(pickle.dumps(files[0]))[2], images[2])
    assert len(pickle.dumps(files[0])) < 300


def test_png_folder_is_numbered_and_exact(tmp_path: Path):
    images = pictures(12)
    assert write_png_folder(tmp_path / "out", iter(images)) == 12
    read = read_images(tmp_path / "out")
    assert isinstance(read, PictureFolder)
    assert (read.names[0], read.names[-1], len(read), read.size) == ("000000.png", "000011.png", 12, (5, 7))
    assert np.array_equal(np.stack(list(read)), images)


def test_png_folder_takes_names_and_replaces_an_earlier_export(tmp_path: Path):
    write_png_folder(tmp_path / "out", pictures(3))
    assert write_png_folder(tmp_path / "out", pictures(2, seed=1), ["b.png", "a.png"]) == 2
    read = PictureFolder(tmp_path / "out")
    assert read.names == ["a.png", "b.png"]
    assert np.array_equal(np.stack(read[:]), pictures(2, seed=1)[::-1])


def test_indices(tmp_path: Path):
    write_adm(tmp_path / "set.npz", pictures(3), 3)
    read = read_images(tmp_path / "set.npz")
    assert np.array_equal(read[-1], pictures(3)[2])
    assert [len(read[1:]), len(read[5:])] == [2, 0]
    with pytest.raises(IndexError, match="expected an index below 3, the number of pictures, got 3"):
        read[3]
    read[0][:] = 0  # a copy: the file stays as it is
    assert np.array_equal(read[0], pictures(3)[0])


def content(path: Path) -> str:
    digest = ContentHash()
    for _ in PictureSet(ArraySource(read_images(path)), "x").batches(2, digest):
        pass
    return digest.digits


def test_hash_is_of_pixels_in_order_however_they_are_stored(tmp_path: Path):
    images = pictures(3)
    write_adm(tmp_path / "set.npz", images, 3)
    write_png_folder(tmp_path / "same", images)
    write_png_folder(tmp_path / "turned", images[::-1])
    write_adm(tmp_path / "wide.npz", images.reshape(3, 7, 5, 3), 3)
    first, same, turned, wide = (content(tmp_path / name) for name in ("set.npz", "same", "turned", "wide.npz"))
    assert first == same == hashlib.sha256(b"".join(b"7x5;" + image.tobytes() for image in images)).hexdigest()
    assert len({first, turned, wide}) == 3


def test_numbers_in_names_are_read_as_numbers(tmp_path: Path):
    images = pictures(12)
    write_png_folder(tmp_path / "plain", images, [f"{index}.png" for index in range(12)])
    read = PictureFolder(tmp_path / "plain")
    assert read.names == [f"{index}.png" for index in range(12)]
    assert np.array_equal(np.stack(list(read)), images)
    names = ["00001.png", "1.png", "1_2.png", "1_10.png", "2.png", "a2b10.png", "a10b2.png", "a.png", "b.png"]
    write_png_folder(tmp_path / "mixed", pictures(9), names[::-1])
    assert PictureFolder(tmp_path / "mixed").names == names


def test_folder_passes_over_what_is_no_picture(tmp_path: Path):
    write_png_folder(tmp_path, pictures(1))
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "deeper").mkdir()
    assert len(read_images(tmp_path)) == 1


def test_grey_and_palette_pngs_become_rgb(tmp_path: Path):
    grey = Image.fromarray(pictures(1)[0, :, :, 0])
    grey.save(tmp_path / "a.png")
    grey.convert("P").save(tmp_path / "b.png")
    first, second = read_images(tmp_path)
    assert np.array_equal(first, np.asarray(grey)[:, :, None].repeat(3, 2))
    assert second.shape == (5, 7, 3)


def test_jpegs_are_taken_when_asked_for(tmp_path: Path):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.jpg")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"expected PNGs in .*, got a\.jpg and 0 more of another format; save them"):
        read_images(tmp_path)
    assert len(read_images(tmp_path, jpeg=True)) == 2
    (tmp_path / "c.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got c\.webp and 0 more"):
        read_images(tmp_path, jpeg=True)


def test_folders_that_are_no_set(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder of pictures, found none at .*none; check"):
        read_images(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected PNGs in .*, got none; check the path"):
        read_images(tmp_path)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder of PNGs or a file that ends in \.npz, got .*file\.txt"):
        read_images(tmp_path / "file.txt")
    write_png_folder(tmp_path / "set", pictures(2))
    Image.fromarray(pictures(1, 6)[0]).save(tmp_path / "set" / "000002.png")
    with pytest.raises(ValueError, match=r"one size in .*, got 5x7 in 000000\.png and 6x7 in 000002\.png; crop them"):
        read_images(tmp_path / "set")


def test_damaged_pictures(tmp_path: Path):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(BrokenImageError, match=r"expected a readable PNG, got '.*a\.png'; write it again"):
        read_images(tmp_path)
    Image.fromarray(pictures(1, 50, 50)[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    read = read_images(tmp_path)  # its header is whole
    with pytest.raises(BrokenImageError, match=r"expected a readable picture, got '.*a\.png'"):
        read[0]


def test_a_picture_that_turns(tmp_path: Path):
    marks = Image.Exif()
    marks[0x0112] = 6
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png", exif=marks)
    with pytest.raises(ValueError, match=r"expected 5x7 pixels in .*a\.png, got 7x5 once it is turned upright"):
        read_images(tmp_path)[0]


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (pictures(2).astype(np.float32), r"float32 \[2, 5, 7, 3\]"),
        (pictures(2)[0], r"uint8 \[5, 7, 3\]"),
        (pictures(2).transpose(0, 3, 1, 2), r"uint8 \[2, 3, 5, 7\]"),
        (pictures(2)[:0], r"uint8 \[0, 5, 7, 3\]"),
        (np.array([object()]), r"object \[1\]"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, got: str, tmp_path: Path):
    np.savez(tmp_path / "set.npz", array)
    with pytest.raises(ValueError, match=rf"pictures \[N, H, W, 3\] uint8 as arr_0 in .*set\.npz, got {got}; export"):
        read_images(tmp_path / "set.npz")


def test_files_that_are_no_npz(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected an npz of pictures, found none at .*none\.npz"):
        AdmFile(tmp_path / "none.npz")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"as arr_0 in .*statistics\.npz, got mu, sigma; export them with write_adm"):
        read_images(tmp_path / "statistics.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.npz cannot be read as an npz \(.*\); write it again"):
        read_images(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    with pytest.raises(ValueError, match=r"other\.npz cannot be read as an npz"):
        read_images(tmp_path / "other.npz")
    write_adm(tmp_path / "set.npz", pictures(2), 2)
    with zipfile.ZipFile(tmp_path / "set.npz") as archive, zipfile.ZipFile(tmp_path / "short.npz", "w") as cut:
        cut.writestr("arr_0.npy", archive.read("arr_0.npy")[:-5])
    with pytest.raises(ValueError, match=r"short\.npz cannot be read as an npz \(arr_0 is not as long as it says\)"):
        read_images(tmp_path / "short.npz")


@pytest.mark.parametrize("write", [lambda path, images: write_adm(path, images, 2), write_png_folder])
def test_pictures_that_cannot_be_written(write, tmp_path: Path):
    path = tmp_path / "set.npz"
    with pytest.raises(ValueError, match="pictures of one size, got 5x7 at index 0 and 6x7 at index 1; crop them"):
        write(path, [pictures(1)[0], pictures(1, 6)[0]])
    with pytest.raises(TypeError, match=r"expected uint8 pictures, got float64 at index 0; use data\.transforms"):
        write(path, pictures(2) / 255)
    with pytest.raises(ValueError, match=r"shape \[H, W, 3\], got \[3, 5, 7\] at index 0; move the channels"):
        write(path, pictures(2).transpose(0, 3, 1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [1, 3])
def test_another_number_than_promised(given: int, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"expected 2 pictures for .*set\.npz, got {given}; count them again"):
        write_adm(tmp_path / "set.npz", pictures(given), 2)
    with pytest.raises(ValueError, match=rf"expected 2 pictures, one per name, for .*out, got {given}; count"):
        write_png_folder(tmp_path / "out", pictures(given), ["a.png", "b.png"])
    assert not list(tmp_path.iterdir())


def test_nothing_to_write(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one picture to write, got a count of 0"):
        write_adm(tmp_path / "set.npz", [], 0)
    with pytest.raises(ValueError, match=r"expected at least one picture for .*out, got 0"):
        write_png_folder(tmp_path / "out", [])
    with pytest.raises(ValueError, match=r"a path that ends in \.npz, got set\.npy; rename it"):
        write_adm(tmp_path / "set.npy", pictures(1), 1)
    assert not list(tmp_path.iterdir())


def test_other_files_are_never_replaced(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"nothing but PNGs to replace, got .* with thesis\.txt; name another"):
        write_png_folder(tmp_path, pictures(1))
    with pytest.raises(FileExistsError, match=r"got .*thesis\.txt with thesis\.txt; name another"):
        write_png_folder(tmp_path / "thesis.txt", pictures(1))
    assert (tmp_path / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.png", "a.png"], r"'a\.png', a second time"),
        (["../a.png", "b.png"], r"'\.\./a\.png', which"),
        (["a.jpg", "b.png"], r"'a\.jpg', which"),
    ],
)
def test_names_that_do_not_do(names: list[str], problem: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"expected names like 000001\.png, each once, got {problem}"):
        write_png_folder(tmp_path / "out", pictures(2), names)
