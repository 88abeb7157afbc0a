"""Arguments of a function from plain data, typed and built by jsonargparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

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
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, skip=set(skip), fail_untyped=True)
    try:
        built = parser.instantiate_classes(parser.parse_object(dict(arguments)))
    except ArgumentError as error:
        raise UsageError(explain(error)) from error
    return dict(built)
