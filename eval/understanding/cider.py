"""CIDEr-D: how much a caption says what several people said, rare words counting more (arXiv 1411.5726)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ORDERS = 4
SIGMA = 6.0

_Gram = tuple[str, ...]

_SHORT = re.compile(r"(?<=[^\W_])(n't|'(?:s|m|d|re|ve|ll))(?![^\W_])")
_WORD = re.compile(r"n't|'(?:s|m|d|re|ve|ll)(?![^\W_])|[^\W_]+(?:['-][^\W_]+)*")


@dataclass(frozen=True)
class _Vectors:
    """A caption's n-grams, by n - 1."""

    weights: list[dict[_Gram, float]]  #: count times idf
    norms: list[float]
    pairs: int  #: bigrams, which the official code measures lengths in


def plain_words(text: str) -> list[str]:
    """Words of a sentence in lower case, without marks, as the Penn Treebank splits them.

    Hyphens inside words stay, and "dog's" is "dog 's", "isn't" is "is n't". The tokenizer of COCO's script knows more:
    abbreviations keep their dots there, numbers their commas, and "cannot" is two words.
    """
    apart = _SHORT.sub(r" \1", text.lower().replace("\u2019", "'"))
    return _WORD.findall(apart)


class References:
    """What captions of N pictures are compared with.

    Args:
        captions: for each picture, at least one caption as words.

    Raises:
        ValueError: no pictures, or one without captions.
    """

    def __init__(self, captions: Sequence[Sequence[Sequence[str]]]) -> None:
        if not captions or not all(captions):
            raise ValueError(
                f"expected at least one reference for each of at least one picture, got {sum(map(bool, captions))} of "
                f"{len(captions)} pictures with references; leave out pictures without"
            )
        counted = [[_grams(words) for words in group] for group in captions]
        seen = Counter(gram for group in counted for gram in {gram for grams in group for gram in grams})
        self.pictures, self._unseen = len(captions), math.log(len(captions))
        self._idf = {gram: self._unseen - math.log(count) for gram, count in seen.items()}
        self._vectors = [[self._vector(grams) for grams in group] for group in counted]

    def score(self, words: Sequence[str], pictures: Sequence[int]) -> list[float]:
        """CIDEr-D of one caption for each of some pictures, given by their numbers."""
        mine = self._vector(_grams(words))
        groups = (self._vectors[picture] for picture in pictures)
        return [sum(_likeness(mine, theirs) for theirs in group) / len(group) for group in groups]

    def _vector(self, grams: Counter[_Gram]) -> _Vectors:
        weights: list[dict[_Gram, float]] = [{} for _ in range(ORDERS)]
        for gram, count in grams.items():
            weights[len(gram) - 1][gram] = count * self._idf.get(gram, self._unseen)
        norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in weights]
        return _Vectors(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def cider_d(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of every caption: ``10 mean_n mean_r exp(-d^2 / 2 sigma^2) <min(c, r), r> / |c||r|``, sigma = 6.

    c and r are the tf-idf vectors of n-grams (n = 1 to 4) of the candidate and a reference, and d the difference of
    their lengths. The idf comes from the references: the log of the number of pictures over those that have the n-gram
    in any reference. The score of a set is the mean.

    Args:
        candidates: N captions as words.
        references: for each picture, at least one caption as words.

    Returns:
        N numbers in [0, 10].

    Raises:
        ValueError: another number of captions than pictures, or as for `References`.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"expected one caption for each picture, got {len(candidates)} captions for {len(references)} pictures; "
            "caption every picture once"
        )
    against = References(references)
    return [against.score(words, [picture])[0] for picture, words in enumerate(candidates)]


def _grams(words: Sequence[str]) -> Counter[_Gram]:
    return Counter(
        tuple(words[at : at + order]) for order in range(1, ORDERS + 1) for at in range(len(words) - order + 1)
    )


def _likeness(candidate: _Vectors, reference: _Vectors) -> float:
    penalty = math.exp(-((candidate.pairs - reference.pairs) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for order in range(ORDERS):
        theirs, scale = reference.weights[order], candidate.norms[order] * reference.norms[order]
        shared = sum(
            min(w, theirs[gram]) * theirs[gram] for gram, w in candidate.weights[order].items() if gram in theirs
        )
        total += shared / scale if scale else 0.0
    return 10 * penalty * total / ORDERS
