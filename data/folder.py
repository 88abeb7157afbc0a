"""Pictures in a folder, captions in text files beside them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
from PIL import Image

from .base import SUFFIXES, RowSource
from .decoding import decode, printable

_log = logging.getLogger(__name__)


class ImageFolder(RowSource):
    """Every picture below a folder, sorted by path; hidden files and links to folders are passed over.

    Args:
        path: the folder.
        captions: read the caption of ``<stem>.jpg`` from ``<stem>.txt`` (UTF-8) beside it; pictures without one are
            counted in one warning.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture, or captions are asked for and there is none.
    """

    def __init__(self, path: str | Path, captions: bool = False) -> None:
        super().__init__()
        self.path, self.captions = Path(path), captions
        if not self.path.is_dir():
            raise FileNotFoundError(f"expected a folder of pictures, got {str(path)!r}, which is no folder; check it")
        if next(_walk(self.path), None) is None:
            raise ValueError(
                f"expected pictures ({', '.join(sorted(SUFFIXES))}) below {str(path)!r}, got none; check the path"
            )
        if captions and not any(has_text for _, has_text in _walk(self.path)):
            raise ValueError(
                f"no captions: expected <name>.txt beside the pictures in {str(path)!r}, got none; "
                "add them or pass captions=False"
            )

    def picture(self, index: int) -> Image.Image:
        return decode(self.path / self._relative(index), self.name(index))

    def caption(self, index: int) -> str | None:
        text = (self.path / self._relative(index)).with_suffix(".txt")
        return text.read_text(encoding="utf-8").strip() if self.captions and text.is_file() else None

    def name(self, index: int) -> str:
        return printable(self.rows["path"][index])

    def _relative(self, index: int) -> str:
        return os.fsdecode(self.rows["path"][index])

    def _load(self) -> datasets.Dataset:
        found = sorted(_walk(self.path))
        bare = sum(not has_text for _, has_text in found)
        if self.captions and bare:
            _log.warning("%d of %d pictures in %s have no caption", bare, len(found), self.path)
        # Bytes, not text: a file name need not be UTF-8.
        return datasets.Dataset.from_dict(
            {"path": [path for path, _ in found]}, features=datasets.Features({"path": datasets.Value("binary")})
        )


def _walk(root: Path) -> Iterator[tuple[bytes, bool]]:
    """Path below ``root`` of every picture, and whether a text file of the same stem lies beside it."""
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        present = set(files)
        for name in files:
            stem, _, suffix = name.rpartition(b".")
            if stem and not name.startswith(b".") and suffix.lower().decode("ascii", "replace") in SUFFIXES:
                relative = (folder[len(top) :] + b"/" + name).replace(os.sep.encode(), b"/").lstrip(b"/")
                yield relative, stem + b".txt" in present
