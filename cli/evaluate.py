"""``smalti eval``: a table of what can be scored, each in a module that is imported when it is chosen."""

from __future__ import annotations

from .dispatch import chosen, overview, run_chosen

#: What is scored: the module that does it, and its line of help.
KINDS = {
    "reconstruction": ("eval_reconstruction", "a tokenizer: PSNR, SSIM, LPIPS and rFID of pictures after their codes"),
    "generation": ("eval_generation", "pictures in a folder or file: FID, KID, IS, precision, recall, CLIP score"),
    "statistics": ("eval_statistics", "write the reference statistics of a set of pictures to a file"),
    "scenes": ("eval_scenes", "a model on SceneEval beside all of its baselines, or the ceiling of a tokenizer"),
    "geneval": ("eval_geneval", "pictures of the 553 GenEval prompts: write the prompts, judge the pictures"),
    "understanding": ("eval_understanding", "answers to POPE, VQAv2, GQA, TextVQA, MME, SEED-Bench, MMBench, captions"),
    "presets": ("eval_presets", "list the published protocols that --preset checks"),
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
        text = "Scores, each written to a file with the protocol it was measured under."
        overview("smalti eval", KINDS, text, "kind").parse_args([name])
        return 0
    module = chosen(KINDS, name, f"smalti eval cannot score {name!r}")
    return run_chosen(f"smalti eval {name}", KINDS, module, arguments[2:])
