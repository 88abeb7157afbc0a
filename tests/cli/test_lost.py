"""What the others say of a process that has gone; that a real one does is tried in `test_fit.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from smalti.cli import lost as lost_module
from smalti.cli.lost import lost, watching


@pytest.mark.parametrize(
    "said",
    [
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242",
        "Read error [127.0.0.1]:4242: Connection reset by peer",
        "writev [127.0.0.1]:4242: Broken pipe",
        "Timed out waiting 1800000ms for recv operation to complete",
        "NCCL error: remote process exited or there was a network error",
        "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ],
)
def test_errors_of_a_connection_are_known(said):
    assert lost(RuntimeError(said))
    assert not lost(ValueError(said))


def test_other_errors_are_not():
    assert not lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not lost(RuntimeError("Expected to have finished reduction in the prior iteration"))


def watched() -> None:
    """Waits for ever, beside one process that fails and one that waits too."""
    lost_module._GRACE = 0.0
    started = [subprocess.Popen([sys.executable, "-c", code]) for code in ("exit(3)", "import time; time.sleep(60)")]
    sys.stdout.write(f"{started[1].pid}\n")
    sys.stdout.flush()
    with watching(lambda: "another process of this run ended"):
        _ChildProcessObserver(os.getpid(), started, sleep_period=1).start()
        time.sleep(60)


def test_a_process_that_does_not_notice_is_ended_with_a_line(capfd):
    child = os.fork()
    if not child:
        watched()
        os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    told = capfd.readouterr()
    assert told.err == "error: another process of this run ended\n"
    state = Path(f"/proc/{int(told.out)}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_observer_is_as_before_afterwards():
    before = _ChildProcessObserver._terminate_all
    with watching(str):
        assert _ChildProcessObserver._terminate_all is not before
    assert _ChildProcessObserver._terminate_all is before
