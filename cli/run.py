"""``smalti run``: a recipe from its first unfinished stage to its last."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..data.base import ImageSource
from ..data.files import atomic_file
from ..data.places import check_place
from ..data.transforms import Crop, CropMode
from ..eval.picture_scores import score_pictures
from ..eval.protocol import read_result
from ..eval.scene_report import write_scene_report
from ..eval.suite import SuiteSettings, score_scenes
from ..generation.pipeline import TextToImagePipeline
from ..lm.vocabulary import Vocabulary
from ..training.encode import texts_of
from ..training.recipe import Action, Recipe, State, check_recipe, plan_recipe, run_recipe, timings
from ..training.tokenize import TokenizeSettings, tokenize_source
from .errors import InterruptedRunError, UsageError
from .fit import check_configuration, import_vocabulary, run_lightning
from .models import load_pictures, load_tokenizer, quiet
from .outputs import say as answer
from .progress import Bar
from .typed import build_arguments, check_arguments

_PLANS: dict[State, str] = {
    "finished": "finished, is skipped",
    "interrupted": "interrupted, continues",
    "changed": "changed, runs anew",
    "new": "new, runs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti run``."""
    parser.add_argument("recipe", help="YAML file with the stages")
    parser.add_argument("--folder", metavar="DIR", help="where to write instead of the folder that the recipe names")
    add_stage_arguments(parser)


def add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which stages to run, of a recipe or of what stands for one."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--list", action="store_true", help="show the stages and which of them would run; run none")
    told = "run these alone; processes or machines that share the folder can each take some"
    group.add_argument("--only", nargs="+", metavar="STAGE", help=told)


def run(args: argparse.Namespace) -> int:
    """Carry out what is left of a recipe; arguments of all stages are checked before the first one starts.

    Raises:
        InterruptedRunError: Ctrl-C.
        FileNotFoundError: no recipe, or something that a stage reads is missing.
        ValueError: no recipe, or a stage with wrong arguments.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quiet()
    recipe = Recipe.load(args.recipe, args.folder)
    import_vocabulary()
    if args.list:
        return list_stages(recipe, ACTIONS, CHECKS)
    carry_out(recipe, ACTIONS, CHECKS, args.only)
    return 0


def carry_out(
    recipe: Recipe, actions: Mapping[str, Action], checks: Mapping[str, Action], only: Collection[str] | None = None
) -> None:
    """Run what is left of a recipe, or of some of its stages, and say so.

    Raises:
        InterruptedRunError: Ctrl-C.
        ValueError: as :func:`~smalti.training.recipe.run_recipe` does, or a folder that cannot be written.
    """
    check_place(recipe.folder / recipe.stages[0].name, "the folder of the run")
    try:
        run_recipe(recipe, actions, say, checks, only)
    except (KeyboardInterrupt, InterruptedRunError) as error:
        raise InterruptedRunError("interrupted; the same command continues") from error
    say(f"finished: {recipe.folder if only is None else ', '.join(only)}")


def list_stages(recipe: Recipe, actions: Mapping[str, Action], checks: Mapping[str, Action]) -> int:
    """Check a recipe and print what would happen to each of its stages."""
    check_recipe(recipe, actions, checks)
    width = max(len(stage.name) for stage in recipe.stages)
    for planned in plan_recipe(recipe):
        answer(f"{planned.name:<{width}}  {_PLANS[planned.state]}")
    return 0


def say(line: str) -> None:
    """One line on standard error, where progress goes."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def fit(folder: Path, arguments: dict[str, Any]) -> None:
    """Run ``smalti fit`` with ``arguments`` as its configuration, from the stage's last checkpoint if there is one."""
    configuration = folder / "fit.yaml"
    with atomic_file(configuration) as file:
        file.write_text(yaml.safe_dump(_configuration(folder, arguments)))
    last = ["--ckpt_path", "last"] if (folder / "last.ckpt").is_file() else []
    try:
        run_lightning(["fit", "-c", str(configuration), *last])
    except Exception:
        if not (folder / "logs").exists():  # refused before anything was done
            configuration.unlink()
        raise


def vocabulary(folder: Path, source: ImageSource, size: int = 8000, model_type: str = "word") -> None:
    """Train a sentencepiece model on the captions, questions and answers of a source."""
    with Bar("texts", len(source)) as bar:
        Vocabulary.train(texts_of(source, bar.update), size, model_type).save_pretrained(folder)  # type: ignore[arg-type]


def encode(
    folder: Path,
    tokenizer: str,
    train: ImageSource,
    validation: ImageSource | None = None,
    workers: int = 0,
    device: str = "auto",
    *,
    crop: CropMode = "center",
    flip: bool = False,
    crops: int = 1,
    shard_size: int = 10_000,
) -> None:
    """Code the pictures of one or two sources into the token stores ``train`` and ``validation``, without broken ones.

    Args:
        folder: of the stage.
        tokenizer: folder of the tokenizer.
        train: pictures to train on.
        validation: others to validate on.
        workers: processes that read pictures; 0 reads in this one.
        device: where the tokenizer runs: ``auto`` is a GPU where there is one.
        crop: of the training pictures; those to validate on are cropped at the center, once.
        flip: mirror every second crop, by chance.
        crops: of every training picture.
        shard_size: pictures of a shard.
    """
    drawn = Crop(1, crop, flip=flip)
    TokenizeSettings(drawn, crops, shard_size=shard_size)  # what is wrong is told before anything is loaded
    model = load_tokenizer(Path(tokenizer), device)
    common: dict[str, Any] = {"workers": workers, "shard_size": shard_size, "on_error": "skip"}
    chosen = TokenizeSettings(replace(drawn, size=model.image_size), crops, **common)
    plain = TokenizeSettings(Crop(model.image_size), **common)
    for name, source, settings in (("train", train, chosen), ("validation", validation, plain)):
        if source is not None:
            named = f"{type(source).__name__} {name}"
            with Bar(name, len(source)) as bar:
                done = tokenize_source(model, source, folder / name, named, settings, bar.update)
            if done.index is None:
                raise ValueError(
                    f"the token store {folder / name} must be finished, got one that another process is at; wait for "
                    "it and run again"
                )


def score(folder: Path, model: str, settings: SuiteSettings, device: str = "auto") -> None:
    """Measure a model of scenes: ``scores.json`` and picture sheets; of a language model, the evidence too.

    Args:
        folder: of the stage.
        model: folder of the model.
        settings: what is measured on how much.
        device: where the model runs: ``auto`` is a GPU where there is one.
    """
    pipeline = load_pictures(Path(model), device)
    if isinstance(pipeline, TextToImagePipeline):
        score_scenes(pipeline, folder, settings, lambda line: say(f"  {line}")).write_sheets(folder)
    else:
        score_pictures(pipeline, folder, settings)
    say(f"  {_headline(read_result(folder / 'scores.json').scores)}")


def report(folder: Path, scores: str, title: str, logs: dict[str, str] | None = None) -> None:
    """Write ``report.html`` from the folder of a ``score`` stage and the folders of ``fit`` stages."""
    folders = {name: Path(path) for name, path in (logs or {}).items()}
    write_scene_report(folder / "report.html", title, Path(scores), folders, stages=timings(folder.parent))
    say(f"  {folder / 'report.html'}")


def _headline(scores: Any) -> str:
    drawn, untrained = scores["scene_eval"], scores["baselines"]["untrained"]["scene_eval"]
    if "qa" not in scores:
        return (
            f"SceneEval {drawn['overall']:.3f} (untrained {untrained['overall']:.3f}, chance {drawn['chance']:.3f}, "
            f"ceiling {drawn['ceiling']:.3f}); {scores['images_per_second']:.1f} images/s"
        )
    qa, told = scores["qa"], scores["captions"]
    parts = [
        f"PSNR {scores['reconstruction']['psnr']:.1f} dB",
        f"questions {qa['accuracy']:.3f} (blind {qa['blind']:.3f})",
        f"captions {told['true']:.3f} (of other pictures {told['chance']:.3f})",
        f"SceneEval {drawn['overall']:.3f} (chance {drawn['chance']:.3f}, ceiling {drawn['ceiling']:.3f})",
    ]
    return "; ".join(parts)


def _configuration(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    trainer = arguments.get("trainer", {})
    if not isinstance(trainer, dict):
        raise UsageError(f"trainer must be a mapping of options, got {type(trainer).__name__}; correct it")
    return {**arguments, "trainer": {**trainer, "default_root_dir": str(folder)}}


def _check_fit(folder: Path, arguments: dict[str, Any]) -> None:
    check_configuration("fit", _configuration(folder, arguments))


def typed(function: Callable[..., None]) -> Action:
    """An action that calls ``function(folder, ...)`` with arguments built from plain data by its signature."""

    def action(folder: Path, arguments: dict[str, Any]) -> None:
        function(folder, **build_arguments(function, arguments, skip={"folder"}))

    return action


def check_typed(function: Callable[..., None]) -> Action:
    """The check of :func:`typed`: the same arguments, of which nothing is built that reads files."""

    def check(folder: Path, arguments: dict[str, Any]) -> None:
        check_arguments(function, arguments, skip={"folder"})

    return check


_TYPED = (vocabulary, encode, score, report)

#: What a stage of a recipe can run.
ACTIONS: dict[str, Action] = {"fit": fit, **{function.__name__: typed(function) for function in _TYPED}}

#: What looks at the arguments of a stage before anything runs.
CHECKS: dict[str, Action] = {"fit": _check_fit, **{function.__name__: check_typed(function) for function in _TYPED}}
