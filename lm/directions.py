"""More than one direction of prediction: what is right of a position and what is below it (NAR, arXiv 2503.10696).

The first direction is predicted by the language model itself. Each further one has a block on top of all before, a
norm, a code head and output rows of its own, so that the logits of a position with several neighbours are a mean of
models at increasing depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..tokenizers.codes import CodeSpec
from .heads import CodeHead, code_head
from .packing import PackedRows
from .positions import plain_rotary
from .tables import Table
from .vocabulary import Vocabulary


class BothStates(nn.Module):
    """A norm that hands on what it was given beside what it makes of it.

    Args:
        norm: the last of a backbone.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., 2C]``: normed, then as given."""
        return torch.cat([self.norm(states), states], dim=-1)


class Direction(nn.Module):
    """One further direction.

    Args:
        block: of the backbone's kind.
        norm: of the backbone's kind.
        head: how codes leave.
        rows: ``[V', C]`` output rows of the codes, of which there are V'.
        start: id of the first of them.
    """

    def __init__(self, block: nn.Module, norm: nn.Module, head: CodeHead, rows: Tensor, start: int) -> None:
        super().__init__()
        self.block, self.norm, self.head = block, norm, head
        self.rows = nn.Parameter(rows)
        self.start = start
        self.packed: PackedRows | None = None

    @property
    def table(self) -> Table:
        """Its output rows by id."""
        return Table(self.rows, start=self.start, packed=None if self.packed is None else self.packed.products)


class Directions(nn.Module):
    """The directions beyond the first of a backbone.

    Args:
        count: how many.
        backbone: a causal language model with Llama's blocks; its last norm is replaced by one that gives both states.
        head: fields of the code heads.
        vocabulary: the shared vocabulary.
        spec: the codes.

    Raises:
        ValueError: a backbone of another kind.
    """

    def __init__(
        self, count: int, backbone: PreTrainedModel, head: Mapping[str, Any], vocabulary: Vocabulary, spec: CodeSpec
    ) -> None:
        super().__init__()
        trunk: Any = backbone.base_model
        if not plain_rotary(backbone):
            raise ValueError(
                f"{count + 1} directions need a backbone with blocks like llama's or qwen2's, got "
                f"{backbone.config.model_type}; use one of those or an order of one direction, such as raster"
            )
        width, layers = int(backbone.config.hidden_size), len(trunk.layers)
        start = vocabulary.block(spec.codebooks[0].name).start
        codes = sum(book.size for book in spec.codebooks)
        parts = list[Direction]()
        for number in range(count):
            block: Any = type(trunk.layers[-1])(backbone.config, layers - 1)
            block.self_attn.layer_idx = layers + number
            norm = type(trunk.norm)(width, backbone.config.rms_norm_eps)
            rows = torch.empty(codes, width)
            parts.append(Direction(block, norm, code_head(head, vocabulary, spec, width), rows, start))
        self.parts = nn.ModuleList(parts)
        trunk.norm = BothStates(trunk.norm)

    @property
    def beyond(self) -> list[Direction]:
        """The directions, in their order."""
        return [part for part in self.parts if isinstance(part, Direction)]

    def forward(self, both: Tensor, rotary: nn.Module, position_ids: Tensor, **options: Any) -> Tensor:
        """States of all directions.

        Args:
            both: ``[B, T, 2C]`` of :class:`BothStates`.
            rotary: embedding of the backbone.
            position_ids: of the steps.
            options: for the blocks: mask and cache.

        Returns:
            ``[B, T, S, C]``, the first direction's first.
        """
        normed, states = both.chunk(2, dim=-1)
        turned, found = rotary(states, position_ids), [normed]
        for part in self.beyond:
            states = part.block(states, position_ids=position_ids, position_embeddings=turned, **options)
            found.append(part.norm(states))
        return torch.stack(found, dim=-2)
