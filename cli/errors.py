"""What a failed command says: one line, an exit code, and a traceback for those who ask."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress

from .outside import outside, unwrapped

#: Exit codes: the command was wrong, Ctrl-C ended it (128 + SIGINT), or nobody reads its answer (128 + SIGPIPE).
WRONG, INTERRUPTED, UNREAD = 2, 130, 141


class InterruptedRunError(Exception):
    """Ctrl-C ended a run that can go on; the message says how."""


class UsageError(ValueError):
    """The command line or a configuration is wrong."""


@contextmanager
def one_line(debug: bool = False) -> Generator[None]:
    """Turn errors that a user can mend into one line on standard error and an exit code.

    Wrong values, missing files, optional packages that are missing, and what the machine does (a failing disk, too
    little memory, a process that ends by itself) exit with 2, an interruption with 130, and a reader of the output
    that has gone with 141. Anything else is a defect and keeps its traceback, as does everything under ``debug`` or
    with ``SMALTI_DEBUG=1`` in the environment.

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
        told = unwrapped(error)
        sentence = outside(told) or (_sentence(told) if _mendable(told) else None)
        if sentence is None and isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            sys.exit(UNREAD)
        if sentence is None:
            raise
        if debug or os.environ.get("SMALTI_DEBUG") == "1":
            traceback.print_exc()
        _exit(f"error: {sentence}", WRONG)


def _mendable(error: Exception) -> bool:
    if isinstance(error, ImportError):
        # Python itself names the module that it could not import: a defect, unlike a package that code here asks for.
        return type(error) is ImportError and error.name is None
    # ArgumentError is jsonargparse's and argparse's, DivergedError training's; neither is worth an import here.
    named = {"ArgumentError", "DivergedError", "MisconfigurationException"}
    kinds = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, (*kinds, PermissionError)) or type(error).__name__ in named


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _exit(line: str, code: int) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.write(" ".join(line.split()) + "\n")
    sys.exit(code)
