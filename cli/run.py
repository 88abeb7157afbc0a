"""``smalti run``: a recipe from its first unfinished stage to its last."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..data.base import ImageSource
from ..data.files import atomic_file
from ..eval.scene_report import write_scene_report
from ..eval.suite import SuiteSettings, score_scenes
from ..generation.pipeline import TextToImagePipeline
from ..lm.vocabulary import Vocabulary
from ..tokenizers.base import VisualTokenizer
from ..training.encode import encode_source, texts_of
from ..training.recipe import Action, Recipe, run_recipe, timings
from .fit import import_vocabulary, run_lightning
from .progress import Bar
from .typed import build_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti run``."""
    parser.add_argument("recipe", help="YAML file with the stages")
    parser.add_argument("--folder", help="where to write instead of the folder that the recipe names")


def run(args: argparse.Namespace) -> int:
    """Carry out what is left of a recipe; arguments of all stages are checked before the first one starts."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    recipe = Recipe.load(args.recipe, args.folder)
    import_vocabulary()
    run_recipe(recipe, ACTIONS, say)
    say(f"finished: {recipe.folder}")
    return 0


def say(line: str) -> None:
    """One line on standard error, where progress goes."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def fit(folder: Path, arguments: dict[str, Any]) -> None:
    """Run ``smalti fit`` with ``arguments`` as its configuration, from the stage's last checkpoint if there is one."""
    trainer = {**arguments.get("trainer", {}), "default_root_dir": str(folder)}
    with atomic_file(folder / "fit.yaml") as file:
        file.write_text(yaml.safe_dump({**arguments, "trainer": trainer}))
    last = ["--ckpt_path", "last"] if (folder / "last.ckpt").is_file() else []
    run_lightning(["fit", "-c", str(folder / "fit.yaml"), *last])


def vocabulary(folder: Path, source: ImageSource, size: int = 8000, model_type: str = "word") -> None:
    """Train a sentencepiece model on the captions, questions and answers of a source."""
    with Bar("texts", len(source)) as bar:
        Vocabulary.train(texts_of(source, bar.update), size, model_type).save_pretrained(folder)  # type: ignore[arg-type]


def encode(folder: Path, tokenizer: str, train: ImageSource, validation: ImageSource | None = None) -> None:
    """Code the pictures of one or two sources into the token stores ``train`` and ``validation``."""
    model = VisualTokenizer.from_pretrained(tokenizer)
    for name, source in (("train", train), ("validation", validation)):
        if source is not None:
            with Bar(name, len(source)) as bar:
                encode_source(model, source, progress=bar.update).save(folder / name)


def score(folder: Path, model: str, settings: SuiteSettings) -> None:
    """Measure a model of scenes: ``scores.json``, the evidence, and two picture sheets."""
    evidence = score_scenes(TextToImagePipeline.from_pretrained(model), folder, settings, lambda line: say(f"  {line}"))
    evidence.write_sheets(folder)


def report(folder: Path, scores: str, title: str, logs: dict[str, str] | None = None) -> None:
    """Write ``report.html`` from the folder of a ``score`` stage and the folders of ``fit`` stages."""
    folders = {name: Path(path) for name, path in (logs or {}).items()}
    write_scene_report(folder / "report.html", title, Path(scores), folders, stages=timings(folder.parent))


def _typed(function: Callable[..., None]) -> Action:
    def action(folder: Path, arguments: dict[str, Any]) -> None:
        function(folder, **build_arguments(function, arguments, skip={"folder"}))

    return action


#: What a stage of a recipe can run.
ACTIONS: dict[str, Action] = {
    "fit": fit,
    **{function.__name__: _typed(function) for function in (vocabulary, encode, score, report)},
}
