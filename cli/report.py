"""``smalti report``: results, their protocols, pictures and verdicts on one page that opens from the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from .compare import named
from .errors import UsageError
from .outputs import file_target, say

#: One process reads results; see `run_chosen`.
SHARES_WORK = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti report``."""
    told = (
        "results (.json), verdicts on pictures (.jsonl of smalti eval geneval), pictures (.png); or folders of results"
    )
    parser.add_argument("result", nargs="+", help=told)
    parser.add_argument("--out", default="report.html", metavar="HTML", help="the page (default: report.html)")
    parser.add_argument("--title", default="Results", help="of the page (default: Results)")


def run(args: argparse.Namespace) -> int:
    """Write the page. It holds everything it shows, fetches nothing and runs no script.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that is none of these, or a folder without results.
        UsageError: the same file twice, or an output that cannot be written.
    """
    out = file_target(args.out, "--out", ".html")
    paths = named([str(file) for given in args.result for file in _files(Path(given))])

    from ..eval.report import write_report
    from ..eval.result_report import read_evidence, result_report

    found = read_evidence(paths)
    write_report(out, result_report(args.title, found))
    judged = sum(map(len, found.judged.values()))
    said = f"{len(found.results)} results" + (f", {judged} pictures with verdicts" if judged else "")
    say(f"wrote {out}: {said}, {out.stat().st_size / 2**20:.1f} MB")
    return 0


def _files(path: Path) -> list[Path]:
    """The file, or the results in a folder."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.glob("*.json") if file.is_file())
    found = sorted(file for file in files if '"protocol"' in file.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise UsageError(f"{path} must hold result files (.json with scores and a protocol), got none; name the files")
    return found
