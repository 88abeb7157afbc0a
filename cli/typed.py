"""Arguments of a function from plain data, typed and built by jsonargparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from inspect import signature
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from .class_paths import limit_class_paths
from .diagnose import explain
from .errors import UsageError


def build_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], skip: set[str]) -> dict[str, Any]:
    """Check ``arguments`` against the signature of ``function`` and build the objects they describe.

    Args:
        function: a typed function; classes are named by ``class_path`` and ``init_args``.
        arguments: plain data.
        skip: parameters that are given elsewhere.

    Raises:
        UsageError: an unknown or missing argument, or one of another type; the nearest known name is in the sentence.
    """
    parser, parsed = _parsed(function, arguments, skip)
    try:
        return dict(parser.instantiate_classes(parsed))
    except ArgumentError as error:
        raise UsageError(explain(error, function)) from error


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], skip: set[str]) -> None:
    """Check ``arguments`` as :func:`build_arguments` does, and build nothing but dataclasses, which read no files."""
    _parsed(function, arguments, skip)
    plain = {name for name, hint in get_type_hints(function).items() if is_dataclass(hint) and name in arguments}
    given = {name: value for name, value in arguments.items() if name in plain}
    build_arguments(function, given, skip | (set(signature(function).parameters) - plain))


def _parsed(
    function: Callable[..., Any], arguments: Mapping[str, Any], skip: set[str]
) -> tuple[ArgumentParser, Namespace]:
    limit_class_paths()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, skip=set(skip), fail_untyped=True)
    try:
        return parser, parser.parse_object(dict(arguments))
    except ArgumentError as error:
        raise UsageError(explain(error, function)) from error
