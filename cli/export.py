"""``smalti export``: a language model as a plain folder of ``transformers``, which other engines can serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data.places import check_model_place
from .models import quiet
from .outputs import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti export``."""
    parser.add_argument("model", help="folder of a model, or of its language model alone")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Write the backbone with all rows in one matrix, and the vocabulary.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a model that does what a plain one cannot, a damaged one, or a folder of something else; nothing is
            written then.
    """
    check_model_place(args.out, "--out")
    quiet()

    from ..lm.export import export_llama
    from ..lm.model import SharedLM

    folder = Path(args.model)
    model = SharedLM.from_pretrained(folder / "lm" if (folder / "lm").is_dir() else folder)
    export_llama(model, args.out)
    say(f"wrote {args.out}: {type(model.backbone).__name__} with {model.vocabulary.size} ids, codes among them")
    return 0
