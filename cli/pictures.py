"""Pictures named on the command line: files, and folders of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.decoding import BrokenImageError, decode, printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..data.transforms import Crop
    from ..eval.images.picture_sets import ContentHash


@dataclass(frozen=True)
class NamedPicture:
    """A picture that has not been read yet."""

    name: str
    read: Callable[[], Image]  #: raises `BrokenImageError`


@dataclass(frozen=True)
class Loaded:
    """Some of the pictures, as tensors."""

    names: list[str]
    images: Tensor  #: [B, 3, H, W] float32 in [-1, 1]
    seen: int  #: pictures read so far, broken ones included


def find_pictures(paths: Sequence[str]) -> list[NamedPicture]:
    """Files as they are given, and every picture below a folder, sorted.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without pictures.
    """
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f"a picture was expected at {printable(path)}, got no such file; check the path")
    return [picture for path in paths for picture in (_below(path) if Path(path).is_dir() else [_single(path)])]


def load_pictures(
    pictures: Sequence[NamedPicture],
    crop: Crop,
    batch: int,
    broken: list[str] | None = None,
    content: ContentHash | None = None,
) -> Iterator[Loaded]:
    """Read, crop and batch pictures.

    Args:
        pictures: from `find_pictures`.
        crop: to the size that the tokenizer takes.
        batch: pictures of one batch; the last may be smaller.
        broken: takes the messages of unreadable pictures, which are left out; None to stop at the first.
        content: takes what was read, before the crop.

    Raises:
        BrokenImageError: an unreadable picture, where ``broken`` is None.
    """
    import torch

    from ..data.transforms import to_tensor

    names: list[str] = []
    images: list[Tensor] = []
    for seen, picture in enumerate(pictures, 1):
        try:
            image = picture.read()
            images.append(to_tensor(crop(image)))
            names.append(picture.name)
            if content is not None:
                content.add(image)
        except BrokenImageError as error:
            if broken is None:
                raise
            broken.append(str(error))
        if images and (len(images) == batch or seen == len(pictures)):
            yield Loaded(names, torch.stack(images), seen)
            names, images = [], []


def _single(path: str) -> NamedPicture:
    return NamedPicture(printable(path), partial(decode, path))


def _below(folder: str) -> list[NamedPicture]:
    from ..data.folder import ImageFolder

    source = ImageFolder(folder)
    names = (printable(str(Path(folder) / source.name(index))) for index in range(len(source)))
    return [NamedPicture(name, partial(source.picture, index)) for index, name in enumerate(names)]
