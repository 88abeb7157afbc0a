"""Several processes behind one command: one of them speaks, and an error of any ends all with one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WRONG, UsageError

if TYPE_CHECKING:
    from ..data.processes import Processes


@contextmanager
def together(program: str, shares: bool) -> Generator[Processes]:
    """The processes that a launcher started; all but the first are silent.

    Args:
        program: that of the command, for the message.
        shares: whether its work can be shared.

    Raises:
        UsageError: several processes for work that one does, in the first of them.
        SystemExit: another process failed, and says so.
        ValueError: processes that do not find each other, or one that was killed.
    """
    from ..data.processes import OtherProcessError, joined, world_size

    world = world_size()
    if world > 1 and not shares:
        if os.environ.get("RANK", "0") != "0":
            sys.exit(WRONG)
        raise UsageError(f"{program} is the work of one process, got WORLD_SIZE {world}; start it without a launcher")
    try:
        with joined() as processes, ExitStack() as stack:
            if not processes.first:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield processes
    except OtherProcessError:
        sys.exit(WRONG)
