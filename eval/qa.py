"""Scores of short answers about scenes, and what the questions give away without their pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.scene_questions import Question
from .understanding.blind import Habits


@dataclass(frozen=True)
class AnswerScores:
    """Shares of right answers."""

    overall: float  #: mean over all questions, so that frequent kinds weigh more
    kinds: dict[str, float]  #: by kind of question
    counts: dict[str, int]  #: number of questions, by kind
    yes_rate: float | None  #: share of yes among answers to yes-no questions; None without such questions

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return {
            "overall": self.overall,
            "kinds": dict(self.kinds),
            "counts": dict(self.counts),
            "yes_rate": self.yes_rate,
        }


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> AnswerScores:
    """Compare answers with the truth: equal after lower case and without surrounding spaces, nothing else forgiven.

    Args:
        questions: at least one.
        answers: one for each question.

    Raises:
        ValueError: if there are no questions, or another number of answers.
    """
    if not questions or len(questions) != len(answers):
        raise ValueError(
            f"expected one answer for each of at least one question, got {len(answers)} answers for "
            f"{len(questions)} questions; answer every question once"
        )
    given = [answer.strip().lower() for answer in answers]
    right = [answer == question.answer for question, answer in zip(questions, given, strict=True)]
    counts = Counter(question.kind for question in questions)
    hits = Counter(question.kind for question, hit in zip(questions, right, strict=True) if hit)
    binary = [answer for question, answer in zip(questions, given, strict=True) if question.choices == ("yes", "no")]
    return AnswerScores(
        overall=sum(right) / len(right),
        kinds={kind: hits[kind] / counts[kind] for kind in sorted(counts)},
        counts={kind: counts[kind] for kind in sorted(counts)},
        yes_rate=binary.count("yes") / len(binary) if binary else None,
    )


def blind_baseline(train_questions: Sequence[Question], test_questions: Sequence[Question]) -> AnswerScores:
    """Score the answers of someone who never looks.

    A question is answered with the most frequent training answer to the same words, or, where the words are new, to
    the same kind of question; ties go to the first answer in the alphabet.

    Args:
        train_questions: what the habits are learned from.
        test_questions: what is scored.

    Raises:
        ValueError: if a kind of question never occurs in training, or as for ``score_answers``.
    """
    habits = Habits((question.kind, question.question, question.answer) for question in train_questions)
    unknown = sorted({question.kind for question in test_questions} - habits.kinds)
    if unknown:
        raise ValueError(f"expected training questions of every kind, got none of kind {unknown[0]!r}; add some")
    answers = [habits.answer(question.kind, question.question) for question in test_questions]
    return score_answers(test_questions, answers)
