"""How tokens enter the language model: the sum of what a step wrote, plus where in the image it wrote it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizers.codes import CodeSpec
from .layout import NONE, TEXT


class CodePositions(nn.Module):
    """Learned vectors for the position and the first column of a step's codes, zero for text.

    Args:
        spec: the codes.
        per_step: W, columns that one step writes.
        width: C, hidden size of the language model.
    """

    def __init__(self, spec: CodeSpec, per_step: int, width: int) -> None:
        super().__init__()
        self.steps = spec.depth // per_step
        self.position = nn.Embedding(spec.positions, width)
        self.column = nn.Embedding(self.steps, width)

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, T]`` slots (see :mod:`smalti.lm.layout`) to ``[B, T, C]``."""
        visual = slots.clamp_min(0)
        added = self.position(visual // self.steps) + self.column(visual % self.steps)
        return added * (slots != TEXT)[..., None]


def embed_tokens(tokens: Tensor, table: Tensor) -> Tensor:
    """The sum of a step's embeddings.

    Args:
        tokens: ``[B, T, W]`` ids, :data:`~smalti.lm.layout.NONE` where a step wrote fewer than W.
        table: ``[V, C]``.

    Returns:
        ``[B, T, C]``.
    """
    if tokens.shape[-1] == 1:
        return F.embedding(tokens[..., 0], table)
    return (F.embedding(tokens.clamp_min(0), table) * (tokens != NONE)[..., None]).sum(-2)
