"""``smalti import``: a checkpoint of another project as a tokenizer folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..bridge.names import FORMAT_NAMES
from .errors import UsageError
from .models import quiet
from .outputs import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti import``."""
    parser.add_argument("format", help=", ".join(FORMAT_NAMES))
    parser.add_argument(
        "checkpoint",
        nargs="+",
        help="the file of weights; all files where a release keeps parts, such as its image tower, apart",
    )
    parser.add_argument("--config", metavar="JSON", help="fields that differ from the released configuration")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the tokenizer to write")


def run(args: argparse.Namespace) -> int:
    """Map the weights key by key, save them with their licence, and show it.

    Raises:
        FileNotFoundError: no checkpoint or configuration.
        UsageError: a configuration that is no JSON object.
        ValueError: an unknown format or field, or weights that do not match; nothing is written then.
    """
    config = _config(args.config) if args.config else None
    quiet()

    from ..bridge.formats import FORMATS, import_checkpoint

    tokenizer = import_checkpoint(args.format, args.checkpoint, args.out, config)
    weights = sum(weight.numel() for weight in tokenizer.parameters())
    about = FORMATS[args.format]
    say(f"wrote {args.out}: {type(tokenizer).__name__} of {weights / 1e6:.2f} M weights, {tokenizer.fingerprint()}")
    say(f"weights of {about.project}, licence: {about.licence}")
    return 0


def _config(given: str) -> dict[str, Any]:
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"--config must name a JSON file, got {given}, which does not exist; check the path")
    try:
        read = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"--config must be a JSON object, got {given} ({error}); correct the file") from error
    if not isinstance(read, dict):
        raise UsageError(f"--config must be a JSON object, got a {type(read).__name__} in {given}; correct the file")
    return read
