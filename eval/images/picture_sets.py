"""Sets of pictures as everything that scores them reads them: in order, as 8-bit levels, with a hash of their content.

Only one batch is in memory at a time.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...data.base import ImageSource
from ...data.decoding import decode, printable
from ...data.processes import Processes
from ...data.transforms import Crop

_Result = TypeVar("_Result")

Levels: TypeAlias = npt.NDArray[np.uint8]  #: one picture, [H, W, 3]


class ContentHash:
    """SHA-256 over sizes and pixels of pictures in the order they are added; independent of files and formats."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, picture: Image.Image) -> None:
        """Add one picture, mode RGB."""
        self._digest.update(f"{picture.width}x{picture.height};".encode())
        self._digest.update(picture.tobytes())

    def add_read(self, pictures: Tensor) -> None:
        """Add what a `ContentRead` of another process holds."""
        self._digest.update(pictures.numpy().data)

    @property
    def digits(self) -> str:
        """64 hex digits of what was added so far."""
        return self._digest.hexdigest()


class ContentRead:
    """What a `ContentHash` takes of some pictures, kept until it is their turn."""

    def __init__(self) -> None:
        self._read = bytearray()

    def add(self, picture: Image.Image) -> None:
        """Add one picture, mode RGB."""
        self._read += f"{picture.width}x{picture.height};".encode() + picture.tobytes()

    def tensor(self) -> Tensor:
        """Of all added, uint8."""
        return torch.frombuffer(self._read, dtype=torch.uint8)


class ArraySource(ImageSource):
    """Pictures that are arrays already, such as those of an exported file.

    Args:
        arrays: uint8 ``[H, W, 3]`` each.
    """

    def __init__(self, arrays: Sequence[Levels]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._arrays[index])

    def caption(self, index: int) -> str | None:
        return None

    def name(self, index: int) -> str:
        return f"picture {index}"


class Files(ImageSource):
    """Single files, in the order given.

    Raises:
        FileNotFoundError: one of them does not exist.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        for path in paths:
            if not Path(path).is_file():
                raise FileNotFoundError(f"a picture was expected at {printable(path)}, got no such file; check it")
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def picture(self, index: int) -> Image.Image:
        return decode(self._paths[index])

    def caption(self, index: int) -> str | None:
        return None

    def name(self, index: int) -> str:
        return printable(self._paths[index])


class Joined(ImageSource):
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)
        self._ends = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def picture(self, index: int) -> Image.Image:
        source, at = self._place(index)
        return source.picture(at)

    def caption(self, index: int) -> str | None:
        source, at = self._place(index)
        return source.caption(at)

    def name(self, index: int) -> str:
        source, at = self._place(index)
        return source.name(at)

    def _place(self, index: int) -> tuple[ImageSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}), got {index}; stay inside the pictures")
        which = bisect_right(self._ends, index)
        return self._sources[which], index - (self._ends[which - 1] if which else 0)


@dataclass(frozen=True)
class PictureSet:
    """Pictures to score, or to score against."""

    source: ImageSource
    name: str  #: of the data set and its split, for protocols
    crop: Crop | None = None  #: None takes them as they are; they must then share one size

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, size: int, content: ContentHash | None = None) -> Iterator[Tensor]:
        """The pictures in order, ``[B, 3, H, W]`` uint8.

        Args:
            size: B; the last batch may be smaller.
            content: takes what was read, before the crop.

        Raises:
            BrokenImageError: a picture cannot be read.
            ValueError: pictures of several sizes without a crop.
        """
        for start in range(0, len(self), size):
            yield self.batch(start, size, content)

    def batch(self, start: int, size: int, content: ContentHash | ContentRead | None = None) -> Tensor:
        """The batch that begins with picture ``start``; the rest as in `batches`."""
        return torch.stack([self._levels(index, content) for index in range(start, min(start + size, len(self)))])

    def shared(
        self, size: int, processes: Processes, work: Callable[[int, Tensor], _Result], content: ContentHash
    ) -> Iterator[_Result]:
        """What processes that share the batches make of them, in order.

        Args:
            size: as in `batches`.
            processes: read and work on a batch each.
            work: takes the number of a batch's first picture, and the batch.
            content: takes what all of them read, before the crop.

        Raises:
            BrokenImageError: as in `batches`, like ValueError.
            ValueError: likewise.
        """

        def of(start: int) -> tuple[_Result, Tensor | None]:
            read = content if processes.world == 1 else ContentRead()
            found = work(start, self.batch(start, size, read))
            return found, None if isinstance(read, ContentHash) else read.tensor()

        for found, read in processes.shared(range(0, len(self), size), of):
            if read is not None:
                content.add_read(read)
            yield found

    def arrays(self) -> Iterator[Levels]:
        """The pictures in order, after the crop; errors as in `batches`."""
        return arrays(self.batches(1))

    def describe(self) -> dict[str, Any]:
        """The crop for a protocol: what was done, or the size that the pictures came in."""
        if self.crop is not None:
            return self.crop.describe()
        return {"size": list(self._size), "mode": "none"}

    def _levels(self, index: int, content: ContentHash | ContentRead | None) -> Tensor:
        picture = self.source.picture(index)
        if content is not None:
            content.add(picture)
        if self.crop is not None:
            picture = self.crop(picture)
        elif (picture.height, picture.width) != self._size:
            height, width = self._size
            raise ValueError(
                f"pictures to score must be of one size, got {height}x{width} (height x width) in {self.source.name(0)}"
                f" and {picture.height}x{picture.width} in {self.source.name(index)}; crop them, or leave one size out"
            )
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the first picture."""
        first = self.source.picture(0)
        return first.height, first.width


def arrays(batches: Iterable[Tensor]) -> Iterator[Levels]:
    """Batches ``[B, 3, H, W]`` uint8 as one uint8 ``[H, W, 3]`` array a picture."""
    for batch in batches:
        yield from batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
