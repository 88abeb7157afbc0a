"""Where pictures go: one PNG, a sheet, or a folder of numbered PNGs. Checked before the work, written after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.files import atomic_file, atomic_folder
from ..data.places import check_place
from .errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pictures on one sheet at most; more make a file that no viewer opens.
SHEET_LIMIT = 400


@dataclass(frozen=True)
class Target:
    """Where pictures will be written."""

    path: Path
    is_folder: bool  #: numbered pictures go into it

    def check_count(self, count: int) -> None:
        """Raise unless ``count`` pictures fit.

        Raises:
            UsageError: too many for one sheet.
        """
        if not self.is_folder and count > SHEET_LIMIT:
            raise UsageError(
                f"a sheet holds at most {SHEET_LIMIT} pictures, got {count}; give a folder as --out: {self.path.stem}/"
            )


def picture_target(given: str) -> Target:
    """Where ``--out`` points: a folder if it exists as one or ends in ``/``, else a PNG.

    Raises:
        UsageError: another ending, or a place that cannot be written to.
    """
    if given.endswith(("/", os.sep)) or Path(given).is_dir():
        _check_place(Path(given) / "0001.png", "--out")
        return Target(Path(given), is_folder=True)
    return Target(file_target(given, "--out", ".png", " or be a folder (end in /)"), is_folder=False)


def file_target(given: str, option: str, suffix: str, also: str = "") -> Path:
    """The file that ``option`` names.

    Args:
        given: its value.
        option: its name.
        suffix: ending that the file must have, with the dot.
        also: what else is taken, for the message.

    Raises:
        UsageError: another ending, a folder, or a place that cannot be written to.
    """
    path = Path(given)
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} must end in {suffix}{also}, got {given!r}; rename it")
    if path.is_dir():
        raise UsageError(f"{option} must be a file, got the folder {given!r}; name a file in it")
    _check_place(path, option)
    return path


def write_pictures(
    pictures: Sequence[Image], labels: Sequence[str], target: Target, scale: int | None, columns: int | None = None
) -> str:
    """Write one PNG of the picture's own size, a labelled sheet of several, or a folder of numbered PNGs.

    Args:
        pictures: of one size, at least one.
        labels: one for each, under it on a sheet.
        target: where to.
        scale: enlargement by repeating pixels; None for 1, on a sheet about 128 pixels a side.
        columns: of a sheet; None for a square one.

    Returns:
        A line that says what was written where.

    Raises:
        DiskFullError: no space left; what was there before is untouched.
    """
    from ..eval.sheets import sample_sheet, save_png

    if len(pictures) > 1 and not target.is_folder:
        save_png(sample_sheet(pictures, labels, columns=columns, scale=scale), target.path)
        return f"wrote {target.path}: {_count(pictures)} on one sheet"
    larger = [enlarged(picture, scale or 1) for picture in pictures]
    if target.is_folder:
        _save_numbered(larger, target.path)
    else:
        save_png(larger[0], target.path)
    return f"wrote {target.path}: {_count(larger)}"


def folder_line(folder: Path, names: Sequence[str]) -> str:
    """A line that says which pictures were written to a folder."""
    from PIL import Image

    with Image.open(folder / names[0]) as picture:
        return f"wrote {folder}: {_count([picture] * len(names))}"


def enlarged(picture: Image, scale: int) -> Image:
    """A picture with every pixel repeated ``scale`` times on both sides."""
    from PIL.Image import Resampling

    return picture.resize((picture.width * scale, picture.height * scale), Resampling.NEAREST)


def say(line: str) -> None:
    """One line of a command's answer, on standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _save_numbered(pictures: Sequence[Image], folder: Path) -> None:
    """All pictures or none; other files of the folder stay."""
    from ..eval.sheets import save_png

    digits = max(4, len(str(len(pictures))))
    names = [f"{index:0{digits}}.png" for index in range(1, len(pictures) + 1)]
    with ExitStack() as stack:
        if folder.exists():
            places = [stack.enter_context(atomic_file(folder / name)) for name in names]
        else:
            fresh = stack.enter_context(atomic_folder(folder))
            places = [fresh / name for name in names]
        for picture, place in zip(pictures, places, strict=True):
            save_png(picture, place)


def _count(pictures: Sequence[Image]) -> str:
    width, height = pictures[0].size
    return f"{len(pictures)} picture{'s' * (len(pictures) > 1)} of {width}x{height}"


def _check_place(path: Path, option: str) -> None:
    try:
        check_place(path, option)
    except ValueError as error:
        raise UsageError(str(error)) from error
