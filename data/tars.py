"""Random access into WebDataset tars without unpacking or copying them.

Only the headers are read to build the index; a member is later read by seeking to its bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Member:
    """One file inside an uncompressed tar."""

    key: str  #: path up to the first dot of the file name: what the members of one sample share
    field: str  #: the rest of the file name, lower case: "jpg", "json", "seg.png"
    offset: int  #: first byte in the tar
    size: int  #: bytes


def samples(path: Path) -> Iterator[dict[str, Member]]:
    """The samples of a WebDataset tar in order: adjacent members that share a key, by field.

    Folders, links and hidden files are passed over.

    Raises:
        ValueError: ``path`` is not an uncompressed tar, or it is cut off or damaged.
    """
    try:
        for _, group in groupby(_members(path), key=lambda member: member.key):
            yield {member.field: member for member in group}
    except tarfile.TarError as error:
        raise ValueError(
            f"expected an uncompressed, complete tar, got {str(path)!r} ({error}); decompress or write it again"
        ) from error


def read(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of ``path`` from ``offset`` on; opens anew each time, so that workers share no file position."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            name = PurePosixPath(info.name)
            stem, _, field = name.name.partition(".")
            if info.isreg() and stem and field:
                yield Member(str(name.with_name(stem)), field.lower(), info.offset_data, info.size)
        # tarfile takes a header that is cut off or damaged for the end; a real end is a block of zeros.
        if read(path, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
