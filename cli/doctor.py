"""``smalti doctor``: what is wrong with a run or a tokenizer, and what is known to help."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_device, number
from .errors import UsageError
from .outputs import file_target, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..eval.findings import Finding
    from ..eval.reference_curves import ReferenceCurves
    from ..eval.run_logs import RunLog
    from ..tokenizers.base import VisualTokenizer


_WELL = "nothing wrong found"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti doctor``."""
    told = "folder of a run, of one of its stages, of a tokenizer or of a model; several for --record"
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help=told)
    parser.add_argument(
        "--pictures", metavar="PATH", help="pictures that a tokenizer is tried on (default: the embedded world)"
    )
    parser.add_argument("--count", type=number(least=1), default=64, help="pictures tried at most (default: 64)")
    told = "compare the curves with those of healthy runs: reference (what comes with smalti), a file, or a folder"
    parser.add_argument("--against", metavar="WHAT", help=told)
    told = "draw the curves over those of --against: an .html or a .png (default: none)"
    parser.add_argument("--out", metavar="FILE", help=told)
    parser.add_argument("--record", metavar="FILE", help="write the curves of healthy runs to a .json, for --against")
    parser.add_argument(
        "--command", metavar="TEXT", dest="how", help="that repeats the runs of --record; is written down"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Examine every training log and every tokenizer below a folder; 1 if a problem was found, else 0.

    With ``--record`` nothing is examined.

    Raises:
        FileNotFoundError: no such folder, or no such reference.
        UsageError: a folder without logs and without a tokenizer, options that do not go together, or an output that
            cannot be written.
        ValueError: a damaged log or tokenizer, or another kind of file as the reference.
    """
    _check(args)
    for folder in map(Path, args.folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"a run or a model was expected in {folder}, which is no folder; check the path")
    if args.record:
        return _record(args)
    folder = Path(args.folders[0])
    logs, tokenizers = _logs(folder), _tokenizers(folder)
    if not logs and not tokenizers:
        raise UsageError(f"{folder} must hold training logs (metrics.csv) or a tokenizer, got neither; check the path")
    pairs, problems = _pairs(folder, args) if args.against else [], 0
    for name, fine, findings in chain(_examined(folder, logs, tokenizers, args), _compared(folder, pairs, args)):
        say(f"{name}: {fine}".rstrip())
        for finding in findings:
            say(f"  {finding.kind}: {finding.where}: {finding.what}")
            if finding.remedy:
                say(f"    try: {finding.remedy}")
            problems += finding.kind == "problem"
    return 1 if problems else 0


def _check(args: argparse.Namespace) -> None:
    """Raise where options do not go together."""
    if args.record and (args.against or args.out):
        raise UsageError("--record writes a reference and --against reads one, got both; run them apart")
    if args.record and not args.how:
        raise UsageError("--record needs the command that repeats the runs, got none; pass --command TEXT")
    if args.out and not args.against:
        raise UsageError("--out draws the curves over those of --against, got none; pass --against reference")
    if len(args.folders) > 1 and not args.record:
        raise UsageError(f"one folder is examined at a time, got {len(args.folders)}; several are for --record")
    if args.out:
        suffix = Path(args.out).suffix.lower()
        file_target(args.out, "--out", suffix if suffix == ".html" else ".png", " or .html")


def _record(args: argparse.Namespace) -> int:
    """Write the curves of runs as a reference."""
    from ..eval.reference_curves import ReferenceCurves
    from ..eval.run_logs import find_runs

    out = file_target(args.record, "--record", ".json")
    runs = [found for folder in args.folders for found in find_runs(Path(folder))]
    if not runs:
        raise UsageError(f"{', '.join(args.folders)} must hold training logs (metrics.csv), got none; check the path")
    reference = ReferenceCurves.record(runs, out.stem, args.how, _today())
    reference.save(out)
    say(f"wrote {out}: {len(reference.curves)} curves of {reference.runs} runs")
    return 0


def _examined(
    folder: Path, logs: list[Path], tokenizers: list[Path], args: argparse.Namespace
) -> Iterator[tuple[str, str, list[Finding]]]:
    """Every log and tokenizer by name, what to say where nothing was found, and what was."""
    from ..eval.doctor import examine_curves, examine_tokenizer
    from ..eval.plots import read_curves
    from ..eval.run_logs import run_settings
    from .models import load_tokenizer

    for file in logs:
        found = examine_curves(read_curves(file), run_settings(file.parent / "config.yaml")[0])
        yield f"log {file.parent.relative_to(folder)}", "" if found else _WELL, found
    for place in tokenizers:
        tokenizer, name = load_tokenizer(place, args.device), place.relative_to(folder)
        found = examine_tokenizer(tokenizer, _pictures(tokenizer, args.pictures, args.count))
        yield f"tokenizer {name}", "" if found else _WELL, found


def _pairs(folder: Path, args: argparse.Namespace) -> list[tuple[RunLog, ReferenceCurves]]:
    """Every run that has the curves of its reference, and that."""
    from ..eval.run_logs import find_runs

    pairs = [(run, _reference(args.against, run)) for run in find_runs(folder)]
    suited = [(run, reference) for run, reference in pairs if reference.suits(run)]
    if not suited:
        raise UsageError(f"no log in {folder} has the curves of --against {args.against}; name another run")
    if args.out and len(suited) > 1:
        raise UsageError(f"--out draws one run, got {len(suited)} in {folder}; name the folder of one")
    return suited


def _compared(
    folder: Path, pairs: list[tuple[RunLog, ReferenceCurves]], args: argparse.Namespace
) -> Iterator[tuple[str, str, list[Finding]]]:
    """Every run against its reference, as `_examined`; says which reference that is."""
    from ..eval.overlay import write_overlay
    from ..eval.reference_curves import compare_curves

    for run, reference in pairs:
        same, of = reference.fit(run.settings)
        about = f"{same} of {of} settings are those of this run" if run.settings else "settings of this run are unknown"
        say(f"reference {reference.recipe}: {reference.runs} runs of {reference.command} ({reference.date}); {about}")
        found = compare_curves(run, reference)
        well = not any(finding.kind == "problem" for finding in found)
        yield f"run {run.folder.relative_to(folder)}", "within the reference" if well else "", found
        if args.out:
            write_overlay(Path(args.out), run, reference, found)
            say(f"wrote {args.out}")


def _reference(given: str, run: RunLog) -> ReferenceCurves:
    """What ``--against`` names: the shipped reference most like a run, a file, or the runs of a folder."""
    from ..eval.reference_curves import ReferenceCurves, choose_reference, shipped_references
    from ..eval.run_logs import find_runs

    if given == "reference":
        return choose_reference(shipped_references(), run.settings)
    if not Path(given).is_dir():
        return ReferenceCurves.load(given)
    return ReferenceCurves.record(find_runs(Path(given)), Path(given).name, "a folder", _today())


def _today() -> str:
    return datetime.now(tz=UTC).date().isoformat()


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("metrics.csv"))


def _tokenizers(folder: Path) -> list[Path]:
    """Folders of tokenizers, at any depth; a model's own counts once."""
    from ..tokenizers.base import VisualTokenizer

    return sorted(file.parent for file in folder.rglob(VisualTokenizer.config_name) if _is_tokenizer(file))


def _is_tokenizer(file: Path) -> bool:
    return (file.parent / "diffusion_pytorch_model.safetensors").is_file() and "Tokenizer" in file.read_text()


def _pictures(tokenizer: VisualTokenizer, path: str | None, count: int) -> Tensor:
    import torch

    from ..data.scenes import Scenes
    from ..data.transforms import Crop, to_tensor
    from .pictures import find_pictures, load_pictures

    crop = Crop(tokenizer.image_size)
    if path is None:
        scenes = Scenes("full", "validation", count)
        return torch.stack([to_tensor(crop(scenes.picture(index))) for index in range(count)])
    batches = load_pictures(find_pictures([path])[:count], crop, count)
    return torch.cat([batch.images for batch in batches])
