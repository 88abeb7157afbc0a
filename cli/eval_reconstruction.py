"""``smalti eval reconstruction``: what a tokenizer leaves of pictures, whatever decodes its codes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
from .models import choose_device, load_decoder, load_tokenizer, quiet, tokenizer_folder
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..eval.images.picture_sets import Levels
    from ..eval.images.reconstruction import Sink

#: Several processes code and decode; see `run_chosen`.
SHARES_WORK = True

_SHOWN = 8  # pictures on a sheet


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
    told = "also the perceptual distance over this folder of a vision model, without published weights"
    parser.add_argument("--perceptual", metavar="DIR", help=told)
    told = "also semantic agreement: cosine of the features of this folder of a vision model"
    parser.add_argument("--teacher", metavar="DIR", help=told)
    told = "also what this decoder draws of the same codes: a folder, or NAME=DIR; may be repeated"
    parser.add_argument("--decoder", metavar="DIR", action="append", default=[], help=told)
    told = f"also the first {_SHOWN} pictures beside what each decoder makes of them, as a PNG"
    parser.add_argument("--sheet", metavar="FILE", help=told)
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
        ValueError: an unknown preset or filter, a result that is not the preset's, damaged weights, statistics of
            another extractor, crop, count or of the training set, or a decoder of another tokenizer.
    """
    _check(args)
    preset, places = with_preset(args), _named(args.decoder)
    out = file_target(args.out, "--out", ".json")
    sheet = file_target(args.sheet, "--sheet", ".png") if args.sheet else None
    rebuilt, originals = _exports(args)
    check_apart([*rebuilt, *originals], out, args.pictures)
    folder = tokenizer_folder(args.tokenizer)
    source = picture_source(args.pictures, args.limit)
    check_preset(preset, "reconstruction", args.pictures, len(source))
    chosen_crop(args, 1)  # a wrong filter is told before anything is loaded

    from ..eval.images.decoded import paints
    from ..eval.images.extractors import load_extractor
    from ..eval.images.feature_statistics import Reference
    from ..eval.images.picture_sets import PictureSet
    from ..eval.images.reconstruction import ReconstructionSettings, evaluate_reconstruction
    from ..eval.protocol import write_result
    from ..tokenizers.perceptual import LPIPS, BackboneLoss

    device = choose_device(args.device)
    quiet()
    reference = Reference.load(args.reference) if args.reference else None
    extractor = load_extractor(args.extractor, device, args.unknown_weights) if args.extractor else None
    lpips = LPIPS(args.lpips, net=args.lpips_net or "alex").to(device) if args.lpips else None
    perceptual = BackboneLoss(args.perceptual).to(device) if args.perceptual else None
    teacher = load_extractor(args.teacher, device) if args.teacher else None
    tokenizer = load_tokenizer(folder, args.device)
    decoders = {name: load_decoder(place, tokenizer) for name, place in places.items()}
    shown = _Shown()
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
            teacher=teacher,
            perceptual=perceptual,
            decoders=decoders,
            preset=preset,
            sink=_sink(rebuilt, len(source)),
            progress=bar.update,
            watch=shown.add if sheet else None,
            processes=args.processes,
        )
    if not args.processes.first:
        return 0
    write_result(out, result.scores, result.protocol, result.model)
    say_scores(result.scores, result.protocol.count)
    if extractor is None:
        say("  no rFID without features: pass --extractor inception:FILE, or the folder of a vision model")
    if decoders and not paints(tokenizer):
        say(f"  this {type(tokenizer).__name__} has no pixel decoder: the scores are those of --decoder alone")
    for export in originals:
        export.write(pictures.arrays(), len(source))
    for export in (*rebuilt, *originals):
        say(f"wrote {export.path}: {len(source):,} pictures")
    if sheet is not None:
        say(shown.write(sheet))
    say(f"wrote {out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    for option, given in {"--kid": args.kid, "--reference": args.reference}.items():
        if given and args.extractor is None:
            raise UsageError(f"{option} compares features, got no extractor; pass --extractor, or leave {option} out")
    check_extractor(args)
    if args.lpips_net and not args.lpips:
        raise UsageError(f"--lpips-net is the network of --lpips, got {args.lpips_net} without it; pass --lpips FILE")


def _named(given: Sequence[str]) -> dict[str, Path]:
    """Folders of decoders by name: the one given, or that of the folder.

    Raises:
        UsageError: two of one name.
        FileNotFoundError: no such folder.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, _, place = ("", "", text) if Path(text).is_dir() else text.rpartition("=")
        folder = Path(place)
        if not folder.is_dir():
            raise FileNotFoundError(f"--decoder must be a decoder's folder, got {place!r}, which is none; check it")
        name = name or folder.resolve().name
        if name in found:
            raise UsageError(f"decoders must have different names, got {name!r} twice; pass --decoder NAME={place}")
        found[name] = folder
    return found


class _Shown:
    """The first pictures, and what came back of them."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        self._count = 0

    def add(self, originals: Tensor, rebuilt: Mapping[str, Tensor]) -> None:
        """Keep what there is room for of ``[B, 3, H, W]`` uint8 pictures."""
        room = _SHOWN - self._count
        if room > 0:
            self._count += len(originals[:room])
            for name, levels in {"original": originals, **rebuilt}.items():
                self._rows.setdefault(name, []).append(levels[:room])

    def write(self, path: Path) -> str:
        """One row for the originals and for each decoder; a line that says so."""
        import torch

        from ..data.transforms import from_uint8
        from ..eval.sheets import row_sheet, save_png

        save_png(row_sheet({name: from_uint8(torch.cat(parts)) for name, parts in self._rows.items()}), path)
        return f"wrote {path}: {self._count} pictures, and what {len(self._rows) - 1} decoders make of them"


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
