"""A pretrained language model as an argument of a configuration, and what of it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..lm.adapters import Lora, train_part
from ..lm.model import SharedLM
from ..lm.pretrained import RowPlace, Start, from_backbone
from ..lm.vocabulary import Vocabulary
from ..tokenizers.codes import CodeSpec


@dataclass(frozen=True)
class Pretrained:
    """A language model from a local folder.

    Args:
        checkpoint: the folder, as ``save_pretrained`` of ``transformers`` writes it.
        trained: ``full``, ``frozen`` (what is new trains and the backbone rests) or adapters of low rank.
        rows: where the rows of specials and codes are, see :func:`~smalti.lm.pretrained.from_backbone`.
        start: what they are, see :func:`~smalti.lm.pretrained.start_rows`.
    """

    checkpoint: str
    trained: Literal["full", "frozen"] | Lora = "full"
    rows: RowPlace = "apart"
    start: Start = "mean"

    def model(
        self,
        vocabulary: Vocabulary,
        spec: CodeSpec,
        fingerprint: str,
        head: Mapping[str, Any] | None,
        vectors: Mapping[str, Tensor],
        parts: Mapping[str, Any],
    ) -> SharedLM:
        """The shared language model, ready to train; arguments as for :func:`~smalti.lm.pretrained.from_backbone`."""
        options: dict[str, Any] = {"rows": self.rows, "start": self.start, "vectors": vectors, **parts}
        found = from_backbone(self.checkpoint, vocabulary, spec, fingerprint, head, **options)
        train_part(found, self.trained)
        return found.train()
