"""Sentences about what fails outside of smalti: disks, memory, and processes that end by themselves."""

from __future__ import annotations

import errno
import os
import re
import traceback
from contextlib import suppress
from pathlib import Path
from signal import Signals

from ..data.files import DiskFullError
from ..data.weight_files import refusal

#: What helps against errors of the system.
_REMEDIES = {
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
    errno.EROFS: "choose another place",
    errno.EIO: "the disk, or the way to it, fails; check it and repeat the command",
    errno.ESTALE: "the way to the disk was lost; mount it again and repeat the command",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.EMFILE: "too many files are open at a time; use fewer workers, or raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; use fewer workers",
    errno.EDQUOT: "the quota is used up; free some space and repeat the command",
    errno.EFBIG: "the file system takes no file of that size; choose another place",
}

_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal|exited unexpectedly)")
_CAUGHT = re.compile(r"Caught (\w+) in .*\.\nOriginal Traceback")
_ERRNO = re.compile(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?", re.DOTALL)
_ALLOCATION = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


def outside(error: Exception) -> str | None:
    """One sentence for an error that the machine made; None for another one."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return _system(error)
    if _lost_worker(error):
        number = _signal(error)
        how = f"was ended by {Signals(number).name}" if number else "ended by itself"
        return (
            f"the processes that read the data must live as long as the command, got one that {how}, as happens where "
            "memory is short; use fewer workers or free memory, and repeat the command: what was saved is whole"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _ALLOCATION.search(str(error))):
        told = " ".join(str(error).split()) or type(error).__name__
        return f"the memory must hold the model and a batch, got too little ({told[:160]}); use a smaller batch"
    return _named(error)


def unwrapped(error: Exception) -> Exception:
    """The error as it was raised in a process that reads data, without the account of where it was."""
    text = str(error)
    if not (found := _CAUGHT.match(text)):
        return error
    told = re.split(rf"^(?:\w+\.)*{found[1]}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, OSError) and (parts := _ERRNO.fullmatch(told)):
        return OSError(int(parts[1]), parts[2], parts[3])
    try:
        return type(error)(told)
    except TypeError:
        return error


def _system(error: OSError) -> str:
    full = error.errno == errno.ENOSPC
    if full and not isinstance(error, DiskFullError):
        place = "" if error.filename is None else f" of {error.filename}"
        return f"the disk{place} must have room to write to, got a full one; free some space and try again"
    text = error.strerror or os.strerror(error.errno or 0)
    if error.filename is not None:
        text = f"{text}: {os.fsdecode(error.filename)}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{text}; {remedy}" if remedy else text


def _lost_worker(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return _WORKER.search(str(error)) is not None
    return isinstance(error, ConnectionError | EOFError) and _raised_in(error, "dataloader.py")


def _signal(error: Exception) -> int:
    """What ended a process that reads data, by the loader that the error came through; 0 for no signal."""
    codes = list[int]()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for worker in getattr(frame.f_locals.get("self"), "_workers", ()):
            with suppress(RuntimeError):  # torch says once more that one has ended
                worker.join(1)
            codes.append(worker.exitcode or 0)
    return -min([*codes, 0])


def _raised_in(error: Exception, *names: str) -> bool:
    """Whether an error came through a file or package of one of these names."""
    parts = (Path(frame.f_code.co_filename).parts for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name in path for path in parts for name in names)


def _named(error: Exception) -> str | None:
    """Of errors whose classes are not worth an import."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, RecursionError) and _raised_in(error, "json", "yaml"):
        return (
            "a file must hold a few levels of lists and mappings, got far too many inside each other; correct the file"
        )
    if name == "UnpicklingError":
        return refusal(error)
    if isinstance(error, OSError) and "huggingface.co" in text:  # what no folder is named like is looked for there
        return text
    if name == "SafetensorError":
        return f"a file of weights cannot be read or written ({text}); check the disk, or fetch it again"
    if name in ("BrokenProcessPool", "ProcessExitedException"):
        return (
            f"the processes of a command must live as long as it, got one that ended ({text.rstrip('.')}); free memory "
            "and repeat the command: what was saved is whole"
        )
    return None
