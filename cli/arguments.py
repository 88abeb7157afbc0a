"""Arguments that several commands share. Imports nothing heavy, so that a wrong one is told at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from .errors import UsageError


class Number(argparse.Action):
    """A finite number within bounds; anything else is one sentence in place of argparse's page of usage.

    Args:
        kind: ``int`` or ``float``.
        least: smallest value taken; None for no bound.
        most: largest value taken; None for no bound.
        options: argparse's.
    """

    def __init__(
        self, *, kind: type[int | float] = int, least: int | None = None, most: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.kind, self.least, self.most = kind, least, most

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Check and store the value.

        Raises:
            UsageError: no number, or one out of bounds.
        """
        value = self._parsed(str(values))
        if value is None:
            bounds = (
                f"at {end} {bound}" for end, bound in (("least", self.least), ("most", self.most)) if bound is not None
            )
            kind = "a whole number" if self.kind is int else "a finite number"
            wanted = ", ".join([kind, *bounds])
            raise UsageError(f"{option_string or self.dest} must be {wanted}, got {str(values)!r}")
        setattr(namespace, self.dest, value)

    def _parsed(self, text: str) -> float | None:
        try:
            value = self.kind(text)
        except ValueError:
            return None
        low = -math.inf if self.least is None else self.least
        high = math.inf if self.most is None else self.most
        return value if math.isfinite(value) and low <= value <= high else None


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
    parser.add_argument("--scale", action=Number, least=1, most=64, metavar="N", help=text)
