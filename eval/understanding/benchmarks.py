"""The benchmarks by name: how each is read, scored and asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .blind import blind_answers
from .captions import read_captions, score_captions
from .choices import listed, score_choices
from .gqa import read_gqa, score_gqa
from .items import Item, Normalisation, Scores
from .mmbench import read_mmbench, score_mmbench
from .mme import read_mme, score_mme
from .pope import read_pope, score_pope, split_of
from .seed_bench import read_seed_bench
from .textvqa import read_textvqa
from .vqa import read_vqa
from .vqa_accuracy import score_vqa


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    title: str  #: as published
    read: Callable[[Sequence[Path]], list[Item]]
    score: Callable[[Sequence[Item], Sequence[str], Normalisation], Scores]
    headline: str  #: the score that is usually quoted
    normalisations: tuple[Normalisation, ...] = ("official", "always")  #: those it can be scored with
    split_of: Callable[[Path], str] | None = None  #: the group of a file's items, where every split is a file


BENCHMARKS = {
    "pope": Benchmark("POPE", read_pope, score_pope, "f1", split_of=split_of),
    "vqav2": Benchmark("VQAv2", read_vqa, score_vqa, "accuracy"),
    "gqa": Benchmark("GQA", read_gqa, score_gqa, "accuracy"),
    "textvqa": Benchmark("TextVQA", read_textvqa, score_vqa, "accuracy"),
    "mme": Benchmark("MME", read_mme, score_mme, "total"),
    "seed-bench": Benchmark("SEED-Bench (images)", read_seed_bench, score_choices, "accuracy"),
    "mmbench": Benchmark("MMBench-dev", read_mmbench, score_mmbench, "circular"),
    "captions": Benchmark(
        "captions", read_captions, score_captions, "cider_d", normalisations=("official", "always", "tokenised")
    ),
}


def prompt_of(item: Item, suffix: str, *, with_choices: bool = True) -> str:
    """What a model is asked: the question, its choices where their letter is the answer, and a suffix.

    Args:
        item: the question.
        suffix: follows it as it is.
        with_choices: list them; not where the likelihood of each is compared.

    Returns:
        Nothing where a caption is asked for.
    """
    text = listed(item) if item.lettered and with_choices else item.question
    return f"{text}{suffix}" if text else ""


def score_beside_blind(
    benchmark: Benchmark, items: Sequence[Item], answers: Sequence[str], normalisation: Normalisation
) -> tuple[Scores, Scores | None]:
    """The scores of answers, and those of :func:`.blind.blind_answers`, which are None for one picture alone.

    Raises:
        ValueError: another number of answers than questions, or none; or a normalisation of other benchmarks.
    """
    if normalisation not in benchmark.normalisations:
        raise ValueError(
            f"{benchmark.title} is scored with normalisation {' or '.join(benchmark.normalisations)}, got "
            f"{normalisation!r}; choose one of them"
        )
    if not items or len(items) != len(answers):
        raise ValueError(
            f"expected one answer for each of at least one question, got {len(answers)} answers for {len(items)} "
            "questions; answer every question once"
        )
    guesses = blind_answers(items)
    scores = benchmark.score(items, answers, normalisation)
    return scores, None if guesses is None else benchmark.score(items, guesses, normalisation)
