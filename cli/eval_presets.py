"""``smalti eval presets``: the published protocols by name."""

from __future__ import annotations

import argparse

from .outputs import say

#: One process reads results; see `run_chosen`.
SHARES_WORK = False


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_args: argparse.Namespace) -> int:
    """Print a table of the presets."""
    from ..eval.presets import PRESETS, get_preset
    from ..eval.tables import Table, markdown

    rows = [[name, it.task, f"{it.count:,}", it.about] for name, it in ((name, get_preset(name)) for name in PRESETS)]
    say(markdown(Table(["preset", "task", "images", "what"], rows, frozenset({2}))))
    return 0
