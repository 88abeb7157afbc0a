"""``smalti caption``: a sentence for every picture."""

from __future__ import annotations

import argparse

from .arguments import add_model, number
from .models import load_pipeline, model_folder
from .outputs import say
from .pictures import find_pictures, load_pictures
from .progress import Bar

_BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti caption``."""
    parser.add_argument("picture", nargs="+", help="pictures, or folders of them")
    parser.add_argument(
        "--beams",
        type=number(least=1),
        default=1,
        help="sentences followed at a time, of which the likeliest is given; more take longer (default: 1)",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print the caption of a picture, or one line ``path: caption`` for each of several.

    Raises:
        BrokenImageError: a file that is no picture.
        FileNotFoundError: a missing picture or model.
        ValueError: a damaged model.
    """
    pictures = find_pictures(args.picture)
    folder = model_folder(args.model)

    from ..data.transforms import Crop
    from ..generation.text import TextSampling

    pipeline = load_pipeline(folder, args.device)
    captions, sampling = list[tuple[str, str]](), TextSampling(beams=args.beams)
    with Bar("reading", len(pictures)) as bar:
        for loaded in load_pictures(pictures, Crop(pipeline.tokenizer.image_size), _BATCH):
            captions += zip(loaded.names, pipeline.caption(loaded.images, sampling), strict=True)
            bar.update(loaded.seen, len(pictures))
    for name, caption in captions:
        say(caption if len(captions) == 1 else f"{name}: {caption}")
    return 0
