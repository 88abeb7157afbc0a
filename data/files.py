"""Files and folders that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class DiskFullError(OSError):
    """The device has no room left; nothing was replaced."""


@contextmanager
def atomic_file(path: str | Path) -> Generator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Raises:
        DiskFullError: no space left; the old file, if any, is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        with _disk_full(target):
            yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """Yield a folder beside ``path`` to fill; it takes the place of ``path`` when the block ends well.

    Raises:
        DiskFullError: no space left; the old folder, if any, is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _disk_full(target):
            yield partial
        partial.chmod(0o777 & ~_umask())
        _replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    retired = partial.with_name(partial.name + ".old")
    target.rename(retired)
    partial.rename(target)
    shutil.rmtree(retired)


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
