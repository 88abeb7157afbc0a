"""``smalti sample``: pictures for prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_decoder, add_model, add_scale, number
from .drawing import Drawing
from .errors import UsageError
from .jobs import Jobs
from .models import device_name, load_pictures, model_folder
from .outputs import Target, file_target, folder_line, picture_target, say, write_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.processes import Processes
    from ..generation.orders import Order
    from ..generation.pictures import PicturePipeline
    from ..generation.sampler import Progress

#: Several processes draw; see `run_chosen`.
SHARES_WORK = True

_LAST_SEED = 2**63 - 1

#: Options that decide how codes are drawn, by the name of the field that they set.
_SETTINGS = (
    "guidance",
    "guidance_start",
    "guided_from",
    "guided_steps",
    "temperature",
    "top_k",
    "top_p",
    "candidates",
    "steps",
)


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
        help="how closely to follow the prompt; 1 is off (default, as for the next nine: the model's own)",
    )
    parser.add_argument("--guidance-start", type=number(float), help="guidance of the first pass, if another")
    parser.add_argument("--guided-from", type=number(least=0), metavar="PASS", help="first pass that is guided")
    parser.add_argument("--guided-steps", type=number(least=0), metavar="PASS", help="first pass after guidance")
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
    parser.add_argument("--steps", type=number(least=1), help="passes of a model that is no language model")
    parser.add_argument(
        "--order",
        metavar="NAME",
        help="in which positions are written, as raster or masked:passes=12,noise=0",
    )
    parser.add_argument(
        "--preview",
        metavar="FOLDER",
        help="write a picture for every pass too, with code 0 where nothing is written yet; of one picture alone",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the model (default: float32); what turns codes into pixels stays as it is",
    )
    parser.add_argument(
        "--batch",
        type=number(least=1),
        default=1,
        help="pictures drawn together (default: 1); more is faster, but single levels of a pixel may then depend on "
        "the other prompts",
    )
    add_decoder(parser, "the model's own")
    add_scale(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Draw ``--count`` pictures for every prompt and write them; the same prompt, seed and settings are the same bytes.

    Into a folder the pictures come all at once in the end. A command that was killed goes on where it stopped.

    Raises:
        UsageError: no prompt, an empty one, more pictures than a sheet holds, an output that cannot be written, or
            options that the model has no use for.
        ValueError: sampling settings out of range, an order that is unknown or not for the model, a word that the
            vocabulary lacks, or a damaged model.
        FileNotFoundError: no model, or no file of prompts.
    """
    prompts = read_prompts(args.prompt, args.prompts)
    target = picture_target(args.out)
    target.check_count(len(prompts) * args.count)
    passes = None if args.preview is None else _preview_target(args.preview)
    if args.seed + args.count - 1 > _LAST_SEED:
        raise UsageError(f"--seed and --count must stay within {_LAST_SEED}, got {args.seed} and {args.count}")
    folder = model_folder(args.model)
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    order = None if args.order is None else read_order(args.order)
    _check_settings({name: value for name, value in given.items() if name != "steps"})
    pipeline = _decoding(load_pictures(folder, args.device), args.decoder)
    sampling = _sampling(pipeline, given)
    jobs = [(prompt, args.seed + offset) for prompt in prompts for offset in range(args.count)]
    _check_use(pipeline, order, passes, len(jobs) * getattr(sampling, "candidates", 1))
    for prompt in prompts:
        pipeline.check_prompt(prompt)
    _prepare(pipeline, args.dtype)
    told: list[Progress] = []
    drawn = Jobs(pipeline, jobs, sampling, args.batch, order, None if passes is None else told.append)
    line = _folder(drawn, target, args) if target.is_folder else _sheet(drawn, target, args, len(prompts))
    if not args.processes.first:
        return 0
    say(line)
    if passes is not None:
        shown = _previews(pipeline, told)
        say(write_pictures(shown, [f"pass {one.done}" for one in told], passes, args.scale))
    return 0


def _sheet(jobs: Jobs, target: Target, args: argparse.Namespace, prompts: int) -> str:
    """Draw everything, then write one file; what to say of it."""
    pictures = jobs.pictures(args.processes)
    if not args.processes.first:
        return ""
    labels = [prompt if args.count == 1 else f"{prompt} (seed {seed})" for prompt, seed in jobs.pairs]
    columns = args.count if args.count > 1 and prompts > 1 else None
    return write_pictures(pictures, labels, target, args.scale, columns)


def _folder(jobs: Jobs, target: Target, args: argparse.Namespace) -> str:
    """Draw into a folder what an earlier run of the same command has not; what to say of it."""
    processes: Processes = args.processes
    plan = processes.gathered(_plan(jobs, args) if processes.first else None)[0]
    drawing = Drawing(target.path, plan, len(jobs.pairs))
    jobs.draw_into(drawing, args.scale or 1, processes)
    if not processes.first:
        return ""
    drawing.finish()
    return folder_line(target.path, drawing.names)


def _plan(jobs: Jobs, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the bytes of the pictures."""
    from ..eval.protocol import folder_hash, versions
    from ..generation.coded import PIXELS

    decoder, device = args.decoder, jobs.pipeline.device
    return {
        "model": folder_hash(model_folder(args.model)),
        "decoder": decoder if decoder in (None, PIXELS) else folder_hash(decoder),
        "jobs": [list(pair) for pair in jobs.pairs],
        "sampling": repr(jobs.sampling),
        "order": None if jobs.order is None else jobs.order.fields(),
        "batch": jobs.batch,
        "dtype": args.dtype,
        "scale": args.scale or 1,
        "device": device_name(device),
        "versions": versions(),
    }


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


def read_order(text: str) -> Order:
    """The order that ``--order`` names, ``masked`` or with options ``masked:passes=12,noise=0``.

    Raises:
        UsageError: options that are no numbers.
        ValueError: an unknown order, or options that it does not have or that are out of range.
    """
    from ..generation.orders import ORDERS, order_of

    kind, _, rest = text.partition(":")
    known = signature(ORDERS[kind]).parameters if kind in ORDERS else {}
    options: dict[str, Any] = {"kind": kind}
    for option in filter(None, rest.split(",")):
        name, _, value = option.partition("=")
        usual = known[name].default if name in known else 0.0
        try:
            options[name] = number(type(usual))(value)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{name} of --order {error}; write it as {kind}:{name}={usual}") from error
    return order_of(options)


def _preview_target(given: str) -> Target:
    return Target(file_target(str(Path(given) / "0001.png"), "--preview", ".png").parent, is_folder=True)


def _check_settings(given: dict[str, Any]) -> None:
    """What is out of range is said before anything is loaded."""
    from ..generation.sampling import Sampling

    Sampling(**given)


def _sampling(pipeline: PicturePipeline, given: dict[str, Any]) -> Any:
    """How a model draws by itself, but for what is given."""
    own = pipeline.sampling
    known = [field.name for field in fields(own)]
    if foreign := [name for name in given if name not in known]:
        flags = ", ".join(_flag(name) for name in _SETTINGS if name in known)
        raise UsageError(f"{_flag(foreign[0])} is not for this model, which takes {flags}; leave it out")
    also = {"temperatures": None} if "temperature" in given and "temperatures" in known else {}
    return replace(own, **given, **also)


def _decoding(pipeline: PicturePipeline, decoder: str | None) -> PicturePipeline:
    """A pipeline with what ``--decoder`` names."""
    from ..generation.coded import PIXELS, CodePipeline

    if decoder is None:
        return pipeline
    if not isinstance(pipeline, CodePipeline):
        raise UsageError(f"--decoder turns codes into pixels, got a {type(pipeline).__name__} without; leave it out")
    return pipeline.with_decoder(None if decoder == PIXELS else decoder)


def _check_use(pipeline: PicturePipeline, order: Order | None, passes: Target | None, pictures: int) -> None:
    from ..generation.pipeline import TextToImagePipeline

    asked = [flag for flag, value in (("--order", order), ("--preview", passes)) if value is not None]
    if asked and not isinstance(pipeline, TextToImagePipeline):
        raise UsageError(f"{asked[0]} is for language models, got a {type(pipeline).__name__}; leave it out")
    if passes is not None and pictures > 1:
        raise UsageError(
            f"--preview follows the passes of 1 picture, got {pictures}; give one prompt, --count 1 and --candidates 1"
        )


def _prepare(pipeline: PicturePipeline, dtype: str | None) -> None:
    """Bring what writes codes or latents to a precision, and a language model on a CPU to its fastest form.

    The tokenizer stays, because its codes must stay the same.
    """
    import torch

    from ..lm.model import SharedLM
    from ..lm.saved import SavedModel

    packable = (torch.float32, torch.bfloat16)
    for part in pipeline.components.values():
        if dtype is not None and isinstance(part, SavedModel):
            torch.nn.Module.to(part, getattr(torch, dtype))  # transformers leaves its own override untyped
        if isinstance(part, SharedLM) and part.device.type == "cpu" and part.dtype in packable:
            part.pack()


def _previews(pipeline: PicturePipeline, told: Sequence[Progress]) -> list[Image]:
    from ..data.transforms import to_pil
    from ..generation.pipeline import TextToImagePipeline

    assert isinstance(pipeline, TextToImagePipeline)
    return [picture for progress in told for picture in to_pil(pipeline.preview(progress))]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"--prompts must be a text file, got {str(file)!r}, which is none; check the path")
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts must be UTF-8 text, got other bytes in {file}; save it as UTF-8") from error
