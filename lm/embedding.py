"""How tokens enter the language model: one table for all ids, plus where in the image a visual code stands."""

from __future__ import annotations

from torch import Tensor, nn

from ..tokenizers.codes import CodeSpec
from .layout import TEXT


class CodePositions(nn.Module):
    """Learned vectors for the position and the column of a visual code, zero for text.

    Args:
        spec: the codes.
        width: C, hidden size of the language model.
    """

    def __init__(self, spec: CodeSpec, width: int) -> None:
        super().__init__()
        self.depth = spec.depth
        self.position = nn.Embedding(spec.positions, width)
        self.column = nn.Embedding(spec.depth, width)

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, T]`` slots (``position * D + column``, or :data:`~smalti.lm.layout.TEXT`) to ``[B, T, C]``."""
        visual = slots.clamp_min(0)
        added = self.position(visual // self.depth) + self.column(visual % self.depth)
        return added * (slots != TEXT)[..., None]
