"""``smalti eval geneval``: the 553 prompts for a generator, and the score of what it drew.

A number is called GenEval only if GenEval's own detector found the objects; any other is a number by GenEval's rules.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Parser, add_device, number
from .errors import UsageError
from .eval_pictures import with_preset
from .models import choose_device, quiet
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..eval.geneval_results import GenEvalRun, Scorer
    from ..eval.presets import Preset
    from ..eval.protocol import Protocol

#: Several processes judge; see `run_chosen`.
SHARES_WORK = True

#: What a result says of the scorer whose results file it was read from.
OFFICIAL_DETECTOR = "mmdet mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, colours by OpenAI CLIP ViT-L/14"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval geneval``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    _add_prompts(actions.add_parser("prompts", help="write the prompts, byte for byte the published file"))
    _add_score(actions.add_parser("score", help="judge a folder of images with a detector"))
    _add_read(actions.add_parser("read", help="sum up a results file, e.g. of the official scorer"))


def run(args: argparse.Namespace) -> int:
    """Write the prompts, or judge the images of all of them and write the score with its protocol.

    A command that was killed while it judged goes on where it stopped.

    Raises:
        UsageError: an output that cannot be written, an unknown device, a setting of the sampler given twice, or a
            results file of a detector that is not stated or stated wrongly.
        FileNotFoundError: a missing folder, file, detector or CLIP.
        BrokenImageError: an image that is no readable PNG.
        ValueError: a run that is not complete, an unknown preset or detector, or a result that is not the preset's.
    """
    if args.action == "score":
        return _score(args)
    if not args.processes.first:
        return 0
    return _read(args) if args.action == "read" else _write_prompts(args)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default="geneval", help="folder (default: geneval)")
    text = "also make a folder for each prompt, with its metadata and an empty folder samples/ for 00000.png and so on"
    parser.add_argument("--layout", action="store_true", help=text)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="holds 00000/ to 00552/, each with metadata.jsonl and samples/*.png")
    text = "what finds the objects: mask2former:DIR, detr:DIR or owlv2:DIR, DIR a folder of the model"
    parser.add_argument("--detector", metavar="SPEC", required=True, help=text)
    text = "folder of the CLIP that names colours; two of the six tasks ask for colours"
    parser.add_argument("--colors", metavar="DIR", required=True, help=text)
    parser.add_argument("--results", metavar="JSONL", help="also write every verdict, as the official scorer does")
    limits = {"threshold": "confidence to exceed", "counting-threshold": "the same where objects are counted"}
    for name, text in limits.items():
        share = number(float, least=0, most=1)
        parser.add_argument(f"--{name}", type=share, metavar="P", help=f"{text} (default: the detector's)")
    _add_result(parser)
    add_device(parser)


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", help="results.jsonl of the official scorer, or of smalti eval geneval score")
    made = parser.add_mutually_exclusive_group()
    text = "the file is the official scorer's, run with its own detector, colours and thresholds"
    made.add_argument("--official", action="store_true", help=text)
    made.add_argument("--detector", metavar="NAME", help="name of the detector that another scorer used")
    _add_result(parser)


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="geneval.json", help="result file (default: geneval.json)")
    parser.add_argument("--per-prompt", type=number(least=1), metavar="N", help="images of each prompt (default: 4)")
    text = "another model rewrote the prompts; the metadata must have the new texts"
    parser.add_argument("--rewritten", action="store_true", help=text)
    text = "how the images were drawn, for the protocol, e.g. guidance=9; once for each setting"
    parser.add_argument("--sampler", type=_setting, action="append", metavar="KEY=VALUE", default=[], help=text)
    parser.add_argument("--name", help="what the images were drawn with (default: name of the folder or file)")
    parser.add_argument("--preset", metavar="NAME", help="geneval-raw or geneval-rewritten; refuse another protocol")
    parser.add_argument("--seed", type=number(least=0), default=0, help="of the bootstrap over prompts (default: 0)")


def _write_prompts(args: argparse.Namespace) -> int:
    folder = Path(args.out)
    metadata = file_target(str(folder / "evaluation_metadata.jsonl"), "--out", ".jsonl")

    from ..eval.geneval_folder import write_layout
    from ..eval.geneval_prompts import GENEVAL_SHA256, geneval_prompts, write_geneval_prompts, write_prompt_texts

    entries = geneval_prompts()
    write_geneval_prompts(metadata)
    write_prompt_texts(folder / "generation_prompts.txt", entries)
    say(f"wrote {metadata}: {len(entries)} prompts, sha256 {GENEVAL_SHA256[:8]}, and generation_prompts.txt")
    if args.layout:
        write_layout(folder, entries)
        say(f"wrote {folder}/00000 to {len(entries) - 1:05d}: draw each prompt's images into samples/")
    return 0


def _score(args: argparse.Namespace) -> int:
    preset, sampler = with_preset(args), _sampler(args)
    out = file_target(args.out, "--out", ".json")
    results = file_target(args.results, "--results", ".jsonl") if args.results else None

    from ..eval.geneval_folder import PER_PROMPT, read_layout

    samples = read_layout(args.folder, per_prompt=args.per_prompt or PER_PROMPT, rewritten=args.rewritten)

    from ..eval.detection.clip_colors import ClipColors
    from ..eval.detection.detectors import colors_in, load_detector
    from ..eval.geneval_judging import Journal, judge_samples
    from ..eval.geneval_results import Rules, Scorer, run_protocol, write_results
    from ..eval.protocol import file_hash, text_hash

    device = choose_device(args.device)
    quiet()
    detector, classifier = load_detector(args.detector, device), ClipColors(args.colors, device)
    rules = Rules(
        detector.threshold if args.threshold is None else args.threshold,
        detector.counting_threshold if args.counting_threshold is None else args.counting_threshold,
    )
    scorer = Scorer.of(detector, classifier.describe(), rules)
    entries = [sample.entry for sample in samples]
    protocol = run_protocol(entries, scorer, rewritten=args.rewritten, sampler=sampler, seed=args.seed)
    protocol = _checked(protocol, preset)
    journal = Journal(out, scorer)
    with Bar("images", len(samples)) as bar:
        judged = judge_samples(
            samples,
            detector,
            lambda image, found: colors_in(image, found, classifier),
            scorer=scorer,
            rewritten=args.rewritten,
            progress=bar.update,
            journal=journal,
            processes=args.processes,
        )
    if not args.processes.first:
        return 0
    if results:
        write_results(results, judged)
        say(f"wrote {results}: {len(judged.samples):,} verdicts")
    images_hash = text_hash(file_hash(sample.path) for sample in samples)
    _report(judged, protocol, {"name": _name(args, args.folder), "images_hash": images_hash}, out)
    journal.remove()
    return 0


def _read(args: argparse.Namespace) -> int:
    preset, sampler = with_preset(args), _sampler(args)
    out = file_target(args.out, "--out", ".json")

    from ..eval.geneval_folder import PER_PROMPT
    from ..eval.geneval_results import read_results, run_protocol
    from ..eval.protocol import file_hash

    judged = read_results(args.results, per_prompt=args.per_prompt or PER_PROMPT, rewritten=args.rewritten)
    scorer = _stated_scorer(args, judged)
    protocol = run_protocol(judged.entries, scorer, rewritten=args.rewritten, sampler=sampler, seed=args.seed)
    model = {"name": _name(args, args.results), "results_hash": file_hash(args.results)}
    _report(judged, _checked(protocol, preset), model, out)
    return 0


def _stated_scorer(args: argparse.Namespace, judged: GenEvalRun) -> Scorer:
    from ..eval.geneval_results import Scorer

    written, given = judged.scorer, OFFICIAL_DETECTOR if args.official else args.detector
    if written is not None:
        if given not in (None, written.detector):
            option = "--official" if args.official else f"--detector {given}"
            raise UsageError(
                f"{args.results} says that {written.detector} found the objects, got {option}; leave the option out"
            )
        return written
    if given is None:
        raise UsageError(
            f"{args.results} does not say which detector found the objects; add --official if it is the official "
            "scorer's own, or --detector NAME"
        )
    return Scorer(given, args.official)


def _checked(protocol: Protocol, preset: Preset | None) -> Protocol:
    if preset is None:
        return protocol
    preset.check(protocol)
    return replace(protocol, preset=preset.name)


def _report(judged: GenEvalRun, protocol: Protocol, model: dict[str, str], out: Path) -> None:
    from ..eval.protocol import write_result

    scores = judged.scores(seed=protocol.seed)
    write_result(out, scores, protocol, model)
    say(f"{protocol.task}{', rewritten prompts' if protocol.rewritten else ''}: {protocol.count:,} images")
    width = max(len(name) for name in scores["tasks"])
    ends = {"overall": scores["interval"], **scores["task_intervals"]}
    for name, score in {**scores["tasks"], "overall": scores["overall"]}.items():
        say(f"  {name:<{width}}  {score:.4f}  [{ends[name]['low']:.4f}, {ends[name]['high']:.4f}]")
    say(f"wrote {out}")


def _name(args: argparse.Namespace, path: str) -> str:
    return args.name or Path(path).absolute().name


def _sampler(args: argparse.Namespace) -> dict[str, str]:
    settings = dict(args.sampler)
    if len(settings) < len(args.sampler):
        repeated = next(name for name in settings if sum(name == given for given, _ in args.sampler) > 1)
        raise UsageError(f"--sampler must give every setting once, got {repeated!r} more than once; leave one out")
    return settings


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value) or name == "per_prompt":
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, KEY not per_prompt, got {text!r}")
    return name, value
