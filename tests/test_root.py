"""The public face: names are found on first use, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import smalti


@pytest.mark.parametrize("name", smalti.__all__)
def test_every_public_name_resolves(name):
    assert getattr(smalti, name).__name__ == name
    assert name in dir(smalti)


def test_public_names_are_sorted_and_distinct():
    assert smalti.__all__ == sorted(set(smalti.__all__))


def test_unknown_names_are_an_error():
    with pytest.raises(AttributeError, match=r"module 'smalti' has no attribute 'Tokeniser'; public names are .*Codes"):
        _ = smalti.Tokeniser


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    command = [sys.executable, "-X", "importtime", "-c", "import smalti"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "smalti" in imported
    heavy = {"torch", "transformers", "diffusers", "lightning", "datasets", "numpy", "sentencepiece"}
    assert {name for name in imported if name.split(".")[0] in heavy} == set()
