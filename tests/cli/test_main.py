"""The table of commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from smalti.cli.main import COMMANDS, main


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from smalti.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'diffusers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for name, (_, summary) in COMMANDS.items():
        assert name in found.stdout
        assert summary in found.stdout


def test_no_arguments_is_help(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fitt"], "error: 'fitt' is not a command; did you mean fit?"),
        (["zzz"], "error: 'zzz' is not a command; known are "),
    ],
)
def test_unknown_commands(arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(line)
