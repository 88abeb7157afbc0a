"""The command ``smalti``: a table of sub-commands, each in a module that is imported when it is chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from .class_paths import OPTION, allowing, take_packages
from .dispatch import chosen, overview, run_chosen
from .errors import one_line

#: Sub-commands: the module that runs each, and its line of help.
COMMANDS = {
    "sample": ("sample", "draw pictures for prompts"),
    "caption": ("caption", "describe pictures"),
    "ask": ("ask", "answer questions about a picture"),
    "encode": ("encode", "turn pictures into a file of codes"),
    "decode": ("decode", "turn a file of codes back into pictures"),
    "tokenize": ("tokenize", "turn a data set into a token store that language models are trained on"),
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

#: Modules whose sub-commands read configurations, which name classes.
_NAMES_CLASSES = ("fit", "run", "bench")


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
    module = chosen(COMMANDS, name, f"{name!r} is not a command")
    if COMMANDS[name][0] not in _NAMES_CLASSES:
        return _run_module(name, module, arguments)
    arguments, packages = take_packages(arguments)
    with allowing(packages):
        return _run_module(name, module, arguments)


def _run_module(name: str, module: ModuleType, arguments: list[str]) -> int:
    if itself := _PARSES_ITSELF.get(COMMANDS[name][0]):
        return int(getattr(module, itself)(arguments))
    return run_chosen(f"smalti {name}", COMMANDS, module, arguments[1:])


def _parser() -> argparse.ArgumentParser:
    text = "Images to discrete visual tokens a language model can read and write, and back to pixels."
    parser = overview("smalti", COMMANDS, text)
    parser.add_argument("--version", action="version", version=f"smalti {version('smalti')}")
    parser.add_argument("--debug", action="store_true", help="with any command: show the traceback of an error")
    told = "with fit, run and bench: also take classes of this package from a configuration; may be repeated"
    parser.add_argument(OPTION, metavar="PACKAGE", action="append", help=told)
    return parser


if __name__ == "__main__":
    sys.exit(main())
