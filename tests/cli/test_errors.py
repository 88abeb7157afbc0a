"""One line and an exit code for what a user can mend, a traceback for the rest."""

from __future__ import annotations

import errno
import os
from importlib import import_module

import pytest

from smalti.cli.errors import InterruptedRunError, one_line
from smalti.data.files import DiskFullError
from smalti.training.guard import DivergedError

FULL = "the disk{} must have room to write to, got a full one; free some space and try again"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("size must be 8,\n  got 7"), 2, "error: size must be 8, got 7\n"),
        (TypeError("images must be float"), 2, "error: images must be float\n"),
        (FileNotFoundError("no tokenizer in x; train it"), 2, "error: no tokenizer in x; train it\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), 2, "error: No such file: a.yaml\n"),
        (DiskFullError(errno.ENOSPC, "a.ckpt needs room"), 2, "error: a.ckpt needs room\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, f"error: {FULL.format('')}\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.csv"), 2, f"error: {FULL.format(' of a.csv')}\n"),
        (DivergedError("training was not finite"), 2, "error: training was not finite\n"),
        (ImportError("LoRA needs peft;\n  pip install it"), 2, "error: LoRA needs peft; pip install it\n"),
        (InterruptedRunError("interrupted at step 3"), 130, "interrupted at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit, match=rf"^{code}$"), one_line():
        raise error
    assert capsys.readouterr().err == line


def test_defects_keep_their_traceback():
    with pytest.raises(KeyError, match="inner"), one_line():
        raise KeyError("inner")
    with pytest.raises(OSError, match="bad disk"), one_line():
        raise OSError(errno.EIO, "bad disk")
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
