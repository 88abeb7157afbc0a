"""Arguments that several commands share. Imports nothing heavy, so that a wrong one is told at once."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn

from .errors import UsageError

_ARGUMENT = re.compile(r"argument (\S+): (.*)")
_CHOICE = re.compile(r"invalid choice: (.+) \(choose from (.+)\)")


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence with the nearest known option in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of printing and exiting."""
        if message.startswith("unrecognized arguments: "):
            raise UsageError(self._unknown(message.partition(": ")[2].split()[0].partition("=")[0]))
        if found := _ARGUMENT.fullmatch(message):
            message = f"{found[1]} {_CHOICE.sub(_known, found[2])}"
        raise UsageError(f"{message}; see {self.prog} --help")

    def _unknown(self, given: str) -> str:
        if not given.startswith("-"):
            return f"{self.prog} takes no further argument, got {given!r}; put text of several words in quotes"
        known = [option for option in self._option_string_actions if option.startswith("--")]
        near = get_close_matches(given, known, 1, 0.5)
        return f"{self.prog} has no option {given}; " + (
            f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        )


def _known(found: re.Match[str]) -> str:
    return f"must be one of {found[2].replace(chr(39), '')}, got {found[1]}"


def number(
    kind: type[int] | type[float] = int, *, least: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """A ``type`` for argparse: a finite number within bounds.

    Args:
        kind: ``int`` or ``float``.
        least: smallest value taken; None for no bound.
        most: largest value taken; None for no bound.
    """
    bounds = (f"at {end} {bound}" for end, bound in (("least", least), ("most", most)) if bound is not None)
    wanted = ", ".join(["a whole number" if kind is int else "a finite number", *bounds])

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        low, high = -math.inf if least is None else least, math.inf if most is None else most
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return parse


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare ``--model`` and ``--device``."""
    parser.add_argument("--model", metavar="DIR", help="folder of a text-to-image model (default: the built-in one)")
    add_device(parser)


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Declare ``--tokenizer`` and ``--device``."""
    text = "folder of a tokenizer, or of a model that has one (default: that of the built-in model)"
    parser.add_argument("--tokenizer", metavar="DIR", help=text)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare ``--device``."""
    parser.add_argument("--device", default="auto", help="auto (a GPU of CUDA, else the CPU), cpu, cuda, cuda:1, mps")


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Declare ``--scale``."""
    text = "enlarge every picture this many times by repeating pixels (default: 1, on a sheet what fits)"
    parser.add_argument("--scale", type=number(least=1, most=64), metavar="N", help=text)


def add_decoder(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare ``--decoder``, what turns codes into pixels; ``default`` says what does so otherwise."""
    told = (
        f"folder of a trained decoder that draws from the codes, or pixels for the tokenizer's own (default: {default})"
    )
    parser.add_argument("--decoder", metavar="DIR", help=told)
