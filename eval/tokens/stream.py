"""Streams of tokens: one column of codes over many images, or all columns as one, in a scan order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Self

import numpy as np

from ...data.store import TokenStore
from ...tokenizers.codes import PADDING, CodeLayout, Codes, CodeSpec
from .counting import Ids, combined, labels
from .scan import scan

Keep = Literal["image", "place", "nothing"]

#: The stream of all columns of a position taken as one token.
JOINT = "joint"


@dataclass(frozen=True)
class TokenStream:
    """The tokens of M images of N positions.

    Args:
        name: of the codebook's column.
        ids: ``[M, N]`` int64 in ``[0, K)``, as they are stored (grids row by row); -1 where an image has no token.
        size: K, how many tokens there could be.
        layout: of the N positions.
        order: in which a grid is read (`scan`); other layouts are read as they are stored.

    Raises:
        ValueError: fewer than two images, no token, an id outside ``[-1, K)``, ids that do not fit the layout, or an
            order that does not.
        TypeError: ids that are not int64.
    """

    name: str
    ids: Ids
    size: int
    layout: CodeLayout
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.ids.dtype != np.int64:
            raise TypeError(f"tokens must be int64, got {self.ids.dtype}; convert them with astype(np.int64)")
        if self.ids.ndim != 2 or self.ids.shape[1] != self.layout.positions:
            raise ValueError(
                f"tokens of a {self.layout.kind} of {self.layout.shape} must be [M, {self.layout.positions}], got "
                f"{list(self.ids.shape)}; reshape them"
            )
        if len(self.ids) < 2 or not (self.ids != PADDING).any():
            raise ValueError(
                f"token statistics need at least two images and a token, got {len(self.ids)} images; encode more"
            )
        low, high = int(self.ids.min()), int(self.ids.max())
        if low < PADDING or high >= self.size:
            raise ValueError(f"tokens of {self.name} must lie in [0, {self.size}), or be -1, got {low}..{high}")
        scan(self.layout, self.order)

    @classmethod
    def of(cls, ids: Ids, size: int, order: str = "raster", name: str = "code") -> Self:
        """A stream from an array alone.

        Args:
            ids: ``[M, N]`` sequences or ``[M, h, w]`` grids.
            size: K.
            order: in which a grid is read.
            name: of the stream.

        Raises:
            ValueError: another number of axes, or as the class.
        """
        if ids.ndim not in (2, 3):
            raise ValueError(f"tokens must be [M, N] or [M, h, w], got {list(ids.shape)}; reshape them")
        layout = CodeLayout("grid" if ids.ndim == 3 else "sequence", ids.shape[1:])
        return cls(name, ids.reshape(len(ids), -1), size, layout, order)

    @property
    def images(self) -> int:
        """M."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens of all images, padding left out."""
        return int((self.ids != PADDING).sum())

    @property
    def is_grid(self) -> bool:
        """Whether tokens have neighbours above."""
        return self.layout.kind == "grid"

    @property
    def planes(self) -> Ids:
        """``[P, h, w]``: grids frame by frame; any other layout as one row per image."""
        return self.ids.reshape(-1, *(self.layout.shape[-2:] if self.is_grid else (1, self.ids.shape[1])))

    @property
    def scanned(self) -> Ids:
        """``[M, N]`` in the scan order, with padding."""
        return self.ids[:, scan(self.layout, self.order)]

    @property
    def flat(self) -> Ids:
        """``[T]`` tokens of all images in the scan order, one image after another, without padding."""
        ids = self.scanned.reshape(-1)
        return ids[ids != PADDING]

    def part(self, images: Ids) -> TokenStream:
        """The stream of some images, by index; at least two."""
        return replace(self, ids=self.ids[images])

    def shuffled(self, generator: np.random.Generator, keep: Keep = "nothing") -> TokenStream:
        """A control: the same tokens elsewhere.

        Args:
            generator: draws the places.
            keep: ``image`` gives each image its own tokens in another order, ``place`` gives each place a token that
                another image has there, ``nothing`` deals all of them out anew.
        """
        ids = self.ids.copy()
        if keep == "nothing":
            ids[ids != PADDING] = generator.permutation(ids[ids != PADDING])
        else:
            ids = generator.permuted(ids, axis=1 if keep == "image" else 0)
            if bool((ids == PADDING).any()):  # padding goes to the end again
                ids = np.take_along_axis(ids, np.argsort(ids == PADDING, axis=1, kind="stable"), axis=1)
        return replace(self, ids=ids)


def windows(planes: Ids, offsets: Sequence[tuple[int, int]]) -> list[Ids]:
    """Tokens at fixed offsets from each other, wherever all of them lie inside one plane.

    Args:
        planes: ``[P, h, w]``, -1 for no token.
        offsets: (rows down, columns right) of each, non-negative.

    Returns:
        One ``[T]`` array per offset, aligned.
    """
    down, right = (max(axis) for axis in zip(*offsets, strict=True))
    height, width = planes.shape[1] - down, planes.shape[2] - right
    if height < 1 or width < 1:
        return [np.empty(0, np.int64) for _ in offsets]
    cut = [planes[:, row : row + height, column : column + width].reshape(-1) for row, column in offsets]
    whole = np.logical_and.reduce([part != PADDING for part in cut])
    return cut if bool(whole.all()) else [part[whole] for part in cut]


def streams(codes: Codes, order: str = "raster", codebook: str | None = None) -> list[TokenStream]:
    """Every column of codes as a stream, and all of them as one where there are several.

    Args:
        codes: of at least two images. Codes of dynamic length have no rows and columns: they are sequences.
        order: in which a grid is read.
        codebook: the name of one codebook, of one stream (``pixel.1``) or ``joint``; all by default.

    Returns:
        Streams named after their codebook, with ``.0``, ``.1``, ... where it has several columns; ``joint`` last. Its K
        is the product of all sizes.

    Raises:
        ValueError: no such codebook, or as `TokenStream`.
    """
    array = codes.ids.cpu().numpy()
    layout = codes.spec.layout
    if codes.spec.dynamic:
        layout = CodeLayout("sequence", (array.shape[1],))
    columns = codes.spec.columns
    found = [
        TokenStream(name, np.ascontiguousarray(array[..., at]), book.size, layout, order)
        for at, (name, book) in enumerate(zip(stream_names(codes.spec), columns, strict=True))
    ]
    if len(columns) > 1:
        found.append(TokenStream(JOINT, _joined(array), prod(book.size for book in columns), layout, order))
    chosen = [stream for stream in found if codebook in (None, stream.name, stream.name.rpartition(".")[0])]
    if not chosen:
        names = ", ".join(stream.name for stream in found)
        raise ValueError(f"codebook must be one of {names}, got {codebook!r}; use one of those names")
    return chosen


def stream_names(spec: CodeSpec) -> list[str]:
    """The name of each of the D columns."""
    return [
        book.name if book.depth == 1 else f"{book.name}.{index}"
        for book in spec.codebooks
        for index in range(book.depth)
    ]


def stored_codes(store: TokenStore) -> Codes:
    """The codes of a token store; of several crops of a picture, those of the first.

    Raises:
        ValueError: ids that do not keep the store's promise.
    """
    return Codes.full(store.ids()[:: store.crops], CodeSpec.from_dict(store.spec))


def _joined(array: Ids) -> Ids:
    """``[M, N]`` one id per combination that occurs, numbered without gaps; -1 where padded."""
    rows = array.reshape(-1, array.shape[-1])
    real = rows[:, 0] != PADDING
    ids = np.full(len(rows), PADDING, np.int64)
    ids[real] = labels(combined(list(rows[real].T)))
    return ids.reshape(array.shape[:2])
