"""Slot-MLLM: slots that compete for the image, each coded by a residual quantizer."""

from __future__ import annotations

from typing import ClassVar

from .codes import Kind
from .queries import QueryTokenizer


class SlotTokenizer(QueryTokenizer):
    """A set of object-centric codes (Slot-MLLM, https://arxiv.org/abs/2505.17726).

    As published: a frozen DINOv2-L tower at 448 pixels, a Q-Former of 32 queries that reads by slot attention
    (``QFormer(reading="morph")`` as released for inference, ``"gru"`` as an option), and a residual quantizer of 4
    depths of 8192 codes: 32 positions of 4 codes. Arguments are those of
    :class:`~smalti.tokenizers.queries.QueryTokenizer`.
    """

    kind: ClassVar[Kind] = "set"
