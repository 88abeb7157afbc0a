"""``smalti sample``: pictures for prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_model, add_scale, number
from .errors import UsageError
from .models import load_pipeline, model_folder
from .outputs import picture_target, say, write_pictures
from .progress import Bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..generation.pipeline import TextToImagePipeline
    from ..generation.sampling import Sampling

_LAST_SEED = 2**63 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti sample``."""
    parser.add_argument("prompt", nargs="*", help="what to draw")
    parser.add_argument("--prompts", metavar="FILE", help="more prompts: a text file, one on each line")
    parser.add_argument(
        "--out", default="out.png", help="a PNG (several pictures make a sheet), or a folder (out/) for one PNG each"
    )
    parser.add_argument(
        "--seed", type=number(least=0, most=_LAST_SEED), default=0, help="every prompt starts from it (default: 0)"
    )
    parser.add_argument(
        "--count", type=number(least=1), default=1, help="pictures per prompt, of seed, seed + 1, ... (default: 1)"
    )
    parser.add_argument(
        "--guidance",
        type=number(float),
        help="how closely to follow the prompt; 1 is off (default, as for the next four: the model's own)",
    )
    parser.add_argument(
        "--temperature", type=number(float), help="0 takes the most likely code, 1 draws from the distribution as it is"
    )
    parser.add_argument("--top-k", type=number(), help="draw from the k most likely codes; 0 for all")
    parser.add_argument("--top-p", type=number(float), help="draw from the most likely codes that reach p; 1 for all")
    parser.add_argument(
        "--candidates",
        type=number(least=1),
        help="drawings per picture, of which the one is kept that the model reads the prompt from most surely",
    )
    parser.add_argument(
        "--batch",
        type=number(least=1),
        default=1,
        help="pictures drawn together (default: 1); more is faster, but single levels of a pixel may then depend on "
        "the other prompts",
    )
    add_scale(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Draw ``--count`` pictures for every prompt and write them; the same prompt, seed and settings are the same bytes.

    Raises:
        UsageError: no prompt, an empty one, more pictures than a sheet holds, or an output that cannot be written.
        ValueError: sampling settings out of range, a word that the vocabulary lacks, or a damaged model.
        FileNotFoundError: no model, or no file of prompts.
    """
    prompts = read_prompts(args.prompt, args.prompts)
    target = picture_target(args.out)
    target.check_count(len(prompts) * args.count)
    if args.seed + args.count - 1 > _LAST_SEED:
        raise UsageError(f"--seed and --count must stay within {_LAST_SEED}, got {args.seed} and {args.count}")
    folder = model_folder(args.model)

    from ..generation.sampling import Sampling, model_sampling

    names = ("guidance", "temperature", "top_k", "top_p", "candidates")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    Sampling(**given)  # what is out of range is said before anything is loaded
    pipeline = load_pipeline(folder, args.device)
    own = model_sampling(pipeline.lm)
    sampling = replace(own, **given, **({"temperatures": None} if args.temperature is not None else {}))
    for prompt in prompts:
        pipeline.condition(prompt)
    jobs = [(prompt, args.seed + offset) for prompt in prompts for offset in range(args.count)]
    pictures = draw_pictures(pipeline, jobs, sampling, args.batch)
    labels = [prompt if args.count == 1 else f"{prompt} (seed {seed})" for prompt, seed in jobs]
    columns = args.count if args.count > 1 and len(prompts) > 1 else None
    say(write_pictures(pictures, labels, target, args.scale, columns))
    return 0


def read_prompts(given: Sequence[str], file: str | None) -> list[str]:
    """The prompts of the command line, then those of a file; blank lines of the file are passed over.

    Raises:
        UsageError: an empty prompt, or none at all.
        FileNotFoundError: there is no such file.
    """
    for position, prompt in enumerate(given, 1):
        if not prompt.strip():
            raise UsageError(
                f"every prompt must say what to draw, got {prompt!r} as number {position}; write some words"
            )
    prompts = [prompt.strip() for prompt in [*given, *(_lines(Path(file)) if file else ())] if prompt.strip()]
    if not prompts:
        came = f"none in {file}" if file else "none"
        raise UsageError(f'at least one prompt is needed, got {came}; try: smalti sample "a red circle"')
    return prompts


def draw_pictures(
    pipeline: TextToImagePipeline, jobs: Sequence[tuple[str, int]], sampling: Sampling, batch: int
) -> list[Image]:
    """One picture for every pair of prompt and seed.

    Args:
        pipeline: the model.
        jobs: pairs of prompt and seed.
        sampling: how codes are drawn.
        batch: jobs drawn together; in a batch of one, the bytes of a picture depend on nothing but its own job.
    """
    import torch

    pictures: list[Image] = []
    with Bar("drawing", len(jobs)) as bar:
        for start in range(0, len(jobs), batch):
            part = jobs[start : start + batch]
            generators = [torch.Generator().manual_seed(seed) for _, seed in part]
            pictures += pipeline([prompt for prompt, _ in part], generators, sampling, batch, progress=False)
            bar.update(len(pictures), len(jobs))
    return pictures


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"--prompts must be a text file, got {str(file)!r}, which is none; check the path")
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts must be UTF-8 text, got other bytes in {file}; save it as UTF-8") from error
