"""The command ``smalti``: a table of sub-commands, each in a module that is imported when it is chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from .arguments import Parser
from .errors import UsageError, one_line

#: Sub-commands: the module that runs each, and its line of help.
COMMANDS = {
    "sample": ("sample", "draw pictures for prompts"),
    "caption": ("caption", "describe pictures"),
    "ask": ("ask", "answer questions about a picture"),
    "encode": ("encode", "turn pictures into a file of codes"),
    "decode": ("decode", "turn a file of codes back into pictures"),
    "import": ("weights", "turn a checkpoint of another project into a folder of ours"),
    "export": ("export", "write a language model as a plain folder of transformers, for other engines"),
    "run": ("run", "carry out a recipe: every stage from data to report, resumable"),
    "bench": ("bench", "train tokenizers, or language models on them, alike and compare them in one table"),
    "eval": ("evaluate", "score reconstructions, pictures, answers or codes, each with its protocol"),
    "compare": ("compare", "put results side by side, if they were measured alike"),
    "report": ("report", "show results on one page that opens anywhere"),
    "doctor": ("doctor", "say what is wrong with a run or a tokenizer, and what helps"),
    "fit": ("fit", "train a tokenizer, a teacher, a language model or a decoder from a configuration"),
    "validate": ("fit", "measure a checkpoint on the validation data of a configuration"),
    "test": ("fit", "measure a checkpoint on the test data of a configuration"),
    "predict": ("fit", "run a checkpoint over the prediction data of a configuration"),
}

#: Modules whose sub-commands parse their own arguments, and the function that does, because those depend on what is
#: named first: a configuration, or what is scored.
_PARSES_ITSELF = {"fit": "run_lightning", "evaluate": "run_kind"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code.

    A module of :data:`COMMANDS` has ``add_arguments(parser)`` and ``run(args) -> int``, or a function of all arguments
    in :data:`_PARSES_ITSELF`.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: wrong arguments (2), an interruption (130), or after ``--help`` (0).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with one_line(debug):
        return _run(arguments)
    return 0


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name.startswith("-"):
        _parser().parse_args(arguments or ["--help"])
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(COMMANDS)}"
        raise UsageError(f"{name!r} is not a command; {hint}")
    module_name, summary = COMMANDS[name]
    module = import_module(f".{module_name}", __package__)
    if module_name in _PARSES_ITSELF:
        return int(getattr(module, _PARSES_ITSELF[module_name])(arguments))
    parser = Parser(f"smalti {name}", description=summary)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments[1:])))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    parser = Parser(
        "smalti",
        usage="smalti <command> [options]",
        description="Images to discrete visual tokens a language model can read and write, and back to pixels.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nsmalti <command> --help says more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"smalti {version('smalti')}")
    parser.add_argument("--debug", action="store_true", help="with any command: show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
