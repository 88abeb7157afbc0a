"""What a failed command says: one line, an exit code, and a traceback for those who ask."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager

from ..data.files import DiskFullError

#: Exit codes: the command was wrong, or Ctrl-C ended it (128 + SIGINT).
WRONG, INTERRUPTED = 2, 130


class InterruptedRunError(Exception):
    """Ctrl-C ended a run that can go on; the message says how."""


class UsageError(ValueError):
    """The command line or a configuration is wrong."""


@contextmanager
def one_line(debug: bool = False) -> Generator[None]:
    """Turn errors that a user can mend into one line on standard error and an exit code.

    Wrong values, missing files and optional packages that are missing exit with 2, an interruption with 130. Anything
    else is a defect and keeps its traceback, as does everything under ``debug`` or with ``SMALTI_DEBUG=1`` in the
    environment.

    Raises:
        SystemExit: in place of the error.
    """
    try:
        yield
    except InterruptedRunError as error:
        _exit(str(error), INTERRUPTED)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)
    except Exception as error:
        if not _mendable(error):
            raise
        if debug or os.environ.get("SMALTI_DEBUG") == "1":
            traceback.print_exc()
        _exit(f"error: {_sentence(error)}", WRONG)


def _mendable(error: Exception) -> bool:
    if isinstance(error, OSError):
        kinds = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
        return isinstance(error, (DiskFullError, *kinds)) or error.errno == errno.ENOSPC
    if isinstance(error, ImportError):
        # Python itself names the module that it could not import: a defect, unlike a package that code here asks for.
        return type(error) is ImportError and error.name is None
    # ArgumentError is jsonargparse's and argparse's, DivergedError training's; neither is worth an import here.
    named = {"ArgumentError", "DivergedError", "MisconfigurationException"}
    return isinstance(error, (ValueError, TypeError)) or type(error).__name__ in named


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not isinstance(error, DiskFullError):
        place = "" if error.filename is None else f" of {error.filename}"
        return f"the disk{place} must have room to write to, got a full one; free some space and try again"
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or text
        if error.filename is not None:
            text = f"{text}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def _exit(line: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(line + "\n")
    sys.exit(code)
