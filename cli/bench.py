"""``smalti bench``: tokenizers trained alike, in one table, by themselves or each under the same language model; and
language models trained in several ways, with several seeds."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from ..data.base import ImageSource
from ..eval.comparison import ComparisonData, compare_tokenizer, comparison_protocol, originals
from ..eval.comparison_report import write_comparison
from ..eval.images.teacher import TeacherFeatures
from ..eval.lm_comparison import Scored, read_scored, write_lm_comparison
from ..eval.sampling_speed import sampling_speed
from ..eval.variants import write_variants
from ..lm.vocabulary import Vocabulary
from ..training.lm_speed import StepSpeed, step_speed
from ..training.recipe import Recipe, Stage, read_yaml, stages_of, timings
from .errors import UsageError
from .models import choose_device, quiet
from .outputs import say as answer
from .run import ACTIONS, CHECKS, add_stage_arguments, carry_out, check_typed, list_stages, say, typed
from .typed import build_arguments

_LAST = "comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti bench``."""
    told = "what is compared: tokenizers, language models on them, or ways of training one"
    parser.add_argument("what", choices=list(BENCHES), help=told)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="YAML: the families and what they share")
    parser.add_argument("--folder", metavar="DIR", help="where to write instead of the folder that the file names")
    add_stage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, measure everything, write and print the table.

    Raises:
        InterruptedRunError: Ctrl-C; the same command continues.
        FileNotFoundError: no such file, or something that a stage reads is missing.
        ValueError: a file of another form, or wrong arguments anywhere in it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quiet()
    recipe, compare = bench_recipe(args.what, args.config, args.folder), BENCHES[args.what].compare
    actions, checks = ACTIONS | {"compare": typed(compare)}, CHECKS | {"compare": check_typed(compare)}
    if args.list:
        return list_stages(recipe, actions, checks)
    carry_out(recipe, actions, checks, args.only)
    if args.only is None or _LAST in args.only:
        answer((recipe.folder / _LAST / f"{args.what}.md").read_text().rstrip())
    return 0


def bench_recipe(what: str, path: str | Path, folder: str | Path | None = None) -> Recipe:
    """The recipe that a comparison stands for: what comes before, the stages of what is compared, and the comparison.

    Args:
        what: is compared, a name in :data:`BENCHES`.
        path: YAML with ``folder``; ``before``, stages as in a recipe; the keys of the kind; and ``compare``, the other
            arguments of its comparison. Families of tokenizers have ``training``, the arguments of ``smalti fit`` that
            all share (``model``, ``data``, ``trainer``), and ``families``, for each name the arguments of
            :class:`~smalti.training.tokenizer.TokenizerTraining` that are its own, ``tokenizer`` among them. Variants
            have ``lm``, likewise, ``variants``, for each name the arguments of
            :class:`~smalti.training.lm.LanguageModelTraining` that are its own and under ``data`` those of the data,
            and ``seeds`` to train each with.
        folder: where to write instead of the folder that the file names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another form; the sentence names the key.
    """
    bench, data = BENCHES[what], read_yaml(path)
    keys = ("folder", "before", *bench.keys, "compare")
    if not isinstance(data, dict) or set(data) != set(keys):
        came = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise UsageError(f"{path} must be a mapping with {', '.join(keys)}, got {came}; correct it")
    stages = [*stages_of(data["before"] or {}), *bench.stages(str(path), data)]
    files = tuple(f"{what}.{kind}" for kind in ("json", "html", "png", "md"))
    stages.append(Stage(_LAST, "compare", {**bench.reads(data), **data["compare"]}, files))
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
    world: Literal["full", "small"] | None = None,
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
        world: embedded world that the tokenizers were trained on: the table then has a column of ceilings.
        device: where tokenizers run: ``auto`` is a GPU where there is one.
    """
    where = choose_device(device)
    extractor = TeacherFeatures(teacher, Vocabulary.from_pretrained(vocabulary), where)
    data, rows = ComparisonData(pictures, probe_train, probe_test, size, world=world), []
    for name, model in models.items():
        say(f"  {name}")
        rows.append(compare_tokenizer(name, model, data, extractor, where))
    protocol = comparison_protocol(data, extractor, list(models))
    seconds = {name: time for name, time in timings(folder.parent).items() if name in models}
    write_comparison(folder, title, rows, protocol, originals(data), seconds)


def compare_lm(folder: Path, scores: dict[str, str], training: dict[str, str], title: str, steps: int = 20) -> None:
    """Put the scores of language models that differ in their tokenizer alone beside each other, and time their steps.

    Args:
        folder: of the stage.
        scores: folders of ``score`` stages by name, in the order of the table.
        training: folders of the ``fit`` stages of the models that were scored.
        title: of the page.
        steps: of training that the seconds per step are the median of.
    """
    rows, timed, seconds, how = [], dict[str, dict[str, float]](), timings(folder.parent), dict[str, Any]()
    for name, scored in scores.items():
        say(f"  {name}")
        fit = Path(training[name])
        rows.append(read_scored(name, scored, fit / "model"))
        speed = time_step_apart(str(fit / "fit.yaml"), steps)
        taken = {"tokenizer_seconds": seconds.get(name), "lm_seconds": seconds.get(fit.name)}
        timed[name] = {"step_seconds": speed.seconds, **{key: it for key, it in taken.items() if it is not None}}
        how = {"training": _common(read_yaml(fit / "fit.yaml")), "speed": f"{speed.describe()}, a process of its own"}
    write_lm_comparison(folder, title, rows, timed, how, seconds)


def compare_variants(folder: Path, scores: dict[str, list[str]], models: dict[str, list[str]], title: str) -> None:
    """Put means and spreads over seeds of language models that were trained in different ways beside each other, with
    how many passes they write a picture in and how many pictures a second: 16 at a time, and one by one.

    Args:
        folder: of the stage.
        scores: folders of ``score`` stages by variant, one for each seed.
        models: folders of the models that were scored, in the same order.
        title: of the page.
    """
    runs = dict[str, list[Scored]]()
    for name, scored in scores.items():
        say(f"  {name}")
        pairs = zip(scored, models[name], strict=True)
        runs[name] = [_timed(read_scored(f"{name} {at}", *pair), pair[1]) for at, pair in enumerate(pairs)]
    write_variants(folder, title, runs, {"speed": "sampling of codes, medians of 5, a process of its own"})


def _timed(row: Scored, model: str) -> Scored:
    """With pictures a second: of 16 at a time, and one by one."""
    prompts = [verdict["prompt"] for verdict in row.evidence.verdicts]
    wanted = [prompts[index % len(prompts)] for index in range(16)]
    many, alone = sampling_speed(model, wanted, (16, 1))
    return replace(row, numbers={**row.numbers, "images_per_second": many, "images_per_second_alone": alone})


def time_step_apart(configuration: str, steps: int) -> StepSpeed:
    """As :func:`time_step`, in a process of its own, so that nothing that ran before counts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(time_step, configuration, steps).result()


def time_step(configuration: str, steps: int) -> StepSpeed:
    """How long a training step takes of the language model that a ``fit.yaml`` describes.

    Args:
        configuration: the file.
        steps: timed.

    Raises:
        FileNotFoundError: no such file, or something that it names is missing.
        ValueError: wrong arguments in it.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of Lightning 2.6 beside torch 2.13
    data = read_yaml(configuration)
    options = {name: value for name, value in data["trainer"].items() if name in ("precision", "accelerator")}
    arguments = {"model": data["model"], "data": data["data"], **options, "steps": steps}
    return step_speed(**build_arguments(step_speed, arguments, set()))


@dataclass(frozen=True)
class Bench:
    """One kind of comparison: what its file has and what becomes of it."""

    keys: tuple[str, ...]  #: of the file, besides those that every kind has
    stages: Callable[[str, Mapping[str, Any]], list[Stage]]  #: of what is compared, from the file's name and content
    reads: Callable[[Mapping[str, Any]], dict[str, Any]]  #: the arguments of ``compare`` that name those stages
    compare: Callable[..., None]  #: measures and writes the files


def _families(
    path: str, data: Mapping[str, Any], after: Callable[[str, Mapping[str, Any]], list[Stage]]
) -> list[Stage]:
    """The stages of every family: its tokenizer, and what comes after it."""
    families, stages = data["families"], list[Stage]()
    if not isinstance(families, dict) or len(families) < 2:
        raise UsageError(f"{path} must name at least two families to compare, got {families}; add some")
    for name, own in families.items():
        if not isinstance(own, dict) or "tokenizer" not in own:
            raise UsageError(f"family {name!r} in {path} must have a tokenizer, got {own}; add it")
        stages += [_tokenizer(name, own, data["training"]), *after(name, data)]
    return stages


def _variants(path: str, data: Mapping[str, Any]) -> list[Stage]:
    """A language model and its scores for every variant and seed."""
    variants, seeds, shared, stages = data["variants"], data["seeds"], _run("lm", data["lm"]), list[Stage]()
    if not isinstance(variants, dict) or len(variants) < 2:
        raise UsageError(f"{path} must name at least two variants to compare, got {variants}; add some")
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds in {path} must be a list of different numbers, got {seeds}; name one at least")
    for name, own in variants.items():
        for seed in seeds:
            model = f"{name}-{seed}"
            fixed = {"seed": seed, "save_to": f"${{{model}}}/model"}
            given = dict(own or {})
            stored, other = dict(shared["data"]), given.pop("data", {})
            if other:
                stored["init_args"] = {**stored.get("init_args", {}), **other}
            arguments = _joined(f"variants.{name}", {**shared["model"], **given}, fixed)
            fit = {**shared, "model": {"class_path": "LanguageModelTraining", "init_args": arguments}, "data": stored}
            stages.append(Stage(model, "fit", fit))
            scored = {"model": f"${{{model}}}/model", "settings": data["score"]}
            stages.append(Stage(f"{model}-scores", "score", scored))
    return stages


def _runs(data: Mapping[str, Any], of: str) -> dict[str, list[str]]:
    return {name: [of.format(f"{name}-{seed}") for seed in data["seeds"]] for name in data["variants"]}


def _tokenizer(name: str, own: dict[str, Any], shared: Any) -> Stage:
    shared = _run("training", shared)
    arguments = {**shared["model"], **own, "save_to": f"${{{name}}}/model"}
    return Stage(name, "fit", {**shared, "model": {"class_path": "TokenizerTraining", "init_args": arguments}})


def _language_model(name: str, data: Mapping[str, Any]) -> list[Stage]:
    """From the tokenizer of a family to the scores of a language model on its codes."""
    codes, model, shared = f"{name}-codes", f"{name}-lm", _run("lm", data["lm"])
    tokenizer = {"tokenizer": f"${{{name}}}/model"}
    encode = _joined("codes", data["codes"], tokenizer)
    own = {**tokenizer, "save_to": f"${{{model}}}/model"}
    stored = {split: f"${{{codes}}}/{split}" for split in ("train", "validation") if split in data["codes"]}
    fit = {
        "model": {"class_path": "LanguageModelTraining", "init_args": _joined("lm.model", shared["model"], own)},
        "data": {"class_path": "TokenData", "init_args": _joined("lm.data", shared["data"], stored)},
        "trainer": shared["trainer"],
    }
    return [
        Stage(codes, "encode", encode),
        Stage(model, "fit", fit),
        Stage(f"{name}-scores", "score", {"model": f"${{{model}}}/model", "settings": data["score"]}),
    ]


def _common(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the training of all language models has in common: a ``fit.yaml`` without what is a family's or a path."""
    model, own = data["model"]["init_args"], ("tokenizer", "save_to", "vocabulary", "train", "validation")
    parts = {**model, **data["data"]["init_args"], **data["trainer"]}
    return {name: value for name, value in parts.items() if name not in (*own, "default_root_dir")}


def _run(place: str, shared: Any) -> dict[str, Any]:
    if not isinstance(shared, dict) or set(shared) != {"model", "data", "trainer"}:
        raise UsageError(f"{place} must have model, data and trainer, got {shared}; correct it")
    return shared


def _joined(place: str, shared: Any, own: dict[str, str]) -> dict[str, Any]:
    """What all families share, and what each has of its own."""
    given = sorted(set(shared) & set(own)) if isinstance(shared, dict) else [type(shared).__name__]
    if given:
        raise UsageError(
            f"{place} must be a mapping without {', '.join(own)}, which every family has of its own, got "
            f"{', '.join(given)}; correct it"
        )
    return {**shared, **own}


#: What can be compared, by the name on the command line.
BENCHES = {
    "tokenizers": Bench(
        ("training", "families"),
        lambda path, data: _families(path, data, lambda name, data: []),
        lambda data: {"models": {name: f"${{{name}}}/model" for name in data["families"]}},
        compare,
    ),
    "lm": Bench(
        ("training", "families", "codes", "lm", "score"),
        lambda path, data: _families(path, data, _language_model),
        lambda data: {
            "scores": {name: f"${{{name}-scores}}" for name in data["families"]},
            "training": {name: f"${{{name}-lm}}" for name in data["families"]},
        },
        compare_lm,
    ),
    "variants": Bench(
        ("lm", "variants", "seeds", "score"),
        _variants,
        lambda data: {"scores": _runs(data, "${{{}-scores}}"), "models": _runs(data, "${{{}}}/model")},
        compare_variants,
    ),
}
