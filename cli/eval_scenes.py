"""``smalti eval scenes``: SceneEval of a model, or of what a tokenizer leaves of the world's own renders."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_device, number
from .errors import UsageError
from .models import load_pictures, load_tokenizer, model_folder, quiet, tokenizer_folder
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..eval.presets import Preset

#: Several processes draw and rebuild; see `run_chosen`.
SHARES_WORK = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval scenes``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="DIR", help="a text-to-image model (default: the built-in one)")
    what.add_argument("--tokenizer", metavar="DIR", help="a tokenizer alone: rebuild the renders of the prompts")
    parser.add_argument("--world", choices=("full", "small"), default="full", help="embedded world (default: full)")
    parser.add_argument("--per-prompt", type=number(least=1), default=4, metavar="N", help="pictures (default: 4)")
    parser.add_argument("--seed", type=number(least=0), default=0, help="of prompts, renders and drawing (default: 0)")
    parser.add_argument("--batch", type=number(least=1), default=64, help="pictures handled together (default: 64)")
    parser.add_argument("--preset", metavar="NAME", help="published protocol, e.g. scenes-v1; refuse another")
    told = "training scenes in which copies of the drawn pictures are looked for (default: 1000; 0: none)"
    parser.add_argument("--training", type=number(least=0), default=1000, metavar="N", help=told)
    told = "result file (default: scenes.json); a sheet of pictures is written beside it"
    parser.add_argument("--out", default="scenes.json", help=told)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Draw or rebuild, judge, print and write the scores.

    Raises:
        UsageError: an output that cannot be written, or an unknown device.
        FileNotFoundError: no such model or tokenizer.
        ValueError: a model or tokenizer of another size of pictures, or a result that is not the preset's.
    """
    out = file_target(args.out, "--out", ".json")
    preset = None
    if args.preset:
        from ..eval.presets import get_preset

        preset = get_preset(args.preset)
    quiet()
    return _ceiling(args, out, preset) if args.tokenizer else _model(args, out, preset)


def _model(args: argparse.Namespace, out: Path, preset: Preset | None) -> int:
    from ..data.scene_world import World
    from ..eval.picture_scores import described, measure_pictures, memory_scores, picture_protocol
    from ..eval.protocol import write_result
    from ..eval.sheets import save_png
    from ..eval.suite import SuiteSettings

    settings = SuiteSettings(args.world, per_prompt=args.per_prompt, seed=args.seed, batch_size=args.batch)
    pipeline = load_pictures(model_folder(args.model), args.device)
    protocol = picture_protocol(pipeline, settings)
    if preset is not None:
        preset.check(protocol)  # before the drawing, which takes longest
        protocol = replace(protocol, preset=preset.name)
    found = measure_pictures(pipeline, settings, args.processes)
    if not args.processes.first:
        return 0
    scores, sheet = dict(found.scores), out.with_suffix(".samples.png")
    if args.training:
        scores["memory"] = memory_scores(found.images, World.named(args.world), args.training, args.seed)
    write_result(out, scores, protocol, described(pipeline, settings))
    save_png(found.sheet(), sheet)
    scene: dict[str, Any] = scores["scene_eval"]
    low, high = scene["interval"]["low"], scene["interval"]["high"]
    say(f"SceneEval (GenEval rules), {scene['images']:,} pictures")
    say(f"  this model  {scene['overall']:.3f}  (95 % {low:.3f} to {high:.3f}), strict {scene['strict']:.3f}")
    untrained = scores["baselines"]["untrained"]["scene_eval"]
    for name, value in {
        **{name: scene[name] for name in ("seen", "unseen") if name in scene},
        **{name: scene[name] for name in ("oracle", "ceiling", "chance", "near_miss")},
        "untrained": untrained["overall"],
    }.items():
        say(f"  {name.replace('_', '-'):<10}  {value:.3f}")
    say("  " + ", ".join(f"{task} {score:.3f}" for task, score in scene["tasks"].items()))
    if args.training:
        memory = scores["memory"]
        say(f"  copies of {args.training:,} training pictures: {memory['copies']}")
        away, fresh = memory["nearest"], memory["nearest_render"]
        say(f"  nearest training picture: {away:.1f} levels off in the median, of fresh renders {fresh:.1f}")
    say(f"wrote {out}, {sheet}")
    return 0


def _ceiling(args: argparse.Namespace, out: Path, preset: Preset | None) -> int:
    if preset is not None:
        raise UsageError(
            f"--preset {preset.name} is of models that draw, got a tokenizer; leave it out, or pass --model"
        )

    from ..data.scene_world import World
    from ..eval.ceilings import ceiling_protocol, tokenizer_ceiling
    from ..eval.protocol import write_result

    tokenizer = load_tokenizer(tokenizer_folder(args.tokenizer), args.device)
    with Bar("renders", 1) as bar:
        found = tokenizer_ceiling(
            tokenizer,
            World.named(args.world),
            per_prompt=args.per_prompt,
            batch_size=args.batch,
            seed=args.seed,
            progress=bar.update,
            processes=args.processes,
        )
    if not args.processes.first:
        return 0
    scores = found.to_dict()
    protocol = ceiling_protocol(tokenizer, args.world, args.per_prompt, args.seed)
    write_result(
        out, scores, protocol, {"tokenizer": type(tokenizer).__name__, "tokenizer_fingerprint": tokenizer.fingerprint()}
    )
    low, high = scores["interval"]["low"], scores["interval"]["high"]
    say(f"{type(tokenizer).__name__} on {protocol.count:,} renders of the {args.world} world")
    say(f"  ceiling  {scores['ceiling']:.3f}  (95 % {low:.3f} to {high:.3f}), strict {scores['strict']:.3f}")
    say(f"  PSNR     {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f}")
    say("  " + ", ".join(f"{task} {score:.3f}" for task, score in scores["tasks"].items()))
    say(f"wrote {out}")
    return 0
