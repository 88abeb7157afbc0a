"""Orders in which the cells of a grid are read: raster, column, snake, Hilbert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ...tokenizers.codes import CodeLayout
from .counting import Ids


def scan(layout: CodeLayout, order: str) -> Ids:
    """Positions in the order in which they are read.

    Args:
        layout: a grid for any order; raster reads every other layout as it is stored. Frames of a video are read one
            after another, each in the order.
        order: a name of :data:`SCANS`.

    Returns:
        ``[N]``, every position once.

    Raises:
        ValueError: an unknown order, or one that needs a grid.
    """
    if order not in SCANS:
        raise ValueError(f"scan order must be one of {', '.join(SCANS)}, got {order!r}; choose one of them")
    if order == "raster":
        return np.arange(layout.positions)
    layout.require(f"{order} order", "grid")
    height, width = layout.shape[-2:]
    frames = np.arange(layout.positions // (height * width))
    return (frames[:, None] * (height * width) + SCANS[order](height, width)).reshape(-1)


def _raster(height: int, width: int) -> Ids:
    return np.arange(height * width)


def _column(height: int, width: int) -> Ids:
    return np.arange(height * width).reshape(height, width).T.reshape(-1)


def _snake(height: int, width: int) -> Ids:
    rows = np.arange(height * width).reshape(height, width)
    rows[1::2] = rows[1::2, ::-1]
    return rows.reshape(-1)


def _hilbert(height: int, width: int) -> Ids:
    """Hilbert's curve, cut to any rectangle by halving the sides (after J. Cerveny's generalization).

    Every step goes to a neighbour, but for one diagonal step in some rectangles of odd sides.
    """
    across = width >= height
    if across and width % 2 and height % 2 == 0:  # from corner to corner along an odd side there is no such path
        across = False
    elif not across and height % 2 and width % 2 == 0:
        across = True
    cells = _walk(0, complex(width), height * 1j) if across else _walk(0, height * 1j, complex(width))
    return np.array([int(cell.imag) * width + int(cell.real) for cell in cells])


def _walk(start: complex, major: complex, minor: complex) -> Iterator[complex]:
    """Cells (column + row i) of a rectangle with the sides ``major`` and ``minor``, from ``start`` along ``major``."""
    width, height = int(abs(major)), int(abs(minor))
    along, across = major / width, minor / height
    if height == 1 or width == 1:
        step = along if height == 1 else across
        yield from (start + step * index for index in range(width * height))
        return
    half, fold = along * _half(width), across * _half(height)
    if 2 * width > 3 * height:
        yield from _walk(start, half, minor)
        yield from _walk(start + half, major - half, minor)
        return
    middle = along * (width // 2)
    yield from _walk(start, fold, middle)
    yield from _walk(start + fold, major, minor - fold)
    yield from _walk(start + major - along + fold - across, -fold, middle - major)


def _half(length: int) -> int:
    """An even half where the length allows it."""
    half = length // 2
    return half + 1 if half % 2 and length > 2 else half


#: Orders by name; each takes height and width.
SCANS: Mapping[str, Callable[[int, int], Ids]] = {
    "raster": _raster,
    "column": _column,
    "snake": _snake,
    "hilbert": _hilbert,
}
