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
from .pope import read_pope, score_pope
from .seed_bench import read_seed_bench
from .textvqa import read_textvqa
from .vqa import read_vqa
from .vqa_accuracy import score_vqa


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    title: str  #: as published
    files: str  #: what it is read from, in words
    read: Callable[[Sequence[Path]], list[Item]]
    score: Callable[[Sequence[Item], Sequence[str], Normalisation], Scores]
    headline: str  #: the score that is usually quoted


BENCHMARKS = {
    "pope": Benchmark("POPE", "one JSONL file per split", read_pope, score_pope, "f1"),
    "vqav2": Benchmark("VQAv2", "questions and annotations", read_vqa, score_vqa, "accuracy"),
    "gqa": Benchmark("GQA", "testdev_balanced_questions.json", read_gqa, score_gqa, "accuracy"),
    "textvqa": Benchmark("TextVQA", "TextVQA_0.5.1_val.json", read_textvqa, score_vqa, "accuracy"),
    "mme": Benchmark("MME", "the folder of subtasks", read_mme, score_mme, "total"),
    "seed-bench": Benchmark("SEED-Bench (images)", "SEED-Bench.json", read_seed_bench, score_choices, "accuracy"),
    "mmbench": Benchmark("MMBench-dev", "the TSV of the development split", read_mmbench, score_mmbench, "circular"),
    "captions": Benchmark("captions", "captions_val2014.json", read_captions, score_captions, "cider_d"),
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
        ValueError: another number of answers than questions, or none.
    """
    if not items or len(items) != len(answers):
        raise ValueError(
            f"expected one answer for each of at least one question, got {len(answers)} answers for {len(items)} "
            "questions; answer every question once"
        )
    guesses = blind_answers(items)
    scores = benchmark.score(items, answers, normalisation)
    return scores, None if guesses is None else benchmark.score(items, guesses, normalisation)
