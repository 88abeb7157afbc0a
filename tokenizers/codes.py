"""What passes between tokenizers, language models and decoders: ids, and the promise of how they are arranged.

Knows nothing about how codes are made. Letters: B batch, N positions, D codes per position, K codebook size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

Kind = Literal["grid", "sequence", "set", "scales"]

#: The id of a position that carries no code.
PADDING = -1


@dataclass(frozen=True)
class CodeLayout:
    """How the N positions of one image are arranged.

    Args:
        kind: ``grid`` (rows and columns), ``sequence`` (causal, left to right), ``set`` (unordered slots) or
            ``scales`` (coarse to fine square grids).
        shape: grid ``(h, w)`` or ``(t, h, w)``; sequence and set ``(n,)``; scales the side lengths ``(1, 2, 4, ...)``.

    Raises:
        ValueError: unknown kind, a shape that does not fit the kind, or a side below 1.
    """

    kind: Kind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        lengths = {"grid": (2, 3), "sequence": (1,), "set": (1,), "scales": range(1, 65)}
        if self.kind not in get_args(Kind):
            raise ValueError(f"layout kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if len(self.shape) not in lengths[self.kind] or min(self.shape, default=0) < 1:
            raise ValueError(
                f"a {self.kind} layout takes {_SHAPES[self.kind]} with every side >= 1, got shape {self.shape}"
            )

    @property
    def positions(self) -> int:
        """N, the number of positions."""
        return sum(side * side for side in self.shape) if self.kind == "scales" else prod(self.shape)

    def require(self, user: str, *kinds: Kind) -> None:
        """Raise unless this layout is one of ``kinds``; ``user`` is what needs it and opens the sentence."""
        if self.kind not in kinds:
            raise ValueError(f"{user} needs codes laid out as {' or '.join(kinds)}, got a {self.kind} of {self.shape}")


_SHAPES: Mapping[str, str] = {
    "grid": "(h, w) or (t, h, w)",
    "sequence": "(n,)",
    "set": "(n,)",
    "scales": "the side lengths (1, 2, 4, ...)",
}


@dataclass(frozen=True)
class Codebook:
    """One vocabulary of codes.

    Args:
        name: what it codes: ``pixel``, ``semantic``, ...
        size: K, the number of codes.
        depth: residual codes per position that share this vocabulary.

    Raises:
        ValueError: size or depth below 1.
    """

    name: str
    size: int
    depth: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.depth < 1:
            raise ValueError(
                f"codebook {self.name!r} needs size >= 1 and depth >= 1, got size {self.size}, depth {self.depth}"
            )


@dataclass(frozen=True)
class CodeSpec:
    """What a tokenizer promises about its codes; saved with it and with everything made from it."""

    layout: CodeLayout
    codebooks: tuple[Codebook, ...]
    dynamic: bool = False  #: True where the number of positions varies by image

    def __post_init__(self) -> None:
        object.__setattr__(self, "codebooks", tuple(self.codebooks))
        names = [codebook.name for codebook in self.codebooks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a code spec needs at least one codebook and distinct names, got {names}")

    @property
    def positions(self) -> int:
        """N, the largest number of positions of one image."""
        return self.layout.positions

    @property
    def depth(self) -> int:
        """D, codes per position over all codebooks."""
        return sum(codebook.depth for codebook in self.codebooks)

    @property
    def columns(self) -> tuple[Codebook, ...]:
        """The codebook of each of the D columns of ``Codes.ids``, codebook-major."""
        return tuple(codebook for codebook in self.codebooks for _ in range(codebook.depth))

    @property
    def bits(self) -> float:
        """Bits of one image when every code costs ``log2 K``."""
        sizes = torch.tensor([float(codebook.size) for codebook in self.columns])
        return float(self.positions * sizes.log2().sum())

    def slices(self) -> dict[str, slice]:
        """Name of each codebook -> its columns of ``Codes.ids``."""
        ends = list(accumulate(codebook.depth for codebook in self.codebooks))
        return {book.name: slice(end - book.depth, end) for book, end in zip(self.codebooks, ends, strict=True)}

    def with_shape(self, *shape: int) -> Self:
        """The same promise for an image of another size."""
        return replace(self, layout=CodeLayout(self.layout.kind, shape))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        return {
            "layout": {"kind": self.layout.kind, "shape": list(self.layout.shape)},
            "codebooks": [asdict(codebook) for codebook in self.codebooks],
            "dynamic": self.dynamic,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a spec from :meth:`to_dict`."""
        layout = CodeLayout(data["layout"]["kind"], tuple(data["layout"]["shape"]))
        return cls(layout, tuple(Codebook(**book) for book in data["codebooks"]), bool(data["dynamic"]))


@dataclass(frozen=True)
class Codes:
    """The codes of a batch of images.

    Args:
        ids: ``[B, N, D]`` int64, codebook-major along D, in ``[0, K)`` of the column's codebook, -1 where padded.
        mask: ``[B, N]`` bool, true where a position carries codes (everywhere, unless the spec is dynamic).
        spec: the promise that the ids keep.

    Raises:
        ValueError: shapes that do not fit the spec, an id outside its codebook, padding that disagrees with the mask.
        TypeError: ids that are not int64 or a mask that is not bool.
    """

    ids: Tensor
    mask: Tensor
    spec: CodeSpec

    def __post_init__(self) -> None:
        _check_shapes(self.ids, self.mask, self.spec)
        _check_range(self.ids, self.mask, self.spec)

    @classmethod
    def full(cls, ids: Tensor, spec: CodeSpec) -> Self:
        """Codes from ``[B, N, D]`` ids alone; only a dynamic spec may have padding among them."""
        every = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
        mask = ids[..., 0] != PADDING if spec.dynamic else every
        return cls(ids, mask, spec)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, images: slice | Tensor) -> Codes:
        return replace(self, ids=self.ids[images], mask=self.mask[images])

    def of(self, codebook: str) -> Tensor:
        """Ids ``[B, N, depth]`` of one codebook, or of ``name.0``, ``name.1``, ... together.

        Raises:
            ValueError: no codebook of that name.
        """
        chosen = [i for i, book in enumerate(self.spec.columns) if codebook in (book.name, book.name.split(".")[0])]
        if not chosen:
            names = ", ".join(book.name for book in self.spec.codebooks)
            raise ValueError(f"codebook must be one of {names}, got {codebook!r}; use one of those names")
        return self.ids[..., chosen]

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on another device."""
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    @staticmethod
    def cat(parts: list[Codes]) -> Codes:
        """Join batches of one spec.

        Raises:
            ValueError: no parts, or parts of different specs.
        """
        if not parts or any(part.spec != parts[0].spec for part in parts):
            raise ValueError(f"codes can be joined when all have one spec, got {[part.spec for part in parts]}")
        return replace(parts[0], ids=torch.cat([p.ids for p in parts]), mask=torch.cat([p.mask for p in parts]))


def _check_shapes(ids: Tensor, mask: Tensor, spec: CodeSpec) -> None:
    if ids.dtype != torch.int64 or mask.dtype != torch.bool:
        raise TypeError(f"codes take int64 ids and a bool mask, got {ids.dtype} and {mask.dtype}")
    fits = ids.shape[1:] == (spec.positions, spec.depth) or (
        spec.dynamic and ids.ndim == 3 and ids.shape[1] <= spec.positions and ids.shape[2] == spec.depth
    )
    if not fits:
        raise ValueError(
            f"ids must be [B, {spec.positions}, {spec.depth}] (B, N, D) for a {spec.layout.kind} of "
            f"{spec.layout.shape}, got {list(ids.shape)}"
        )
    if mask.shape != ids.shape[:2]:
        raise ValueError(f"mask must be [B, N] = {list(ids.shape[:2])}, got {list(mask.shape)}")


def _check_range(ids: Tensor, mask: Tensor, spec: CodeSpec) -> None:
    if not spec.dynamic and not bool(mask.all()):
        raise ValueError("mask must be true everywhere unless the spec is dynamic; declare dynamic=True or pad nothing")
    sizes = torch.tensor([codebook.size for codebook in spec.columns], device=ids.device)
    legal = (ids >= 0) & (ids < sizes)
    wrong = torch.where(mask[..., None], ~legal, ids != PADDING)
    if bool(wrong.any()):
        _, _, column = wrong.nonzero()[0].tolist()
        book = spec.columns[column]
        raise ValueError(
            f"ids of codebook {book.name!r} must lie in [0, {book.size}) and be {PADDING} where masked, "
            f"got {int(ids[..., column].min())}..{int(ids[..., column].max())}"
        )
