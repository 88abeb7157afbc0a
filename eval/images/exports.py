"""Sets of pictures as files that the official evaluators read: ADM's npz, and folders of PNGs.

What is written can be read back as a sequence that holds one picture at a time, so sets of any size fit.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...data.decoding import BrokenImageError, decode
from ...data.files import atomic_file, atomic_folder

Picture: TypeAlias = npt.NDArray[np.uint8]  #: ``[H, W, 3]``

_MEMBER = "arr_0.npy"
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_OTHERS = (".bmp", ".gif", ".tif", ".tiff", ".webp")


class ImageFiles(Sequence[Picture]):
    """Pictures of one size on disk, in order, read when they are asked for.

    Args:
        path: where they lie.
        length: how many there are.
        size: height and width of each, in pixels.
    """

    def __init__(self, path: Path, length: int, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        """The picture at ``index``, ``[H, W, 3]`` uint8 in RGB; a slice is read at once.

        Raises:
            IndexError: there is no such picture.
            ValueError: the file is damaged or of another size.
        """
        if isinstance(index, slice):
            return [self._read(at) for at in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"expected an index below {self._length}, the number of pictures, got {index}")
        return self._read(index % self._length)

    @abstractmethod
    def _read(self, index: int) -> Picture:
        """The picture at an index from 0 up to the length."""


class PictureFolder(ImageFiles):
    """The pictures directly in a folder; hidden files and files that are no pictures are passed over.

    They are sorted by name, and numbers in a name by their value: ``2.png`` comes before ``10.png``. Grey, palette and
    16-bit pictures become RGB, transparency is laid on white.

    Args:
        path: the folder.
        jpeg: take JPEGs too. Their loss moves a Frechet distance, on either side.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture, JPEGs that were not asked for, other formats, damaged files, or pictures of
            unlike sizes.
    """

    def __init__(self, path: str | Path, jpeg: bool = False) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder of pictures, found none at {folder}; check the path")
        self._files = _pictures(folder, jpeg)
        sizes = (_header(file) for file in self._files)
        first = next(sizes)
        for file, size in zip(self._files[1:], sizes, strict=True):
            if size != first:
                raise ValueError(
                    f"expected pictures of one size in {folder}, got {_size(first)} in {self._files[0].name} and "
                    f"{_size(size)} in {file.name}; crop them alike first"
                )
        super().__init__(folder, len(self._files), first)

    @property
    def names(self) -> list[str]:
        """File names, in order."""
        return [file.name for file in self._files]

    def _read(self, index: int) -> Picture:
        picture = np.asarray(decode(self._files[index]))
        if picture.shape[:2] != self.size:  # an orientation mark in the file turns the picture
            raise ValueError(
                f"expected {_size(self.size)} pixels in {self._files[index]}, got {_size(picture.shape)} once it is "
                "turned upright; store it upright"
            )
        return picture


class AdmFile(ImageFiles):
    """The array ``arr_0`` of an npz, ``[N, H, W, 3]`` uint8, as ADM's evaluator reads it.

    An npz as ``numpy.savez`` and `write_adm` write it is mapped from disk; a compressed one is held in memory whole.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no npz, holds no ``arr_0``, or one of another type or shape, or without pictures.
    """

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"expected an npz of pictures, found none at {file}; check the path")
        self._array = _adm_array(file)
        count, height, width = self._array.shape[:3]
        super().__init__(file, count, (height, width))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)  # another process maps the file itself

    def _read(self, index: int) -> Picture:
        return np.array(self._array[index])


def read_images(path: str | Path, jpeg: bool = False) -> ImageFiles:
    """Pictures of one size from a folder of PNGs or from ADM's npz.

    Args:
        path: a folder, or a file that ends in ``.npz``.
        jpeg: take JPEGs too where it is a folder.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: another kind of file, and as `PictureFolder` and `AdmFile`.
    """
    found = Path(path)
    if found.suffix.lower() == ".npz" and not found.is_dir():
        return AdmFile(found)
    if found.is_file():
        raise ValueError(f"expected a folder of PNGs or a file that ends in .npz, got {found}; convert it")
    return PictureFolder(found, jpeg)


def write_adm(path: str | Path, images: Iterable[Picture], count: int) -> None:
    """Write pictures as the ``arr_0`` of an uncompressed npz, one at a time, whole or not at all.

    The same pictures give the same bytes. Inception scores are taken over splits in file order, so pictures sorted by
    class must be shuffled first.

    Args:
        path: the file; its folder is made.
        images: ``[H, W, 3]`` uint8 in RGB, of one size.
        count: how many there are.

    Raises:
        ValueError: another name than ``.npz``, pictures of unlike sizes or shapes, or more or fewer than ``count``.
        TypeError: pictures that are not uint8.
        DiskFullError: no space left; the old file, if any, is untouched.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"expected a path that ends in .npz, got {Path(path).name}; rename it")
    if count < 1:
        raise ValueError(f"expected at least one picture to write, got a count of {count}; pass some")
    with (
        atomic_file(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
        archive.open(zipfile.ZipInfo(_MEMBER), "w", force_zip64=True) as member,
    ):
        written = 0
        for picture in _alike(images):
            if not written:
                _write_header(member, (count, *picture.shape))
            if written < count:
                member.write(np.ascontiguousarray(picture).data)
            written += 1
        if written != count:
            raise ValueError(f"expected {count} pictures for {path}, got {written}; count them again")


def write_png_folder(folder: str | Path, images: Iterable[Picture], names: Sequence[str] | None = None) -> int:
    """Write pictures as PNGs into a new folder, all or none.

    Args:
        folder: where to. One that exists is replaced if nothing but PNGs is in it.
        images: ``[H, W, 3]`` uint8 in RGB, of one size.
        names: of the files, one for each, ending in ``.png``; ``000000.png``, ``000001.png``, ... when left out.

    Returns:
        How many were written.

    Raises:
        FileExistsError: the folder holds other files.
        ValueError: no pictures, pictures of unlike sizes or shapes, names of another number, given twice or not ending
            in ``.png``.
        TypeError: pictures that are not uint8.
        DiskFullError: no space left; the old folder, if any, is untouched.
    """
    target = Path(folder)
    _check_replaceable(target)
    _check_names(names)
    with atomic_folder(target) as partial:
        written = 0
        for picture in _alike(images):
            if names is None or written < len(names):
                name = f"{written:06}.png" if names is None else names[written]
                # The same pixels in a fifth of the usual level's time, for a sixth more bytes.
                Image.fromarray(picture).save(partial / name, compress_level=1)
            written += 1
        if not written or (names is not None and written != len(names)):
            expected = "at least one picture" if names is None else f"{len(names)} pictures, one per name,"
            raise ValueError(f"expected {expected} for {target}, got {written}; count them again")
    return written


def _alike(images: Iterable[Picture]) -> Iterator[Picture]:
    """The pictures, each checked for type and for the shape of the first."""
    shape: tuple[int, ...] | None = None
    for index, picture in enumerate(images):
        if picture.dtype != np.uint8:
            raise TypeError(
                f"expected uint8 pictures, got {picture.dtype} at index {index}; use data.transforms.to_uint8"
            )
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"expected pictures of shape [H, W, 3], got {list(picture.shape)} at index {index}; move the channels "
                "last"
            )
        if shape is not None and picture.shape != shape:
            raise ValueError(
                f"expected pictures of one size, got {_size(shape[:2])} at index 0 and {_size(picture.shape[:2])} at "
                f"index {index}; crop them alike first"
            )
        shape = picture.shape
        yield picture


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    others = sorted(
        file.name for file in (folder.iterdir() if folder.is_dir() else [folder]) if file.suffix.lower() != ".png"
    )
    if others or not folder.is_dir():
        raise FileExistsError(
            f"expected a new folder, or one of nothing but PNGs to replace, got {folder} with {', '.join(others[:3])}; "
            "name another"
        )


def _check_names(names: Sequence[str] | None) -> None:
    seen: set[str] = set()
    for name in names or ():
        if Path(name).name != name or Path(name).suffix.lower() != ".png" or name in seen:
            problem = "a second time" if name in seen else "which is no such name"
            raise ValueError(f"expected names like 000001.png, each once, got {name!r}, {problem}; rename the pictures")
        seen.add(name)


def _pictures(folder: Path, jpeg: bool) -> list[Path]:
    """Files of a folder that are pictures by their name, sorted."""
    shown = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    shown.sort(key=lambda file: _by_number(file.name))
    taken = [file for file in shown if file.suffix.lower() == ".png" or (jpeg and file.suffix.lower() in _FORMATS)]
    refused = [file for file in shown if file.suffix.lower() in (*_FORMATS, *_OTHERS) and file not in set(taken)]
    if refused:
        raise ValueError(
            f"expected PNGs in {folder}, got {refused[0].name} and {len(refused) - 1} more of another format; save "
            "them as PNG in the first place: what JPEG loses moves scores, and no conversion brings it back"
        )
    if not taken:
        raise ValueError(f"expected PNGs in {folder}, got none; check the path")
    return taken


def _by_number(name: str) -> tuple[list[str | int], str]:
    """A key that sorts runs of digits as numbers; names of equal numbers by their text."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn, so that like is compared with like
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def _header(file: Path) -> tuple[int, int]:
    """Height and width from the first bytes of a picture."""
    try:
        with Image.open(file, formats=[_FORMATS[file.suffix.lower()]]) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError(
            f"expected a readable {_FORMATS[file.suffix.lower()]}, got {str(file)!r}; write it again or leave it out"
        ) from error


def _write_header(stream: IO[bytes], shape: tuple[int, ...]) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)


@dataclass(frozen=True)
class _Entry:
    """An array in an npz."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    compressed: bool
    offset: int  #: of its values in the file, where it is not compressed


def _adm_array(file: Path) -> Picture:
    """``arr_0``, mapped where it is stored as it is; nothing is ever unpickled."""
    with _whole(file):
        names, entry = _entry(file)
    if entry is None or entry.dtype != np.uint8 or len(entry.shape) != 4 or entry.shape[3] != 3 or not all(entry.shape):
        found = ", ".join(names[:4]) if entry is None else f"{entry.dtype} {list(entry.shape)}"
        raise ValueError(
            f"expected pictures [N, H, W, 3] uint8 as arr_0 in {file}, got {found or 'nothing'}; "
            "export them with write_adm"
        )
    with _whole(file):
        if entry.compressed:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays["arr_0"]
        return np.memmap(file, np.uint8, "r", entry.offset, entry.shape, "F" if entry.fortran else "C")


def _entry(file: Path) -> tuple[list[str], _Entry | None]:
    """Names of the arrays in an npz, and what its ``arr_0`` is."""
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if _MEMBER not in archive.namelist():
            return names, None
        info = archive.getinfo(_MEMBER)
        with archive.open(info) as member:
            shape, fortran, dtype = _array_header(member)
            start = member.tell()
        if dtype == np.uint8 and info.file_size - start != math.prod(shape):
            raise ValueError("arr_0 is not as long as it says")
    return names, _Entry(
        shape, fortran, dtype, info.compress_type != zipfile.ZIP_STORED, _data_offset(file, info) + start
    )


@contextmanager
def _whole(file: Path) -> Generator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read as an npz ({reason}); write it again") from error


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _data_offset(file: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip entry begin; its local header may be longer than the one in the directory."""
    with file.open("rb") as stream:
        stream.seek(entry.header_offset)
        header = stream.read(_LOCAL_HEADER)
    return (
        entry.header_offset
        + _LOCAL_HEADER
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
