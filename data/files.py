"""Files and folders that are either whole or absent: written beside their place, then renamed into it.

They are also on the disk before they are renamed: after a power cut, no empty file stands under a final name.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .leftovers import RETIRED, clear, prefix, recovered, remove


class DiskFullError(OSError):
    """The device has no room left; nothing was replaced."""


@contextmanager
def atomic_file(path: str | Path, beside: str | Path | None = None) -> Generator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Args:
        path: the file; its folder is made.
        beside: write beside this folder, in which the file will be, so that nothing unfinished is ever in it. The
            folder is then the caller's to make, before the block ends, and what killed processes left beside it the
            caller's to clear: many files can be written without reading a folder for each.

    Raises:
        DiskFullError: no space left; the old file, if any, is untouched.
    """
    target = Path(path)
    place = target if beside is None else Path(beside)
    place.parent.mkdir(parents=True, exist_ok=True)
    if beside is None:
        clear(target)
    handle, name = tempfile.mkstemp(prefix=prefix(place), suffix=target.suffix, dir=place.parent)
    os.close(handle)
    partial = Path(name)
    try:
        with _disk_full(target):
            yield partial
            partial.chmod(0o666 & ~_umask())
            _settle(partial)
        partial.replace(target)
        _settle_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """Yield a folder beside ``path`` to fill; it takes the place of ``path`` when the block ends well.

    Two renames replace a folder: the old one is retired to a name of its own, the new one takes its place. A process
    that is killed before the first leaves the old one where it was. Killed between the two it leaves none, and the old
    one whole under its retired name, whence `recovered` brings it back, here and in whatever reads the folder. After
    the second the new one is in place, and the old one no longer called retired before anything of it is removed. So
    there is always a whole folder, in place or to be recovered, and never half of one. A second process that recovers
    the old folder between the two renames of a living one does no harm: the first retires it again.

    Raises:
        DiskFullError: no space left; the old folder, if any, is untouched.
    """
    target = recovered(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(target)
    partial = Path(tempfile.mkdtemp(prefix=prefix(target), dir=target.parent))
    try:
        with _disk_full(target):
            yield partial
            partial.chmod(0o777 & ~_umask())
            _settle(partial)
        _replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(partial: Path, target: Path) -> None:
    retired: list[Path] = []
    while not _placed(partial, target):
        away = partial.with_name(f"{partial.name}{len(retired)}{RETIRED}")
        with suppress(FileNotFoundError):  # another process has just retired it
            target.rename(away)
            retired.append(away)
    _settle_folder(target.parent)
    for away in retired:
        with suppress(FileNotFoundError):  # another process has recovered it
            away.rename(away.with_suffix(""))
        remove(away.with_suffix(""))


def _placed(partial: Path, target: Path) -> bool:
    """Whether a folder could take its place; not where something is."""
    if os.path.lexists(target):
        return False
    try:
        partial.rename(target)
    except (FileExistsError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _settle(path: Path) -> None:
    """Have a file, or a folder with all in it, written to the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in path.iterdir():
            _settle(entry)
        _settle_folder(path)
    elif path.is_file():
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _settle_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where its file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _disk_full(target: Path) -> Generator[None]:
    try:
        yield
    except Exception as error:  # safetensors and torch wrap the OS error in classes of their own
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            raise DiskFullError(
                errno.ENOSPC,
                f"{target} needs more room than its disk has left, so nothing was written; free some space",
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
