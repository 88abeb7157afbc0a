"""Training by several processes of which one ends: the others say so in one line, in place of a traceback or nothing.

Where connections close with a process, the next exchange fails. Where they do not, as on GPUs, the others wait for it;
the process that started them then ends the run.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.strategies.launchers import subprocess_script

from .errors import WRONG

#: Seconds that the first process has to notice by itself, and to finish what it writes.
_GRACE = 15.0

#: What gloo, NCCL and the store of ``torch.distributed`` say of a process that has gone.
_GONE = re.compile(
    r"connection (?:was )?(?:likely )?(?:closed|reset|refused)|broken pipe|timed out|timeout|pair closure|"
    r"remote process exited|communicator was aborted|failed to recv",
    re.IGNORECASE,
)


def lost(error: Exception) -> bool:
    """Whether an error of a process that trains with others says that one of them has gone."""
    return isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None


@contextmanager
def watching(sentence: Callable[[], str]) -> Generator[None]:
    """End a run whose processes were started by this one when one of them fails and this one does not notice.

    Lightning kills them all within seconds, this one too, without a word.

    Args:
        sentence: what is then said of it on standard error.
    """

    def end(observer: Any) -> None:
        time.sleep(_GRACE)  # of a thread that ends with this process
        for process in observer._child_processes:
            process.kill()
        sys.stderr.write(f"error: {sentence()}\n")
        sys.stderr.flush()
        os._exit(WRONG)

    observer: Any = subprocess_script._ChildProcessObserver
    before, observer._terminate_all = observer._terminate_all, end
    try:
        yield
    finally:
        observer._terminate_all = before
