"""``smalti compare``: results side by side, or the fields in which they were measured differently."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import UsageError
from .outputs import file_target, say

#: One process reads results; see `run_chosen`.
SHARES_WORK = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti compare``."""
    parser.add_argument("result", nargs="+", help="result files (JSON) of smalti eval, run or bench")
    told = "field of the protocol that may differ, e.g. versions or sampler.order; may be repeated"
    parser.add_argument("--ignore", action="append", default=[], metavar="FIELD", help=told)
    told = "score to show, or group of scores; may be repeated (default: all)"
    parser.add_argument("--scores", action="append", default=[], metavar="NAME", help=told)
    parser.add_argument("--out", metavar="MD", help="also write the table to a Markdown file")


def run(args: argparse.Namespace) -> int:
    """Print one table of all scores; refuse results of unlike protocols.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that is no result, or protocols that differ: the sentence names the fields.
        UsageError: one file only, or the same one twice.
    """
    from ..eval.protocol import read_result
    from ..eval.result_table import compare_results
    from ..eval.tables import markdown, write_markdown

    out = file_target(args.out, "--out", ".md") if args.out else None
    results = {name: read_result(path) for name, path in named(args.result).items()}
    table = compare_results(results, args.ignore, args.scores)
    say(markdown(table))
    if args.ignore:
        say(f"\nmeasured alike but for {', '.join(args.ignore)}")
    if out is not None:
        write_markdown(out, table)
        say(f"wrote {out}")
    return 0


def named(paths: list[str]) -> dict[str, Path]:
    """Files by the shortest ends of their paths that differ; names that say nothing (``scores``) are left out.

    Raises:
        UsageError: a file given twice.
    """
    files = [Path(path) for path in paths]
    if len({file.absolute() for file in files}) < len(files):
        twice = next(path for at, path in enumerate(files) if path.absolute() in {it.absolute() for it in files[:at]})
        raise UsageError(f"every result must be named once, got {twice} twice; name another file")
    names = [_telling(file.absolute().with_suffix("").parts) for file in files]
    for depth in range(1, max(map(len, names)) + 1):
        short = ["/".join(parts[-depth:]) for parts in names]
        if len(set(short)) == len(files):
            return dict(zip(short, files, strict=True))
    return {str(file): file for file in files}  # the same name with another ending


def _telling(parts: tuple[str, ...]) -> tuple[str, ...]:
    while len(parts) > 2 and parts[-1] in ("scores", "result"):
        parts = parts[:-1]
    return parts
