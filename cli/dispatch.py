"""A table of commands, each in a module that is imported when it is chosen: ``smalti``, and ``smalti eval``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from .arguments import Parser
from .errors import UsageError
from .together import together

#: By name, the module of this package that runs it, and its line of help.
Commands = Mapping[str, tuple[str, str]]


def chosen(commands: Commands, name: str, unknown: str) -> ModuleType:
    """The module of a command.

    Args:
        commands: what there is.
        name: what was asked for.
        unknown: begins the sentence about a name that is not there.

    Raises:
        UsageError: an unknown name; the nearest known one is in the sentence.
    """
    if name not in commands:
        near = get_close_matches(name, commands, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(commands)}"
        raise UsageError(f"{unknown}; {hint}")
    return import_module(f".{commands[name][0]}", __package__)


def run_chosen(program: str, commands: Commands, module: ModuleType, arguments: list[str]) -> int:
    """Parse the arguments as ``module.add_arguments(parser)`` declares them, and return ``module.run(args)``.

    A module may say ``SHARES_WORK``: true, and ``args.processes`` are those that a launcher started; false, and several
    are refused.

    Args:
        program: that of the command, e.g. ``smalti eval tokens``.
        commands: what its last word stands in, for its line of help.
        module: from `chosen`.
        arguments: after the program's.

    Raises:
        UsageError: wrong arguments, or several processes for work that one does.
    """
    parser = Parser(program, description=commands[program.rpartition(" ")[2]][1])
    module.add_arguments(parser)
    shares: bool | None = getattr(module, "SHARES_WORK", None)
    if shares is None:
        return int(module.run(parser.parse_args(arguments)))
    with together(program, shares) as processes:
        return int(module.run(parser.parse_args(arguments, argparse.Namespace(processes=processes))))


def overview(program: str, commands: Commands, description: str, what: str = "command") -> argparse.ArgumentParser:
    """A parser whose help lists the commands."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in commands.items()]
    return Parser(
        program,
        usage=f"{program} <{what}> [options]",
        description=description,
        epilog=f"{what}s:\n" + "\n".join(lines) + f"\n\n{program} <{what}> --help says more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
