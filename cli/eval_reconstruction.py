"""``smalti eval reconstruction``: what a tokenizer leaves of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_tokenizer
from .eval_pictures import (
    add_crop,
    add_extractor,
    add_pictures,
    chosen_crop,
    dataset_name,
    export_target,
    picture_source,
    say_scores,
    say_warnings,
    with_preset,
    write_export,
)
from .models import choose_device, load_tokenizer, quiet, tokenizer_folder
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..eval.images.picture_sets import Levels
    from ..eval.images.reconstruction import Sink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval reconstruction``."""
    add_pictures(parser)
    add_tokenizer(parser)
    parser.add_argument("--out", default="reconstruction.json", help="result file (default: reconstruction.json)")
    parser.add_argument("--preset", metavar="NAME", help="published protocol, e.g. val50k-centercrop; refuse another")
    add_crop(parser, "that of the tokenizer")
    add_extractor(parser, "features for rFID")
    told = "statistics of the originals, of smalti eval statistics (default: the originals themselves)"
    parser.add_argument("--reference", metavar="FILE", help=told)
    parser.add_argument("--kid", action="store_true", help="also KID to the originals; keeps every feature in memory")
    parser.add_argument("--lpips", metavar="FILE", help="also LPIPS, over these weights of torchvision's network")
    parser.add_argument("--lpips-net", choices=("alex", "vgg"), default="alex", help="which network (default: alex)")
    told = "also the inflated SSIM and the pooled PSNR of other projects, named as such"
    parser.add_argument("--compatibility", action="store_true", help=told)
    for name, what in (("npz", "the reconstructions to an ADM npz"), ("folder", "the reconstructions to PNGs here")):
        parser.add_argument(f"--export-{name}", metavar="PATH", help=f"also write {what}, for official evaluators")
    parser.add_argument(
        "--export-originals", metavar="PATH", help="also write the cropped originals: an npz, or a folder of PNGs"
    )


def run(args: argparse.Namespace) -> int:
    """Crop, code and decode the pictures, print and write the scores with their protocol.

    Raises:
        UsageError: an output that cannot be written, or an unknown device.
        FileNotFoundError: missing pictures, tokenizer, extractor or weights.
        BrokenImageError: a file that is no picture.
        ValueError: an unknown preset or filter, a result that is not the preset's, damaged weights, or statistics of
            another extractor, crop, count or of the training set.
    """
    preset = with_preset(args)
    out = file_target(args.out, "--out", ".json")
    exports = [export_target(path, option) for path, option in _exports(args)]
    folder = tokenizer_folder(args.tokenizer)
    source = picture_source(args.pictures, args.limit)
    chosen_crop(args, 1)  # a wrong filter is told before anything is loaded

    from ..eval.images.extractors import load_extractor
    from ..eval.images.feature_statistics import Reference
    from ..eval.images.picture_sets import PictureSet
    from ..eval.images.reconstruction import ReconstructionSettings, evaluate_reconstruction
    from ..eval.protocol import write_result
    from ..tokenizers.perceptual import LPIPS

    device = choose_device(args.device)
    quiet()
    reference = Reference.load(args.reference) if args.reference else None
    extractor = load_extractor(args.extractor, device, args.unknown_weights) if args.extractor else None
    lpips = LPIPS(args.lpips, net=args.lpips_net).to(device) if args.lpips else None
    tokenizer = load_tokenizer(folder, args.device)
    crop = chosen_crop(args, tokenizer.image_size)
    pictures = PictureSet(source, dataset_name(args.pictures, args.dataset), crop)
    settings = ReconstructionSettings(crop, pictures.name, args.batch, args.compatibility, args.kid)
    sink = _sink([place for place in exports[:2] if place], len(source))
    with say_warnings(), Bar("pictures", len(source)) as bar:
        result = evaluate_reconstruction(
            tokenizer,
            source,
            settings,
            extractor,
            lpips,
            reference,
            preset=preset,
            sink=sink,
            progress=bar.update,
        )
    write_result(out, result.scores, result.protocol, result.model)
    say_scores(result.scores, result.protocol.count)
    if extractor is None:
        say("  no rFID without features: pass --extractor inception:FILE, or the folder of a vision model")
    if exports[2] is not None:
        write_export(exports[2], pictures.arrays(), len(source))
    for place in filter(None, exports):
        say(f"wrote {place}: {len(source):,} pictures")
    say(f"wrote {out}")
    return 0


def _exports(args: argparse.Namespace) -> list[tuple[str | None, str]]:
    """Where reconstructions go as npz and as PNGs, and originals; with the option that said so."""
    return [
        (args.export_npz, "--export-npz"),
        (args.export_folder and f"{args.export_folder}/", "--export-folder"),
        (args.export_originals, "--export-originals"),
    ]


def _sink(places: list[Path], count: int) -> Sink | None:
    """Writes the pictures to the first place as they are made, and copies them from there to the others."""
    if not places:
        return None

    def write(pictures: Iterator[Levels]) -> None:
        from ..eval.images.exports import read_images

        write_export(places[0], pictures, count)
        for place in places[1:]:
            write_export(place, iter(read_images(places[0])), count)

    return write
