"""One line and an exit code for what a user can mend, a traceback for the rest."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from smalti.cli.errors import InterruptedRunError, one_line
from smalti.data.decoding import BrokenImageError
from smalti.data.files import DiskFullError, atomic_file
from smalti.training.guard import DivergedError

FULL = "the disk{} must have room to write to, got a full one; free some space and try again"
REPEAT = "repeat the command: what was saved is whole"
LOST = (
    "error: the processes that read the data must live as long as the command, got one that {}, as happens where "
    f"memory is short; use fewer workers or free memory, and {REPEAT}"
)
DAMAGED = (
    "a file of weights cannot be read or written (Error while deserializing header); check the disk, or fetch it again"
)
PICKLE = (
    "a file of weights must hold tensors and plain values, got a pickle that asks for a.b, which can run any code; "
    "convert it to safetensors where you trust it"
)
MEMORY = (
    "the memory must hold the model and a batch, got too little (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0)"
)


def system(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([name] if name else []))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("size must be 8,\n  got 7"), 2, "error: size must be 8, got 7\n"),
        (TypeError("images must be float"), 2, "error: images must be float\n"),
        (FileNotFoundError("no tokenizer in x; train it"), 2, "error: no tokenizer in x; train it\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), 2, "error: No such file: a.yaml\n"),
        (DiskFullError(errno.ENOSPC, "a.ckpt needs room"), 2, "error: a.ckpt needs room\n"),
        (system(errno.ENOSPC), 2, f"error: {FULL.format('')}\n"),
        (system(errno.ENOSPC, "a.csv"), 2, f"error: {FULL.format(' of a.csv')}\n"),
        (
            system(errno.EIO, "a.tar"),
            2,
            "error: Input/output error: a.tar; the disk, or the way to it, fails; check it and repeat the command\n",
        ),
        (
            system(errno.EACCES, "a"),
            2,
            "error: Permission denied: a; allow it, or choose another place\n",
        ),
        (system(errno.EBUSY, "a"), 2, "error: Device or resource busy: a\n"),
        (DivergedError("training was not finite"), 2, "error: training was not finite\n"),
        (ImportError("LoRA needs peft;\n  pip install it"), 2, "error: LoRA needs peft; pip install it\n"),
        (
            OSError("We couldn't connect to 'https://huggingface.co'\nto load the files"),
            2,
            "error: We couldn't connect to 'https://huggingface.co' to load the files\n",
        ),
        (
            SafetensorError("Error while deserializing header"),
            2,
            f"error: {DAMAGED}\n",
        ),
        (
            UnpicklingError("Weights only load failed.\nUnsupported global: GLOBAL a.b was not an allowed global"),
            2,
            f"error: {PICKLE}\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0"),
            2,
            f"error: {MEMORY}; use a smaller batch\n",
        ),
        (InterruptedRunError("interrupted at step 3"), 130, "interrupted at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit, match=rf"^{code}$"), one_line():
        raise error
    assert capsys.readouterr().err == line


@pytest.fixture
def told(capsys):
    """Do something that fails outside; returns the one line about it."""

    def run(work) -> str:
        with pytest.raises(SystemExit, match=r"^2$"), one_line():
            work()
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed.strip()

    return run


@pytest.mark.parametrize(
    "work", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: np.empty(1 << 57), lambda: bytearray(1 << 62)]
)
def test_memory_that_there_is_not(work, told):
    assert told(work).startswith("error: the memory must hold the model and a batch, got too little (")


def test_files_that_the_system_refuses(tmp_path, told):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    circle = f"error: Too many levels of symbolic links: {tmp_path}/a; its links lead in a circle; mend them"
    assert told((tmp_path / "a").read_bytes) == circle
    assert told((tmp_path / ("x" * 300)).read_bytes).endswith("x; shorten the name")


def test_a_folder_where_no_file_can_be_made(told):
    def write() -> None:
        with atomic_file("/proc/nothing/file.json"):
            pass

    assert told(write).startswith("error: No such file or directory: /proc/nothing")


class Reading(Dataset):
    """Four items, of which the third fails."""

    def __init__(self, fail) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return self.fail() if index == 2 else torch.zeros(1)


def broken() -> None:
    raise BrokenImageError("expected a readable picture, got 'x.png' (no picture: bad header);\nleave it out")


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (lambda: os.kill(os.getpid(), 9), LOST.format("was ended by SIGKILL")),
        (lambda: os._exit(3), LOST.format("ended by itself")),
        (broken, "error: expected a readable picture, got 'x.png' (no picture: bad header); leave it out"),
    ],
)
def test_processes_that_read_data(fail, line, told):
    def read() -> None:
        for _ in DataLoader(Reading(fail), num_workers=1):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda about: None)  # torch's loader complains once more when it goes
        assert told(read) == line
        gc.collect()


def wrapped(error: Exception) -> ExceptionWrapper:
    """As the loader brings an error from the process where it was raised."""
    try:
        raise error
    except (OSError, KeyError):
        return ExceptionWrapper(where="in DataLoader worker process 0")


def test_errors_of_the_system_in_processes_that_read_data(told):
    line = told(wrapped(system(errno.EIO, "/pictures/x.png")).reraise)
    assert line.startswith("error: Input/output error: /pictures/x.png; the disk, or the way to it, fails;")


def test_defects_in_processes_that_read_data_keep_their_traceback():
    with pytest.raises(KeyError, match="Original Traceback"), one_line():
        wrapped(KeyError("inner")).reraise()


def test_a_process_of_a_pool_that_ends(told):
    def work() -> None:
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            pool.submit(os._exit, 3).result()

    line = told(work)
    assert line.startswith("error: the processes of a command must live as long as it, got one that ended (")
    assert line.endswith(REPEAT)


def test_an_answer_that_nobody_reads_ends_quietly():
    code = (
        "import sys\nfrom smalti.cli.errors import one_line\n"
        "with one_line():\n    for _ in range(100_000): sys.stdout.write('a line of an answer\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_defects_keep_their_traceback():
    with pytest.raises(KeyError, match="inner"), one_line():
        raise KeyError("inner")
    with pytest.raises(OSError, match="cannot write mode F"), one_line():
        raise OSError("cannot write mode F")
    with pytest.raises(RuntimeError, match="shapes"), one_line():
        raise RuntimeError("shapes do not match")
    with pytest.raises(ConnectionResetError, match="peer"), one_line():
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
    with pytest.raises(ModuleNotFoundError, match=r"smalti\.nothing"), one_line():
        import_module("smalti.nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"), one_line():
        exec("from smalti.cli.errors import nothing")
    with pytest.raises(ModuleNotFoundError, match="by hand"), one_line():
        raise ModuleNotFoundError("by hand")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"^2$"), one_line(debug=True):
        raise ValueError("wrong")
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SMALTI_DEBUG", "1")
    with pytest.raises(SystemExit, match=r"^2$"), one_line():
        raise ValueError("wrong")
    assert "Traceback" in capsys.readouterr().err
