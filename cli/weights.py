"""``smalti import``: a checkpoint of another project as a folder of a tokenizer or language model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..bridge.names import FORMAT_NAMES
from ..data.places import check_model_place
from .arguments import number
from .errors import UsageError
from .models import load_tokenizer, quiet, tokenizer_folder
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
    parser.add_argument(
        "--grid",
        type=number(int, least=1),
        metavar="N",
        help="of a language model: it writes N x N codes; 16 by default, 24 at 384 px",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="of a language model: folder of the tokenizer that makes its codes"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Map the weights key by key, save them with their licence, and show it.

    Raises:
        FileNotFoundError: no checkpoint or configuration.
        UsageError: a configuration that is no JSON object.
        ValueError: an unknown format or field, weights that do not match, or a folder of something else; nothing is
            written then.
    """
    check_model_place(args.out, "--out")
    config = _config(args.config) if args.config else {}
    config |= {} if args.grid is None else {"grid": args.grid}
    partner = None if args.tokenizer is None else load_tokenizer(tokenizer_folder(args.tokenizer), "cpu")
    quiet()

    from ..bridge.formats import FORMATS, import_checkpoint
    from ..tokenizers.base import VisualTokenizer

    made = import_checkpoint(args.format, args.checkpoint, args.out, config, partner)
    weights, about = sum(weight.numel() for weight in made.parameters()), FORMATS[args.format]
    known = made.fingerprint() if isinstance(made, VisualTokenizer) else _codes(made.config.tokenizer_fingerprint)
    say(f"wrote {args.out}: {type(made).__name__} of {weights / 1e6:.2f} M weights, {known}")
    say(f"weights of {about.project}, licence: {about.licence}")
    return 0


def _codes(fingerprint: str) -> str:
    return f"for codes of {fingerprint}" if fingerprint else "for codes of a tokenizer not named; see --tokenizer"


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
