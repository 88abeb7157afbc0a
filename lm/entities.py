"""What xAR generates at once: an entity of a latent grid, as data (Algorithm 1 of https://arxiv.org/abs/2502.20388).

An entity is a token, a cell of neighbouring tokens, a strided subsample, a scale of a pyramid, or the whole image. One
object says how a grid is cut into entities and put together again, whichever they are. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tokenizers.codes import CodeLayout

EntityKind = Literal["token", "cell", "subsample", "scale", "image"]

#: What ``side`` is where nobody says: cells as released, the others as fine as they get.
_SIDES = {"cell": 8, "subsample": 2, "scale": 2}
_ABOUT = {
    "cell": "a cell of {0}x{0} tokens must be smaller than the {1}x{2} grid and divide it",
    "subsample": "a stride of {0} must be at most the sides of the {1}x{2} grid and divide them",
    "scale": "scales that grow by {0} must divide the {1}x{2} grid at least once",
}


@dataclass(frozen=True)
class Entities:
    """How a latent grid is cut: E entities of L tokens in all, in the order of generation.

    The tokens are those of one or several levels, grids one after another from coarse to fine, of which the last is the
    latent grid itself and the others are means over its parts.
    """

    grid: tuple[int, int]  #: (h, w) of the latents
    levels: tuple[tuple[int, int], ...]  #: grids from coarse to fine, the last is ``grid``
    order: tuple[int, ...]  #: L, token -> its row-major position in the levels, one behind the other
    sizes: tuple[int, ...]  #: E, tokens of each entity

    @property
    def count(self) -> int:
        """E."""
        return len(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """First token of each entity, and L behind them: E + 1 numbers."""
        return (0, *accumulate(self.sizes))

    def inverse(self) -> Tensor:
        """``[L]`` int64: position in the levels -> token."""
        return torch.tensor(self.order, device="cpu").argsort()

    def owners(self) -> Tensor:
        """``[L]`` int64: the entity of each token."""
        return torch.arange(self.count, device="cpu").repeat_interleave(torch.tensor(self.sizes, device="cpu"))

    def places(self) -> Tensor:
        """``[L, 2]`` float32: row and column of the middle of each token, in steps of the latent grid."""
        height, width = self.grid
        grids: list[Tensor] = []
        for rows, columns in self.levels:
            down = (torch.arange(rows, device="cpu") + 0.5) * (height / rows) - 0.5
            right = (torch.arange(columns, device="cpu") + 0.5) * (width / columns) - 0.5
            grids.append(torch.cartesian_prod(down, right).view(-1, 2))
        return torch.cat(grids)[torch.tensor(self.order, device="cpu")]

    def cut(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to tokens ``[B, L, C]``.

        Raises:
            ValueError: another grid.
        """
        if latents.ndim != 4 or tuple(latents.shape[2:]) != self.grid:
            raise ValueError(
                f"latents must be [B, C, {self.grid[0]}, {self.grid[1]}] for these entities, got "
                f"{list(latents.shape)}; cut a grid of that size"
            )
        pyramid = [latents if level == self.grid else F.adaptive_avg_pool2d(latents, level) for level in self.levels]
        flat = torch.cat([level.flatten(2) for level in pyramid], dim=2)
        return flat[..., torch.tensor(self.order, device=latents.device)].transpose(1, 2)

    def join(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, L, C]`` to the latents ``[B, C, h, w]`` that they hold: those of the last level."""
        height, width = self.grid
        last = self.inverse()[-height * width :].to(tokens.device)
        return tokens[:, last].transpose(1, 2).unflatten(2, self.grid)


def entities(layout: CodeLayout, kind: str = "cell", side: int | None = None) -> Entities:
    """Cut a grid.

    Args:
        layout: a grid ``(h, w)``.
        kind: ``token``; ``cell``, neighbours in a square; ``subsample``, every ``side``-th token of every ``side``-th
            row; ``scale``, means over ever smaller parts and at last the tokens; or ``image``, all tokens at once.
        side: tokens per side of a cell (8 by default), stride of a subsample or growth from scale to scale (2).

    Raises:
        ValueError: no grid of two sides, an unknown kind, or a side that does not divide the grid.
    """
    if layout.kind != "grid" or len(layout.shape) != 2:
        raise ValueError(
            f"{_listed(get_args(EntityKind))} are cut from a grid (h, w), got a {layout.kind} of {layout.shape}; take "
            "latents that lie in one"
        )
    if kind not in get_args(EntityKind):
        raise ValueError(f"an entity must be one of {_listed(get_args(EntityKind))}, got {kind!r}; choose one of them")
    height, width = layout.shape
    if kind not in _SIDES:
        if side is not None:
            raise ValueError(f"entities of kind {kind} have no side, got {side}; leave it out")
        sizes = (1,) * (height * width) if kind == "token" else (height * width,)
        return Entities((height, width), ((height, width),), tuple(range(height * width)), sizes)
    return _divided((height, width), kind, _SIDES[kind] if side is None else side)


def _divided(grid: tuple[int, int], kind: str, side: int) -> Entities:
    height, width = grid
    if side not in _legal(grid, kind):
        others = f"a side of {_listed(_legal(grid, kind))}, or " if _legal(grid, kind) else ""
        raise ValueError(
            f"{_ABOUT[kind].format(side, height, width)}, got side {side}; choose {others}token or image entities"
        )
    if kind == "scale":
        levels = [grid]
        while not (levels[0][0] % side or levels[0][1] % side):
            levels.insert(0, (levels[0][0] // side, levels[0][1] // side))
        sizes = tuple(rows * columns for rows, columns in levels)
        return Entities(grid, tuple(levels), tuple(range(sum(sizes))), sizes)
    blocks = torch.arange(height * width, device="cpu").view(height // side, side, width // side, side)
    chosen = blocks.permute(0, 2, 1, 3) if kind == "cell" else blocks.permute(1, 3, 0, 2)
    each = side * side if kind == "cell" else height * width // (side * side)
    return Entities(grid, (grid,), tuple(chosen.flatten().tolist()), (each,) * (height * width // each))


def _legal(grid: tuple[int, int], kind: str) -> list[int]:
    """Sides above 1 that divide a grid; a cell is not all of it, which is an image."""
    sides = [side for side in range(2, min(grid) + 1) if not (grid[0] % side or grid[1] % side)]
    return [side for side in sides if not (kind == "cell" and (side, side) == grid)]


def _listed(names: Sequence[object]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last
