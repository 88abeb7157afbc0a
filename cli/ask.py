"""``smalti ask``: answers to questions about a picture, in the model's own words or out of given ones."""

from __future__ import annotations

import argparse

from .arguments import add_model
from .errors import UsageError
from .models import load_pipeline, model_folder
from .outputs import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti ask``."""
    parser.add_argument("picture", help="a picture")
    parser.add_argument("question", nargs="+", help="questions about it")
    parser.add_argument(
        "--choices",
        metavar="A,B,...",
        type=_choices,
        help="answers to choose from, separated by commas: the likeliest is given (default: the model's own words)",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answer to a question, or one line ``question answer`` for each of several.

    Raises:
        BrokenImageError: no picture at that path.
        UsageError: an empty question.
        FileNotFoundError: a missing model.
        ValueError: a word that the vocabulary lacks, a question too long for the model, or a damaged model.
    """
    questions = [question.strip() for question in args.question]
    if "" in questions:
        raise UsageError(f"every question must have words, got {args.question}; ask something")

    from ..data.decoding import decode
    from ..data.transforms import Crop, to_tensor

    picture = decode(args.picture)
    pipeline = load_pipeline(model_folder(args.model), args.device)
    image = to_tensor(Crop(pipeline.tokenizer.image_size)(picture))
    ids = pipeline.encode(image[None]).ids.expand(len(questions), -1, -1)
    if args.choices is None:
        answers = pipeline.answer_ids(ids, questions)
    else:
        answers = pipeline.choose_ids(ids, questions, [args.choices] * len(questions))
    for question, answer in zip(questions, answers, strict=True):
        say(answer if len(questions) == 1 else f"{question} {answer}")
    return 0


def _choices(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if len(found) < 2 or "" in found:
        raise argparse.ArgumentTypeError(
            f"must be two answers or more with commas between them, got {text!r}; write some as in: yes,no"
        )
    return found
