"""SEED: 32 codes in causal order from a Q-Former, so that a language model reads an image as it reads a sentence."""

from __future__ import annotations

from typing import ClassVar

from .codes import Kind
from .queries import QueryTokenizer


class SeedTokenizer(QueryTokenizer):
    """A causal sequence of codes (SEED, https://arxiv.org/abs/2307.08041; SEED-2, https://arxiv.org/abs/2310.01218).

    As published: a frozen EVA-CLIP-g tower, a causal Q-Former of 32 queries, one codebook of 8192 codes of width 32
    that learns by gradient, and an image embedding of width 1024 for a Stable unCLIP decoder. Arguments are those of
    :class:`~smalti.tokenizers.queries.QueryTokenizer`.
    """

    kind: ClassVar[Kind] = "sequence"
