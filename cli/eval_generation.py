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
    add_seed,
    check_extractor,
    check_preset,
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

#: Several processes look at pictures; see `run_chosen`.
SHARES_WORK = True


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
    told = (
        "the prompt of each picture, one a line in the order of their names, or JSON lines with a field prompt; the "
        "hash written down is of these texts in order, one a line"
    )
    parser.add_argument("--prompts", metavar="FILE", help=told)
    parser.add_argument("--rewritten", action="store_true", help="another model rewrote the prompts; written down")
    told = "how the pictures were drawn, for the protocol, e.g. guidance=7.5; once for each setting"
    parser.add_argument("--sampler", type=_setting, action="append", metavar="NAME=VALUE", default=[], help=told)
    add_seed(parser, "KID's subsets")
    parser.add_argument("--limit", type=number(least=2), metavar="N", help="take the first N pictures (default: all)")
    parser.add_argument("--preset", metavar="NAME", help="published protocol, e.g. adm-256; refuse another")
    parser.add_argument("--out", default="generation.json", help="result file (default: generation.json)")
    add_batch(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Read the pictures and the reference once, print and write the scores with their protocol.

    Raises:
        UsageError: an output that cannot be written, statistics of another project that must be converted first, a
            setting of the sampler given twice, an option that nothing would come of, pictures that cannot be the
            preset's, prompts that cannot be read, or an unknown device.
        FileNotFoundError: missing pictures, prompts, reference or weights.
        ValueError: an unknown preset, a result that is not the preset's, pictures of several sizes, prompts of another
            number than pictures, or statistics of another extractor.
    """
    _check(args)
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
    check_preset(preset, "generation", [args.pictures, args.reference], len(files))
    if prompts is not None and len(prompts) == len(files):
        prompts = prompts[: args.limit]
    pictures = _drawn(files, args.limit)
    reference = _reference(args, files.size)
    device = choose_device(args.device)
    quiet()
    extractor = load_extractor(args.extractor, device, args.unknown_weights)
    clip = CLIPScorer(args.clip, device) if args.clip else None
    settings = GenerationSettings(args.batch, args.kid, args.precision_recall, args.seed, args.rewritten, sampler)
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
            processes=args.processes,
        )
    if not args.processes.first:
        return 0
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


def _check(args: argparse.Namespace) -> None:
    check_extractor(args)
    for option, given in {"--rewritten": args.rewritten, "--clip": args.clip}.items():
        if given and not args.prompts:
            raise UsageError(f"{option} is about prompts, got none; pass --prompts FILE, or leave {option} out")
    named = {"--size": args.size, "--crop": args.crop, "--filter": args.filter, "--reference-name": args.reference_name}
    for option, given in named.items():
        if given is not None and _is_stored(args.reference):
            raise UsageError(
                f"{option} is for pictures as the reference, got statistics in {args.reference}; leave {option} out"
            )


def _is_stored(path: str) -> bool:
    return Path(path).suffix.lower() == ".safetensors"


def _reference(args: argparse.Namespace, size: tuple[int, int]) -> Reference | PictureSet:
    from ..eval.images.feature_statistics import Reference
    from ..eval.images.picture_sets import PictureSet

    path: str = args.reference
    if _is_stored(path):
        return Reference.load(path)
    _refuse_statistics(path)
    cropped = args.size is not None or args.crop is not None or args.filter is not None
    crop = chosen_crop(args, size) if cropped else None
    return PictureSet(picture_source([path], None), dataset_name([path], args.reference_name), crop)


def _refuse_statistics(path: str) -> None:
    """ADM's reference files hold statistics, and beside them too few pictures to be meant."""
    if Path(path).suffix.lower() == ".npz" and Path(path).is_file() and zipfile.is_zipfile(path):
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
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} must be UTF-8, got another encoding ({error.reason}); convert it") from error
    # Not splitlines, which also splits at separators that may stand inside a prompt.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if path.endswith(".jsonl"):
        return [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _prompt(path: str, number: int, line: str) -> str:
    try:
        prompt: object = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(
            f"{path} must hold an object with a prompt in every line, got another in line {number} ({error})"
        ) from error
    if not isinstance(prompt, str):
        raise UsageError(f"{path} must hold prompts that are text, got {prompt!r} in line {number}; put it in quotes")
    return prompt


def _sampler(settings: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings:
        if name in found:
            raise UsageError(f"--sampler must give every setting once, got {name!r} more than once; leave one out")
        found[name] = value
    return found


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
