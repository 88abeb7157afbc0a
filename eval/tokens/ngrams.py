"""How well tokens are foretold by the ones before: n-gram models on held-out images, beside shuffled controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...tokenizers.codes import PADDING
from .counting import Floats, Ids, Table, combined
from .stream import Keep, TokenStream

LONGEST = 3  #: n
HELD_OUT = 0.2  #: share of the images that the models are tried on


@dataclass(frozen=True)
class NgramModel:
    """Perplexity of held-out tokens under interpolated Witten-Bell models of n = 1, 2, 3, in one scan order."""

    trained: int  #: tokens counted
    count: int  #: tokens foretold
    perplexity: tuple[float, ...]  #: for n = 1, 2, 3
    in_place: tuple[float, ...]  #: with every token from another image, same place: what is left tells where one is
    within: tuple[float, ...]  #: with each image's tokens in random places: what is left is the image's own taste
    across: tuple[float, ...]  #: with all tokens in random places: no structure at all

    def to_dict(self) -> dict[str, float]:
        """``perplexity_1``, ``in_place_1``, ``within_1``, ``across_1``, ... and the counts."""
        found: dict[str, float] = {"trained": self.trained, "count": self.count}
        for name in ("perplexity", "in_place", "within", "across"):
            found |= {f"{name}_{n}": value for n, value in enumerate(getattr(self, name), 1)}
        return found


def ngram_model(stream: TokenStream, generator: np.random.Generator) -> NgramModel:
    """Count n-grams in four fifths of the images and foretell the tokens of the others.

    Args:
        stream: read in its scan order; contexts end where an image begins.
        generator: draws the held-out images and the controls.
    """
    images = generator.permutation(stream.images)
    held = max(1, round(HELD_OUT * stream.images))
    keeps: tuple[Keep, ...] = ("place", "image", "nothing")
    controls = (stream, *(stream.shuffled(generator, keep) for keep in keeps))
    found = [perplexities(one.scanned[images[held:]], one.scanned[images[:held]], stream.size) for one in controls]
    trained, tried = ((stream.ids[part] != PADDING).sum() for part in (images[held:], images[:held]))
    return NgramModel(int(trained), int(tried), *found)


def perplexities(train: Ids, test: Ids, size: int) -> tuple[float, ...]:
    """Perplexity of ``test`` for n = 1, 2, 3.

    ``P(w | h) = (c(h w) + T(h) P(w | h without its first token)) / (c(h) + T(h))``, T(h) the distinct tokens seen after
    h; below the unigrams lies 1/K.

    Args:
        train: ``[M, N]``, -1 for no token.
        test: ``[M', N]``, likewise, with a token.
        size: K.
    """
    chances: Floats = np.full(test.shape, 1 / size)
    real = test != PADDING
    found: list[float] = []
    for n in range(1, LONGEST + 1):
        if n <= test.shape[1]:
            chances = _interpolated(train, test, n, chances)
        found.append(float(np.exp(-np.log(chances[real]).mean())))
    return tuple(found)


def _interpolated(train: Ids, test: Ids, n: int, lower: Floats) -> Floats:
    """Chances ``[M', N]`` under n-grams; those of ``lower`` where the context is cut short or was never seen."""
    known, told = _grams(train, n), _grams(test, n)
    inside = (told != PADDING).all(-1)
    seen = known[(known != PADDING).all(-1)]
    asked = told[inside]
    rows = np.concatenate([seen, asked]).T
    whole = combined(list(rows))
    context = combined(list(rows[:-1])) if n > 1 else np.zeros_like(whole)
    split = len(seen)
    grams, contexts = Table.of(whole[:split]), Table.of(context[:split])
    first = np.unique(whole[:split], return_index=True)[1]  # one place of every distinct n-gram
    followers = Table.of(context[:split][first])
    below = lower[:, n - 1 :][inside]
    count, after, kinds = (
        table.look_up(keys[split:]) for table, keys in ((grams, whole), (contexts, context), (followers, context))
    )
    chances = lower.copy()
    chances[:, n - 1 :][inside] = np.where(after > 0, (count + kinds * below) / np.maximum(after + kinds, 1), below)
    return chances


def _grams(ids: Ids, n: int) -> Ids:
    """``[M, N - n + 1, n]``."""
    return np.lib.stride_tricks.sliding_window_view(ids, n, axis=1)
