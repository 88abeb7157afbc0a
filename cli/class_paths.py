"""Which packages a configuration may name classes of.

Naming a class imports its module, so a configuration of a stranger runs what it names. Only smalti and the libraries it
stands on may be named, and what the user trusts besides. Imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from .errors import UsageError

#: Packages whose classes every configuration may name.
PACKAGES = ("smalti", "torch", "lightning", "transformers", "diffusers")

#: The option that adds a package, and the variable that hands them on to processes that a command starts.
OPTION, VARIABLE = "--allow-classes", "SMALTI_ALLOW_CLASSES"

#: What was added before in this process, to be taken back.
_added: set[str] = set()


def take_packages(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without ``--allow-classes PACKAGE``, and the packages.

    Raises:
        UsageError: an option without a package.
    """
    rest, packages, given = list[str](), list[str](), iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            rest.append(argument)
        else:
            packages.append(value if equals else next(given, ""))
    _check(packages, OPTION)
    return rest, packages


@contextmanager
def allowing(packages: Sequence[str]) -> Generator[None]:
    """Allow more packages, here and in processes that are started inside."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ",".join([*allowed()[len(PACKAGES) :], *packages])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def allowed() -> list[str]:
    """The packages that may be named: :data:`PACKAGES` and those of the environment.

    Raises:
        UsageError: something in the environment that is no name of a package.
    """
    more = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    _check(more, VARIABLE)
    return [*PACKAGES, *more]


def limit_class_paths() -> None:
    """Have jsonargparse refuse, before it is imported, what is not in a package of :func:`allowed`.

    What only a value without a type would be made of stays the plain data that it is.
    """
    from jsonargparse import set_parsing_settings

    packages = allowed()
    set_parsing_settings(
        import_path_denylist=["*", *_added.difference(packages)],
        import_path_allowlist=packages,
        validate_subclass_spec_in_any=True,
        instantiate_subclass_spec_in_any=False,
    )
    _added.update(packages[len(PACKAGES) :])


def refusal(name: str) -> str:
    """The sentence about a class that may not be named."""
    *most, last = allowed()
    return (
        f"a configuration may name classes of {', '.join(most)} and {last}, got {name!r}; where you trust its code, "
        f"pass {OPTION} {name.partition('.')[0]}"
    )


def _check(packages: Sequence[str], what: str) -> None:
    for name in packages:
        # jsonargparse itself could be told to allow everything.
        if not all(part.isidentifier() for part in name.split(".")) or name.partition(".")[0] == "jsonargparse":
            raise UsageError(f"{what} must be the name of a package, got {name!r}; give the one that you trust")
