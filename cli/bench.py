"""``smalti bench``: several tokenizers, trained on the same pictures for the same number of steps, in one table."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ..data.base import ImageSource
from ..eval.comparison import ComparisonData, compare_tokenizer, comparison_protocol, originals
from ..eval.comparison_report import write_comparison
from ..eval.extractor import TeacherFeatures
from ..lm.vocabulary import Vocabulary
from ..training.recipe import Recipe, Stage, read_yaml, stages_of, timings
from .errors import UsageError
from .models import choose_device, quiet
from .outputs import say as answer
from .run import ACTIONS, CHECKS, carry_out, check_typed, list_stages, say, typed

_KEYS = ("folder", "before", "training", "families", "compare")
_LAST = "comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti bench``."""
    parser.add_argument("what", choices=["tokenizers"], help="what is compared")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="YAML: the families and what they share")
    parser.add_argument("--folder", metavar="DIR", help="where to write instead of the folder that the file names")
    parser.add_argument("--list", action="store_true", help="show the stages and which of them would run; run none")


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, measure everything, write and print the table.

    Raises:
        InterruptedRunError: Ctrl-C; the same command continues.
        FileNotFoundError: no such file, or something that a stage reads is missing.
        ValueError: a file of another form, or wrong arguments anywhere in it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quiet()
    recipe = bench_recipe(args.config, args.folder)
    actions, checks = ACTIONS | {"compare": typed(compare)}, CHECKS | {"compare": check_typed(compare)}
    if args.list:
        return list_stages(recipe, actions, checks)
    carry_out(recipe, actions, checks)
    answer((recipe.folder / _LAST / "tokenizers.md").read_text().rstrip())
    return 0


def bench_recipe(path: str | Path, folder: str | Path | None = None) -> Recipe:
    """The recipe that a comparison stands for: what comes before, one stage for each family, and the comparison.

    Args:
        path: YAML with ``folder``; ``before``, stages as in a recipe; ``training``, the arguments of ``smalti fit``
            that all share (``model``, ``data``, ``trainer``); ``families``, for each name the arguments of
            :class:`~smalti.training.tokenizer.TokenizerTraining` that are its own, ``tokenizer`` among them; and
            ``compare``, the arguments of :func:`compare`.
        folder: where to write instead of the folder that the file names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another form; the sentence names the key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != set(_KEYS):
        came = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise UsageError(f"{path} must be a mapping with {', '.join(_KEYS)}, got {came}; correct it")
    families, shared = data["families"], data["training"]
    if not isinstance(families, dict) or len(families) < 2:
        raise UsageError(f"{path} must name at least two families to compare, got {families}; add some")
    if not isinstance(shared, dict) or set(shared) != {"model", "data", "trainer"}:
        raise UsageError(f"training in {path} must have model, data and trainer, got {shared}; correct it")
    for name, own in families.items():
        if not isinstance(own, dict) or "tokenizer" not in own:
            raise UsageError(f"family {name!r} in {path} must have a tokenizer, got {own}; add it")
    stages = [
        *stages_of(data["before"] or {}),
        *(Stage(name, "fit", _training(name, own, shared)) for name, own in families.items()),
        Stage(
            _LAST,
            "compare",
            {"models": {name: f"${{{name}}}/model" for name in families}, **data["compare"]},
            ("tokenizers.json", "tokenizers.html", "tokenizers.png", "tokenizers.md"),
        ),
    ]
    return Recipe(Path(folder or str(data["folder"])), tuple(stages))


def compare(
    folder: Path,
    models: dict[str, str],
    pictures: ImageSource,
    probe_train: ImageSource,
    probe_test: ImageSource,
    size: int,
    teacher: str,
    vocabulary: str,
    title: str = "Tokenizers",
    device: str = "auto",
) -> None:
    """Measure saved tokenizers and write the table as JSON, HTML, Markdown and a sheet of pictures.

    Args:
        folder: of the stage.
        models: folders of tokenizers by name, in the order of the table.
        pictures: reconstructed.
        probe_train: pictures whose captions are their classes; the linear probe is fitted to them.
        probe_test: others of the same classes.
        size: side that pictures are cropped and resized to, pixels.
        teacher: folder of the SigLIP whose features rFID is measured in and whose text tower names classes.
        vocabulary: folder of its vocabulary.
        title: of the page.
        device: where tokenizers run: ``auto`` is a GPU where there is one.
    """
    where = choose_device(device)
    extractor = TeacherFeatures(teacher, Vocabulary.from_pretrained(vocabulary), where)
    data, rows = ComparisonData(pictures, probe_train, probe_test, size), []
    for name, model in models.items():
        say(f"  {name}")
        rows.append(compare_tokenizer(name, model, data, extractor, where))
    protocol = comparison_protocol(data, extractor, list(models))
    seconds = {name: time for name, time in timings(folder.parent).items() if name in models}
    write_comparison(folder, title, rows, protocol, originals(data), seconds)


def _training(name: str, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    arguments = {**shared["model"], **own, "save_to": f"${{{name}}}/model"}
    return {**shared, "model": {"class_path": "TokenizerTraining", "init_args": arguments}}
