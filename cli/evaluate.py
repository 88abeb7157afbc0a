"""``smalti eval``: a table of what can be scored, each in a module that is imported when it is chosen."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from importlib import import_module

from .arguments import Parser
from .errors import UsageError

#: What is scored: the module that does it, and its line of help.
KINDS = {
    "reconstruction": ("eval_reconstruction", "a tokenizer: PSNR, SSIM, LPIPS and rFID of pictures after their codes"),
    "generation": ("eval_generation", "pictures in a folder or file: FID, KID, IS, precision, recall, CLIP score"),
    "statistics": ("eval_statistics", "write the reference statistics of a set of pictures to a file"),
    "scenes": ("eval_scenes", "a model on SceneEval beside all of its baselines, or the ceiling of a tokenizer"),
    "geneval": ("eval_geneval", "pictures of the 553 GenEval prompts: write the prompts, judge the pictures"),
    "understanding": ("eval_understanding", "answers to POPE, VQAv2, GQA, TextVQA, MME, SEED-Bench, MMBench, captions"),
    "tokens": ("eval_tokens", "the language that codes form: Zipf, entropy, innovation, compression, n-grams, grammar"),
}


def run_kind(arguments: list[str]) -> int:
    """Run ``smalti eval KIND ...`` and return its exit code.

    Args:
        arguments: those of the command line, ``eval`` first.

    Raises:
        UsageError: no kind, or an unknown one.
        SystemExit: after ``--help``.
    """
    name = arguments[1] if len(arguments) > 1 else "--help"
    if name.startswith("-"):
        _parser().parse_args([name])
        return 0
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KINDS)}"
        raise UsageError(f"smalti eval cannot score {name!r}; {hint}")
    module_name, summary = KINDS[name]
    module = import_module(f".{module_name}", __package__)
    parser = Parser(f"smalti eval {name}", description=summary)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments[2:])))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, KINDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in KINDS.items()]
    return Parser(
        "smalti eval",
        usage="smalti eval <kind> [options]",
        description="Scores, each written to a file with the protocol it was measured under.",
        epilog="kinds:\n" + "\n".join(lines) + "\n\nsmalti eval <kind> --help says more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
