"""What every image source promises, and what the sources share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets

if TYPE_CHECKING:
    from PIL import Image

#: Endings, without the dot, of the files that are taken for pictures.
SUFFIXES = frozenset(
    ("avif", "bmp", "gif", "jfif", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp")
)


class ImageSource(ABC):
    """Pictures, and captions where there are any, by index."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The picture at ``index`` in ``[0, len)``, mode RGB, uint8, upright.

        Raises:
            BrokenImageError: the file cannot be read as a picture.
        """

    @abstractmethod
    def caption(self, index: int) -> str | None:
        """The caption of the picture at ``index``, or None where it has none."""

    @abstractmethod
    def name(self, index: int) -> str:
        """File name or key of the picture at ``index``, for messages and reports."""


class Part(ImageSource):
    """The pictures ``start <= index < stop`` of another source, counted from 0.

    Raises:
        ValueError: the range is empty or reaches outside the source.
    """

    def __init__(self, source: ImageSource, start: int, stop: int) -> None:
        if not 0 <= start < stop <= len(source):
            raise ValueError(
                f"expected a part with 0 <= start < stop <= {len(source)}, got {start}:{stop}; "
                "choose a range inside the source"
            )
        self.source, self.start, self.stop = source, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def picture(self, index: int) -> Image.Image:
        return self.source.picture(self._inside(index))

    def caption(self, index: int) -> str | None:
        return self.source.caption(self._inside(index))

    def name(self, index: int) -> str:
        return self.source.name(self._inside(index))

    def _inside(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}), got {index}; count from the start of the part")
        return self.start + index


class RowSource(ImageSource):
    """A source whose index is a table made on first use."""

    def __init__(self) -> None:
        self._table: datasets.Dataset | None = None

    @abstractmethod
    def _load(self) -> datasets.Dataset:
        """Make the table."""

    @property
    def rows(self) -> datasets.Dataset:
        """The table, made on first use."""
        if self._table is None:
            self._table = self._load()
        return self._table

    def __len__(self) -> int:
        return len(self.rows)


def check_columns(columns: Iterable[str], image: str, caption: str | None, where: str) -> None:
    """Raise ValueError where a wanted column is missing."""
    columns = list(columns)
    there = ", ".join(map(repr, columns))
    if image not in columns:
        raise ValueError(f"expected a picture column {image!r} in {where}, got {there}; pass image_column")
    if caption is not None and caption not in columns:
        raise ValueError(
            f"no captions: expected a column {caption!r} in {where}, got {there}; pass caption_column, None for none"
        )


def as_text(value: object, column: str, where: str) -> str | None:
    """``value`` where it is text or missing.

    Raises:
        TypeError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"expected text in column {column!r} of {where}, got {type(value).__name__}; choose another column")


def expand(paths: str | Path | Sequence[str | Path], what: str) -> list[Path]:
    """Files named by paths and globs, in the order given, sorted within each glob.

    Raises:
        FileNotFoundError: one of them matches no file.
    """
    files: list[Path] = []
    for pattern in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(pattern)
        relative = path.relative_to(path.anchor)
        found = [path] if path.is_file() else sorted(Path(path.anchor or ".").glob(str(relative)))
        if not (found := [file for file in found if file.is_file()]):
            raise FileNotFoundError(f"expected {what} at {str(pattern)!r}, got no match; check the path")
        files += found
    return files
