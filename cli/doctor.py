"""``smalti doctor``: what is wrong with a run or a tokenizer, and what is known to help."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_device, number
from .errors import UsageError
from .outputs import say

if TYPE_CHECKING:
    from torch import Tensor

    from ..eval.doctor import Finding
    from ..tokenizers.base import VisualTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti doctor``."""
    parser.add_argument("folder", help="folder of a run, of one of its stages, of a tokenizer or of a model")
    parser.add_argument(
        "--pictures", metavar="PATH", help="pictures that a tokenizer is tried on (default: the embedded world)"
    )
    parser.add_argument("--count", type=number(least=1), default=64, help="pictures tried at most (default: 64)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Examine every training log and every tokenizer below a folder; 1 if a problem was found, else 0.

    Raises:
        FileNotFoundError: no such folder.
        UsageError: a folder without logs and without a tokenizer.
        ValueError: a damaged log or tokenizer.
    """
    folder = Path(args.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"a run or a model was expected in {folder}, which is no folder; check the path")
    logs, tokenizers = _logs(folder), _tokenizers(folder)
    if not logs and not tokenizers:
        raise UsageError(f"{folder} must hold training logs (metrics.csv) or a tokenizer, got neither; check the path")
    problems = 0
    for name, findings in _examined(folder, logs, tokenizers, args):
        say(f"{name}: {'nothing wrong found' if not findings else ''}".rstrip())
        for finding in findings:
            say(f"  {finding.kind}: {finding.where}: {finding.what}")
            if finding.remedy:
                say(f"    try: {finding.remedy}")
            problems += finding.kind == "problem"
    return 1 if problems else 0


def _examined(
    folder: Path, logs: list[Path], tokenizers: list[Path], args: argparse.Namespace
) -> Iterator[tuple[str, list[Finding]]]:
    from ..eval.doctor import examine_curves, examine_tokenizer
    from ..eval.plots import read_curves
    from .models import load_tokenizer

    for file in logs:
        yield f"log {file.parent.relative_to(folder)}", examine_curves(read_curves(file))
    for place in tokenizers:
        tokenizer = load_tokenizer(place, args.device)
        name = "." if place == folder else place.relative_to(folder)
        yield f"tokenizer {name}", examine_tokenizer(tokenizer, _pictures(tokenizer, args.pictures, args.count))


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
