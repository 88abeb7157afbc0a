"""``smalti eval understanding``: answers to a benchmark's questions, of a model of ours or from a file, scored."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_model, number
from .errors import UsageError
from .models import load_pipeline, model_folder
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from ..eval.understanding.benchmarks import Benchmark
    from ..eval.understanding.items import Item, Scores

#: Several processes ask; see `run_chosen`.
SHARES_WORK = True

_EXPORT = "export"
_NAMES = ("pope", "vqav2", "gqa", "textvqa", "mme", "seed-bench", "mmbench", "captions")

#: Options of scores, of a model's answers among them, and of the export: each is an error where it does nothing.
_OF_MODEL = ("images", "model", "save_answers", "by")
_OF_SCORES = (*_OF_MODEL, "answers", "out", "normalisation", "suffix", "max_new_tokens", "ocr", "batch")
_OF_EXPORT = ("world", "split", "count", "seed")


@dataclass(frozen=True)
class _Given:
    """Answers, and what is known of how they came about."""

    answers: list[str]
    model: dict[str, str]
    protocol: dict[str, Any]  #: fields of the protocol
    extra: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval understanding``."""
    parser.add_argument(
        "benchmark",
        choices=(*_NAMES, _EXPORT),
        help="what is scored; export writes the embedded world in the formats of pope, vqav2, gqa and captions",
    )
    parser.add_argument(
        "files", nargs="+", help="its official files (vqav2: questions and annotations); export: a folder"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of its pictures, for a model to look at")
    parser.add_argument("--answers", nargs="+", metavar="FILE", help="score these answers (pope: one file per split)")
    parser.add_argument("--out", metavar="JSON", help="file of the scores and their protocol")
    parser.add_argument("--save-answers", metavar="JSONL", help="also write every question with the model's answer")
    parser.add_argument(
        "--normalisation",
        choices=("official", "always", "tokenised"),
        help="compare answers as the benchmark's own script does (default), or after making them alike always; "
        "captions: tokenised takes them as words with spaces between them already",
    )
    parser.add_argument("--suffix", help="text after every question, e.g. ' Answer with one word.'")
    parser.add_argument("--max-new-tokens", type=number(least=1), help="longest answer (default: 8, captions 32)")
    parser.add_argument(
        "--by", choices=("words", "likelihood"), help="write answers (default), or take the likeliest choices"
    )
    parser.add_argument("--ocr", metavar="JSON", help="textvqa: OCR words that stand in the prompt")
    parser.add_argument("--batch", type=number(least=1), help="questions answered together (default: 32)")
    parser.add_argument("--world", choices=("full", "small"), help="export: world of the scenes (default: full)")
    parser.add_argument(
        "--split", choices=("train", "validation", "heldout"), help="export: split of the scenes (default: validation)"
    )
    parser.add_argument("--count", type=number(least=1), help="export: pictures (default: 1000)")
    parser.add_argument("--seed", type=number(least=0), help="export: which scenes (default: 0)")
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Score answers beside what blind guessing scores, or export scenes.

    Raises:
        BrokenImageError: an unreadable picture.
        UsageError: options that do not belong together, or an output that cannot be written.
        FileNotFoundError: a missing file, picture or model.
        ValueError: a damaged file, missing answers, or words that the model's vocabulary lacks.
    """
    _check(args)
    if args.benchmark == _EXPORT:
        return _export(args) if args.processes.first else 0
    out = file_target(args.out, "--out", ".json") if args.out else None
    saved = file_target(args.save_answers, "--save-answers", ".jsonl") if args.save_answers else None

    from ..eval.understanding.benchmarks import BENCHMARKS, score_beside_blind

    benchmark, files = BENCHMARKS[args.benchmark], [Path(name) for name in args.files]
    items = benchmark.read(files)
    given = _read_answers(benchmark, items, args) if args.answers else _ask(items, args)
    if not args.processes.first:
        return 0
    scores, blind = score_beside_blind(benchmark, items, given.answers, args.normalisation or "official")
    for line in _table(scores, blind or {}, benchmark.title):
        say(line)
    if blind is None:
        say("blind: needs questions about two pictures, these are about one")
    if saved is not None:
        _save_answers(saved, items, given.answers)
        say(f"wrote {saved}: {len(items)} answers")
    if out is not None:
        _write(out, benchmark, items, scores, blind, given, args)
        say(f"wrote {out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    exporting = args.benchmark == _EXPORT
    other = _first_given(args, _OF_SCORES if exporting else _OF_EXPORT)
    if other is not None:
        raise UsageError(f"{other} belongs to {'scores' if exporting else _EXPORT}, got {args.benchmark}; drop it")
    other = _first_given(args, _OF_MODEL)
    if args.answers and other is not None:
        raise UsageError(f"--answers are scored as they are, got {other}, which a model needs; drop either")
    if args.suffix is not None and args.benchmark == "captions":
        raise UsageError("--suffix follows a question, got captions, which have none; drop it")
    if args.normalisation == "tokenised" and args.benchmark != "captions":
        raise UsageError(f"--normalisation tokenised belongs to captions, got {args.benchmark}; drop it")
    if args.ocr and args.benchmark != "textvqa":
        raise UsageError(f"--ocr belongs to textvqa, got {args.benchmark}; drop it")
    if len(args.answers or ()) > 1 and args.benchmark != "pope":
        raise UsageError(f"--answers must be one file for {args.benchmark}, got {len(args.answers)}; put them together")


def _first_given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """The first of some options, as it is typed, that the command line has."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None), None)


def _read_answers(benchmark: Benchmark, items: Sequence[Item], args: argparse.Namespace) -> _Given:
    from ..eval.protocol import file_hash, folder_hash, text_hash
    from ..eval.understanding.answers import read_answers, read_split_answers
    from ..eval.understanding.pope import SPLITS

    paths = [Path(name) for name in args.answers]
    if benchmark.split_of is not None and (len(paths) > 1 or len(args.files) == 1):
        groups = [benchmark.split_of(Path(name)) for name in args.files]
        answers = read_split_answers(paths, groups, items, SPLITS)
    else:
        answers = read_answers(paths[0], items)
    hashes = [folder_hash(path) if path.is_dir() else file_hash(path) for path in paths]
    model = {"answers": " ".join(path.name for path in paths), "answers_hash": hashes[0]}
    if len(hashes) > 1:
        model["answers_hash"] = text_hash(hashes)
    extra = {"max_new_tokens": args.max_new_tokens, "suffix": args.suffix} | _asked(args)
    if args.benchmark == "textvqa":
        extra["ocr_tokens_in_prompt"] = True if args.ocr else None  # the answers do not tell
    return _Given(answers, model, {"dtype": "given answers"}, extra)


def _ask(items: Sequence[Item], args: argparse.Namespace) -> _Given:
    from ..data.transforms import Crop
    from ..eval.protocol import state_hash, text_hash
    from ..eval.understanding.asking import ask, check_words, find_pictures
    from ..generation.text import TextSampling

    pictures = find_pictures(items, Path(args.images) if args.images else None)
    way = args.by or "words"
    prompts = _prompts(items, args, with_choices=way == "words")
    folder = model_folder(args.model)
    pipeline = load_pipeline(folder, args.device)
    check_words(pipeline, items, prompts)
    limit = int(args.max_new_tokens or (8 if items[0].question else 32))
    with Bar("answering", len(items)) as bar:
        answered = ask(
            pipeline,
            items,
            prompts,
            pictures,
            sampling=TextSampling(limit=limit),
            way=way,
            batch=int(args.batch or 32),
            progress=bar.update,
            processes=args.processes,
        )
    model = {
        "model": folder.name,
        "tokenizer_fingerprint": pipeline.tokenizer.fingerprint(),
        "lm_hash": state_hash(pipeline.lm.state_dict()),
    }
    protocol = {
        "dtype": str(pipeline.lm.dtype).removeprefix("torch."),
        "crop": Crop(pipeline.tokenizer.image_size).describe(),
        "prompts_hash": text_hash(prompt.replace("\n", "\\n") for prompt in prompts),
        "rewritten": False,
        "sampler": {"by": way, "temperature": 0.0, "beams": 1},
    }
    extra = {"max_new_tokens": limit, "pictures_hash": answered.pictures_hash, "suffix": args.suffix or ""}
    if args.benchmark == "textvqa":
        extra["ocr_tokens_in_prompt"] = bool(args.ocr)
    return _Given(answered.answers, model, protocol, extra | _asked(args))


def _prompts(items: Sequence[Item], args: argparse.Namespace, *, with_choices: bool) -> list[str]:
    from dataclasses import replace

    from ..eval.understanding.benchmarks import prompt_of
    from ..eval.understanding.textvqa import read_ocr, with_ocr

    if args.ocr:
        words = read_ocr(Path(args.ocr))
        items = [replace(item, question=with_ocr(item, words)) for item in items]
    return [prompt_of(item, args.suffix or "", with_choices=with_choices) for item in items]


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What is known whoever answered."""
    from ..eval.protocol import file_hash

    asked: dict[str, Any] = {"normalisation": args.normalisation or "official"}
    if args.benchmark == "textvqa":
        asked["ocr_hash"] = file_hash(args.ocr) if args.ocr else None
    return asked


def _table(scores: Scores, blind: Scores, title: str) -> list[str]:
    """One line for every score, indented where it is a part, the blind one beside it."""
    rows = _rows(scores, blind, 1)
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {own:>8}  {guess:>8}".rstrip() for name, own, guess in rows]
    return [f"{title:<{width}}  {'score':>8}  {'blind':>8}", *lines]


def _rows(scores: Scores, blind: Scores, depth: int) -> list[tuple[str, str, str]]:
    rows = list[tuple[str, str, str]]()
    for name, value in scores.items():
        label, guess = "  " * depth + name, blind.get(name)
        if isinstance(value, dict):
            rows += [(label, "", ""), *_rows(value, guess if isinstance(guess, dict) else {}, depth + 1)]
        else:
            rows.append((label, f"{value:.3f}", f"{guess:.3f}" if isinstance(guess, float) else ""))
    return rows


def _save_answers(path: Path, items: Sequence[Item], answers: Sequence[str]) -> None:
    from ..data.files import atomic_file

    entries = (
        {"question_id": item.id, "group": item.group, "prompt": item.question, "text": answer}
        for item, answer in zip(items, answers, strict=True)
    )
    with atomic_file(path) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def _write(
    path: Path,
    benchmark: Benchmark,
    items: Sequence[Item],
    scores: Scores,
    blind: Scores | None,
    given: _Given,
    args: argparse.Namespace,
) -> None:
    from ..eval.protocol import Protocol, file_hash, folder_hash, text_hash, write_result

    files = [Path(name) for name in args.files]
    hashes = sorted(folder_hash(file) if file.is_dir() else file_hash(file) for file in files)
    splits = dict.fromkeys(item.group for item in items) if benchmark.split_of is not None else ()
    protocol = Protocol(
        task=f"understanding {args.benchmark}",
        dataset=benchmark.title + (f": {', '.join(splits)}" if splits else ""),
        dataset_hash=hashes[0] if len(hashes) == 1 else text_hash(hashes),
        count=len(items),
        seed=0,
        extra=given.extra | {"headline": benchmark.headline, "blind": "other half of the pictures, question text only"},
        **given.protocol,
    )
    write_result(path, {args.benchmark: scores} | ({} if blind is None else {"blind": blind}), protocol, given.model)


def _export(args: argparse.Namespace) -> int:
    from ..eval.understanding.scenes import export_scenes

    if len(args.files) != 1:
        raise UsageError(f"export takes one folder, got {len(args.files)}; name one")
    count = int(args.count or 1000)
    counts = export_scenes(args.files[0], args.world or "full", count, int(args.seed or 0), args.split or "validation")
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    say(f"wrote {args.files[0]}: {count} pictures, questions: {told}")
    return 0
