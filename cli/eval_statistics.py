"""``smalti eval statistics``: what a Frechet distance needs of a set of pictures, in one file with its identity."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from .arguments import add_device, number
from .errors import UsageError
from .eval_pictures import (
    INCEPTION,
    add_crop,
    add_extractor,
    add_pictures,
    check_extractor,
    chosen_crop,
    dataset_name,
    picture_source,
    say_warnings,
)
from .models import choose_device, quiet
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..data.transforms import Crop
    from ..eval.images.extractors import FeatureExtractor
    from ..eval.images.feature_statistics import Reference

#: Several processes look at pictures; see `run_chosen`.
SHARES_WORK = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval statistics``."""
    add_pictures(parser, optional=True)
    add_extractor(parser, "whose features", required=True)
    told = "of which split the pictures are; train is refused as the reference of reconstructions"
    parser.add_argument("--split", choices=("train", "validation", "test", "generated"), required=True, help=told)
    add_crop(parser, "pictures are taken as they are")
    told = "convert mu and sigma of an npz of ADM instead of pictures; --size says what they are of, cropped ADM's way"
    parser.add_argument("--from-adm", metavar="NPZ", help=told)
    parser.add_argument("--count", type=number(least=2), help="pictures behind the npz, e.g. 1281167")
    parser.add_argument("--out", default="statistics.safetensors", help="file (default: statistics.safetensors)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Read the pictures, or the npz, and write their statistics.

    Raises:
        UsageError: an output that cannot be written, neither or both of pictures and an npz, an npz without the count
            or the published Inception, an option that nothing would come of, or an unknown device.
        FileNotFoundError: missing pictures, npz or weights.
        BrokenImageError: a file that is no picture.
        ValueError: an unknown filter, weights that do not fit, pictures of several sizes, or an npz without statistics.
    """
    out = file_target(args.out, "--out", ".safetensors")
    _check(args)
    if args.from_adm and args.size is not None and args.crop is None:
        args.crop = "adm"  # what the published files are of
    crop = None if args.size is None else chosen_crop(args, args.size)

    from ..eval.images.extractors import load_extractor

    device = choose_device(args.device)
    quiet()
    extractor = load_extractor(args.extractor, device, args.unknown_weights)
    reference = _converted(args, crop, extractor) if args.from_adm else _measured(args, crop, extractor, device)
    if not args.processes.first:
        return 0
    reference.save(out)
    count, width = reference.statistics.count, len(reference.statistics.mean)
    say(f"wrote {out}: {width} features of {count:,} pictures, {reference.dataset} ({reference.split})")
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.pictures) == bool(args.from_adm):
        given = "both" if args.pictures else "neither"
        raise UsageError(f"statistics are of pictures or of an npz (--from-adm), got {given}; name one of them")
    if args.from_adm and args.count is None:
        raise UsageError("an npz does not say how many pictures are behind it; pass --count, e.g. 1281167")
    if args.from_adm and (args.unknown_weights or not args.extractor.startswith(INCEPTION)):
        raise UsageError(
            f"statistics of ADM are of the published Inception, got --extractor {args.extractor}"
            f"{' with --unknown-weights' if args.unknown_weights else ''}; pass --extractor inception:FILE"
        )
    if args.count is not None and not args.from_adm:
        raise UsageError("--count is for --from-adm; pictures are counted, use --limit to take fewer")
    if args.limit is not None and args.from_adm:
        raise UsageError(
            "--limit is for pictures, got an npz of statistics; leave it out, --count says what is behind it"
        )
    check_extractor(args)
    if args.size is None and (args.crop or args.filter):
        raise UsageError("a crop needs a size; pass --size")


def _converted(args: argparse.Namespace, crop: Crop | None, extractor: FeatureExtractor) -> Reference:
    from ..eval.images.feature_statistics import Reference

    reference = Reference.from_adm(
        args.from_adm,
        split=args.split,
        count=args.count,
        dataset=dataset_name([args.from_adm], args.dataset),
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
    )
    return replace(reference, crop=None if crop is None else crop.describe())


def _measured(args: argparse.Namespace, crop: Crop | None, extractor: FeatureExtractor, device: str) -> Reference:
    from ..eval.images.generation import reference_of
    from ..eval.images.picture_sets import PictureSet

    pictures = PictureSet(picture_source(args.pictures, args.limit), dataset_name(args.pictures, args.dataset), crop)
    with say_warnings(), Bar("pictures", len(pictures)) as bar:
        return reference_of(pictures, extractor, args.split, args.batch, device, bar.update, args.processes)
