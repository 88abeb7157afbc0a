"""A process that imports smalti once and runs commands in forked children, which it kills when it is told to.

One line of JSON comes in for every command (``argv``, ``cwd``, and ``after``, the seconds until SIGKILL, or null), one
goes out (``code``, null for a killed one, and ``seconds``). It computes nothing itself: a fork copies no thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from smalti.cli import encode, eval_reconstruction, eval_scenes, fit, main, run, sample, tokenize
from smalti.generation import pipeline

torch.set_num_threads(1)
MODULES = (encode, eval_reconstruction, eval_scenes, fit, run, sample, tokenize, pipeline)  # imported before the forks


def child(argv: list[str], cwd: str) -> None:
    """Run a command, its output in a file, and end."""
    os.setsid()
    os.chdir(cwd)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    code = 70
    try:
        code = main.main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def carry_out(argv: list[str], cwd: str, after: float | None) -> dict[str, float | int | None]:
    """Run a command to its end, or to its death."""
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(argv, cwd)
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - begun
        if found:
            code = os.waitstatus_to_exitcode(status)
            return {"code": None if code == -signal.SIGKILL else code, "seconds": seconds}
        if after is not None and seconds >= after:
            os.kill(pid, signal.SIGKILL)
            after = None
        time.sleep(0.002)


if __name__ == "__main__":
    fit.import_vocabulary()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        wanted = json.loads(line)
        Path(wanted["cwd"]).mkdir(parents=True, exist_ok=True)
        answers.write(json.dumps(carry_out(**wanted)) + "\n")
        answers.flush()
