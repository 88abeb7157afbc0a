"""``smalti eval reconstruction``: what a tokenizer leaves of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .arguments import add_tokenizer
from .errors import UsageError
from .eval_pictures import (
    Export,
    add_crop,
    add_extractor,
    add_pictures,
    add_seed,
    check_apart,
    check_extractor,
    check_preset,
    chosen_crop,
    dataset_name,
    picture_source,
    say_scores,
    say_warnings,
    with_preset,
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
    parser.add_argument("--lpips-net", choices=("alex", "vgg"), help="which network (default: alex)")
    told = "also the inflated SSIM and the pooled PSNR of other projects, named as such"
    parser.add_argument("--compatibility", action="store_true", help=told)
    add_seed(parser, "decoders that draw, and of KID's subsets")
    for name, what in (("npz", "the reconstructions to an ADM npz"), ("folder", "the reconstructions to PNGs here")):
        parser.add_argument(f"--export-{name}", metavar="PATH", help=f"also write {what}, for official evaluators")
    parser.add_argument(
        "--export-originals", metavar="PATH", help="also write the cropped originals: an npz, or a folder of PNGs"
    )


def run(args: argparse.Namespace) -> int:
    """Crop, code and decode the pictures, print and write the scores with their protocol.

    Raises:
        UsageError: an output that cannot be written or is named twice, an option that nothing would come of, pictures
            that cannot be the preset's, or an unknown device.
        FileNotFoundError: missing pictures, tokenizer, extractor or weights.
        BrokenImageError: a file that is no picture.
        ValueError: an unknown preset or filter, a result that is not the preset's, damaged weights, or statistics of
            another extractor, crop, count or of the training set.
    """
    _check(args)
    preset = with_preset(args)
    out = file_target(args.out, "--out", ".json")
    rebuilt, originals = _exports(args)
    check_apart([*rebuilt, *originals], out, args.pictures)
    folder = tokenizer_folder(args.tokenizer)
    source = picture_source(args.pictures, args.limit)
    check_preset(preset, "reconstruction", args.pictures, len(source))
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
    lpips = LPIPS(args.lpips, net=args.lpips_net or "alex").to(device) if args.lpips else None
    tokenizer = load_tokenizer(folder, args.device)
    crop = chosen_crop(args, tokenizer.image_size)
    pictures = PictureSet(source, dataset_name(args.pictures, args.dataset), crop)
    settings = ReconstructionSettings(crop, pictures.name, args.batch, args.compatibility, args.kid, args.seed)
    with say_warnings(), Bar("pictures", len(source)) as bar:
        result = evaluate_reconstruction(
            tokenizer,
            source,
            settings,
            extractor,
            lpips,
            reference,
            preset=preset,
            sink=_sink(rebuilt, len(source)),
            progress=bar.update,
        )
    write_result(out, result.scores, result.protocol, result.model)
    say_scores(result.scores, result.protocol.count)
    if extractor is None:
        say("  no rFID without features: pass --extractor inception:FILE, or the folder of a vision model")
    for export in originals:
        export.write(pictures.arrays(), len(source))
    for export in (*rebuilt, *originals):
        say(f"wrote {export.path}: {len(source):,} pictures")
    say(f"wrote {out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    for option, given in {"--kid": args.kid, "--reference": args.reference}.items():
        if given and args.extractor is None:
            raise UsageError(f"{option} compares features, got no extractor; pass --extractor, or leave {option} out")
    check_extractor(args)
    if args.lpips_net and not args.lpips:
        raise UsageError(f"--lpips-net is the network of --lpips, got {args.lpips_net} without it; pass --lpips FILE")


def _exports(args: argparse.Namespace) -> tuple[list[Export], list[Export]]:
    """Where reconstructions go, and where originals."""
    rebuilt: list[Export] = []
    if args.export_npz is not None:
        rebuilt.append(Export.npz(args.export_npz, "--export-npz"))
    if args.export_folder is not None:
        rebuilt.append(Export.folder(args.export_folder, "--export-folder"))
    if args.export_originals is None:
        return rebuilt, []
    return rebuilt, [Export.either(args.export_originals, "--export-originals")]


def _sink(exports: Sequence[Export], count: int) -> Sink | None:
    """Writes the pictures to the first place as they are made, and copies them from there to the others."""
    if not exports:
        return None

    def write(pictures: Iterator[Levels]) -> None:
        from ..eval.images.exports import read_images

        exports[0].write(pictures, count)
        for export in exports[1:]:
            export.write(iter(read_images(exports[0].path)), count)

    return write
