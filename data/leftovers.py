"""Names of unfinished files and folders, and what becomes of those whose process was killed.

A name says which target it is for, and which process of which host writes it: ``.{target}.{host}.{pid}.{random}``. Only
what belongs to a process of this host that is gone is ever removed.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

#: Ends the name of a whole folder that waits for its successor.
RETIRED = ".retired"

_LONGEST = 24  #: of a host's name, since file systems limit what a name can be


def prefix(target: Path) -> str:
    """How the names begin that this process gives to unfinished forms of a target."""
    return f".{target.name}.{_host()}.{os.getpid()}."


def clear(target: Path) -> None:
    """Remove what killed processes of this host left unfinished beside a target, and folders that it replaced.

    One that waits for its successor is moved to the name of an unfinished one before it is taken apart, so that what is
    called retired is always whole.
    """
    for left in _left(target):
        if left.suffix == RETIRED:
            if not os.path.lexists(target):
                continue
            with suppress(FileNotFoundError):
                left = left.replace(left.with_suffix(""))
        remove(left)


def remove(path: Path) -> None:
    """Take away a file or a folder with all in it; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def recovered(path: str | os.PathLike[str]) -> Path:
    """Put a folder back that was moved out of the way for a successor which never came; else do nothing.

    Args:
        path: of the folder; it need not exist.

    Returns:
        The path.
    """
    target = Path(path)
    if not target.name or os.path.lexists(target) or not target.parent.is_dir():
        return target
    pattern = re.compile(re.escape(f".{target.name}.") + r"[\w-]+\.\d+\.\w+" + re.escape(RETIRED))
    waiting = [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]
    with suppress(OSError):  # another process was faster, or the place is read-only
        newest = max(waiting, key=lambda entry: entry.lstat().st_ctime_ns, default=None)
        if newest is not None:
            newest.rename(target)
    return target


def _left(target: Path) -> Iterator[Path]:
    """Unfinished forms of a target whose process was of this host and is gone."""
    pattern = re.compile(re.escape(f".{target.name}.{_host()}.") + r"(\d+)\.\w+(\.[^.]+)?")
    for entry in list(target.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is not None and not _lives(int(match[1])):
            yield entry


@cache
def _host() -> str:
    """The host's name, and on Linux the number of the space that process ids are counted in: containers share names."""
    name = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())
    name = name if len(name) <= _LONGEST else sha256(name.encode()).hexdigest()[:_LONGEST]
    with suppress(OSError):
        return f"{name}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return name


def _lives(process: int) -> bool:
    if os.name != "posix":  # there signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
