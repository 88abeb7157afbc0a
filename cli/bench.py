"""``smalti bench``: tokenizers trained alike, in one table, by themselves or each under the same language model;
decoders of their codes; and language models trained in several ways, with several seeds."""

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
from ..eval.decoder_report import write_decoders
from ..eval.decoders import DecoderData, DecoderRow, decoder_protocol, decoder_references, score_decoders
from ..eval.images.decoder_scores import Judges
from ..eval.images.extractors import VisionExtractor
from ..eval.images.teacher import TeacherFeatures
from ..eval.lm_comparison import Scored, read_scored, write_lm_comparison
from ..eval.sampling_speed import sampling_speed
from ..eval.variants import write_variants
from ..generation.detokenizers import Detokenizer
from ..lm.vocabulary import Vocabulary
from ..tokenizers.perceptual import BackboneLoss
from ..training.lm_speed import StepSpeed, step_speed
from ..training.recipe import Recipe, Stage, read_yaml, stages_of, timings
from .bench_stages import decoder_stages, family_stages, language_model_stages, run_names, variant_stages
from .errors import UsageError
from .models import choose_device, load_decoder, load_tokenizer, quiet
from .outputs import say as answer
from .progress import Bar
from .run import ACTIONS, CHECKS, add_stage_arguments, carry_out, check_typed, list_stages, say, typed
from .typed import build_arguments

_LAST = "comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti bench``."""
    told = "what is compared: tokenizers, decoders of their codes, language models on them, or ways of training one"
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
            :class:`~smalti.training.tokenizer.TokenizerTraining` that are its own, ``tokenizer`` among them. Decoders
            have the same keys; theirs are of :class:`~smalti.training.decoder.DecoderTraining`, and ``tokenizer`` is a
            folder. Variants
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


def compare_decoders(
    folder: Path,
    tokenizers: dict[str, str],
    training: dict[str, str],
    pictures: ImageSource,
    teacher: str,
    title: str = "Decoders",
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Decode the same codes with every decoder of a tokenizer and write the table, a page and a sheet of pictures.

    Args:
        folder: of the stage.
        tokenizers: folders of tokenizers by name, in the order of the table.
        training: folders of the ``fit`` stages of the decoders that were trained beside them.
        pictures: coded and decoded; where they are scenes of the embedded world, their objects are judged.
        teacher: folder of a vision model: of the features of rFID and agreement, and of the perceptual distance.
        title: of the page.
        batch_size: pictures handled together.
        seed: of what decoders draw, and of the untrained ones.
        device: where everything runs: ``auto`` is a GPU where there is one.
    """
    where, seconds = choose_device(device), timings(folder.parent)
    network = VisionExtractor(teacher, where)
    judges = Judges(network, network, perceptual=BackboneLoss(teacher).to(where), device=where)
    size = load_tokenizer(Path(next(iter(tokenizers.values()))), where).image_size
    data = DecoderData(pictures, size, batch_size, seed)
    references, decoders, rows = decoder_references(data, judges), dict[str, Detokenizer](), list[DecoderRow]()
    for name, place in tokenizers.items():
        tokenizer, fit = load_tokenizer(Path(place), where), Path(training[name])
        decoders[name] = load_decoder(fit / "decoder", tokenizer)
        with Bar(name, len(pictures)) as bar:
            found = score_decoders(name, tokenizer, decoders[name], data, judges, progress=bar.update)
        rows += [_with_training(row, fit, seconds) for row in found]
    write_decoders(folder, title, rows, references, decoder_protocol(data, judges, references, decoders), seconds)


def _with_training(row: DecoderRow, fit: Path, seconds: Mapping[str, float]) -> DecoderRow:
    """Of what was trained here, with steps and seconds of that."""
    if row.kind != "trained":
        return row
    taken = {"steps": read_yaml(fit / "fit.yaml")["trainer"].get("max_steps"), "seconds": seconds.get(fit.name)}
    return replace(row, scores={**row.scores, **{name: value for name, value in taken.items() if value is not None}})


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


def _common(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the training of all language models has in common: a ``fit.yaml`` without what is a family's or a path."""
    model, own = data["model"]["init_args"], ("tokenizer", "save_to", "vocabulary", "train", "validation")
    parts = {**model, **data["data"]["init_args"], **data["trainer"]}
    return {name: value for name, value in parts.items() if name not in (*own, "default_root_dir")}


#: What can be compared, by the name on the command line.
BENCHES = {
    "tokenizers": Bench(
        ("training", "families"),
        lambda path, data: family_stages(path, data, lambda name, data: []),
        lambda data: {"models": {name: f"${{{name}}}/model" for name in data["families"]}},
        compare,
    ),
    "decoders": Bench(
        ("training", "families"),
        decoder_stages,
        lambda data: {
            "tokenizers": {name: own["tokenizer"] for name, own in data["families"].items()},
            "training": {name: f"${{{name}-decoder}}" for name in data["families"]},
        },
        compare_decoders,
    ),
    "lm": Bench(
        ("training", "families", "codes", "lm", "score"),
        lambda path, data: family_stages(path, data, language_model_stages),
        lambda data: {
            "scores": {name: f"${{{name}-scores}}" for name in data["families"]},
            "training": {name: f"${{{name}-lm}}" for name in data["families"]},
        },
        compare_lm,
    ),
    "variants": Bench(
        ("lm", "variants", "seeds", "score"),
        variant_stages,
        lambda data: {"scores": run_names(data, "${{{}-scores}}"), "models": run_names(data, "${{{}}}/model")},
        compare_variants,
    ),
}
