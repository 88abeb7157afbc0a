"""``smalti eval generation``: how close drawn pictures come to others, and to their prompts."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_device, number
from .errors import UsageError
from .eval_pictures import (
    add_batch,
    add_crop,
    add_extractor,
    chosen_crop,
    dataset_name,
    picture_source,
    say_scores,
    say_warnings,
    with_preset,
)
from .models import choose_device, quiet
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..eval.images.exports import ImageFiles
    from ..eval.images.feature_statistics import Reference
    from ..eval.images.picture_sets import PictureSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval generation``."""
    parser.add_argument("pictures", metavar="FOLDER|NPZ", help="the drawn pictures: PNGs in a folder, or an ADM npz")
    told = "statistics of smalti eval statistics, or pictures: a folder, an npz, a tar, or scenes[:full|small]"
    parser.add_argument("--reference", metavar="FILE", required=True, help=told)
    parser.add_argument("--reference-name", metavar="NAME", help="of pictures as the reference (default: file name)")
    add_crop(parser, "that of the drawn pictures; only pictures of the reference are cropped")
    add_extractor(parser, "features for FID", required=True)
    parser.add_argument("--kid", action="store_true", help="also KID; needs pictures as the reference")
    told = "also improved precision and recall; needs pictures as the reference"
    parser.add_argument("--precision-recall", action="store_true", help=told)
    parser.add_argument("--clip", metavar="DIR", help="also the CLIP score, by the CLIP model in this folder")
    told = "the prompt of each picture, one a line in the order of their names, or JSON lines with a field prompt"
    parser.add_argument("--prompts", metavar="FILE", help=told)
    parser.add_argument("--rewritten", action="store_true", help="another model rewrote the prompts; written down")
    told = "how the pictures were drawn, e.g. guidance=7.5 top_k=100; written down"
    parser.add_argument("--sampler", nargs="+", default=[], metavar="NAME=VALUE", help=told)
    parser.add_argument("--limit", type=number(least=2), metavar="N", help="take the first N pictures (default: all)")
    parser.add_argument("--preset", metavar="NAME", help="published protocol, e.g. adm-256; refuse another")
    parser.add_argument("--out", default="generation.json", help="result file (default: generation.json)")
    add_batch(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Read the pictures and the reference once, print and write the scores with their protocol.

    Raises:
        UsageError: an output that cannot be written, statistics of another project that must be converted first,
            wrong sampler settings, or an unknown device.
        FileNotFoundError: missing pictures, prompts, reference or weights.
        ValueError: an unknown preset, a result that is not the preset's, pictures of several sizes, prompts of another
            number than pictures, or statistics of another extractor.
    """
    sampler = _sampler(args.sampler)
    preset = with_preset(args)
    out = file_target(args.out, "--out", ".json")
    prompts = _prompts(args.prompts) if args.prompts else None

    from ..eval.images.clip_score import CLIPScorer
    from ..eval.images.exports import read_images
    from ..eval.images.extractors import load_extractor
    from ..eval.images.generation import GenerationSettings, evaluate_generation
    from ..eval.protocol import write_result

    files = read_images(args.pictures)
    if prompts is not None and len(prompts) == len(files):
        prompts = prompts[: args.limit]
    pictures = _drawn(files, args.limit)
    reference = _reference(args, files.size)
    device = choose_device(args.device)
    quiet()
    extractor = load_extractor(args.extractor, device, args.unknown_weights)
    clip = CLIPScorer(args.clip, device) if args.clip else None
    settings = GenerationSettings(args.batch, args.kid, args.precision_recall, 0, args.rewritten, sampler)
    with say_warnings(), Bar("pictures", len(pictures)) as bar:
        result = evaluate_generation(
            pictures,
            reference,
            extractor,
            settings,
            clip=clip,
            prompts=prompts,
            device=device,
            preset=preset,
            progress=bar.update,
        )
    write_result(out, result.scores, result.protocol, result.model)
    say_scores(result.scores, result.protocol.count)
    say(f"wrote {out}")
    return 0


def _drawn(files: ImageFiles, limit: int | None) -> PictureSet:
    from ..data.base import Part
    from ..eval.images.picture_sets import ArraySource, PictureSet

    source = ArraySource(files)
    name = files.path.absolute().name
    return PictureSet(source if limit is None or limit >= len(files) else Part(source, 0, limit), name)


def _reference(args: argparse.Namespace, size: tuple[int, int]) -> Reference | PictureSet:
    from ..eval.images.exports import read_images
    from ..eval.images.feature_statistics import Reference
    from ..eval.images.picture_sets import ArraySource, PictureSet

    path: str = args.reference
    if path.endswith(".safetensors"):
        return Reference.load(path)
    if path.endswith(".npz"):
        _refuse_statistics(path)
    cropped = args.size is not None or args.crop is not None or args.filter is not None
    crop = chosen_crop(args, size) if cropped else None
    name = dataset_name([path], args.reference_name)
    if path.endswith(".npz") or (Path(path).is_dir() and crop is None):
        return PictureSet(ArraySource(read_images(path)), name, crop)
    return PictureSet(picture_source([path], None), name, crop)


def _refuse_statistics(path: str) -> None:
    """ADM's reference files hold statistics, and beside them too few pictures to be meant."""
    if Path(path).is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            held = archive.namelist()
        if "mu.npy" in held:
            raise UsageError(
                f"{path} holds statistics (mu, sigma); convert it with smalti eval statistics --from-adm {path}, which "
                "asks what they are of"
            )


def _prompts(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts were expected in {path}, got no such file; check the path")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not path.endswith(".jsonl"):
        return lines
    try:
        return [str(json.loads(line)["prompt"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} must hold an object with a prompt in every line, got another ({error})") from error


def _sampler(settings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise UsageError(f"--sampler takes NAME=VALUE, got {setting!r}; write e.g. guidance=7.5")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
