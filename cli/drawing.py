"""Pictures that are drawn into a folder one after the other, so that a killed command goes on where it stopped.

They wait in a hidden folder, named by a digest of everything that decides them, until all are there. Every file in it
is whole. What was drawn by another plan lies elsewhere and is not touched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import DiskFullError, atomic_file
from ..data.leftovers import clear, prefix, remove

if TYPE_CHECKING:
    from PIL.Image import Image

#: Says in the hidden folder that all pictures are drawn, and some may be in their place already.
_PLACING = "complete"


class Drawing:
    """Numbered pictures of one plan: ``0001.png`` and so on.

    The hidden folder is beside a place that is to be made, and in one that exists, which may be another disk than what
    is beside it. Two processes may draw the same plan at the same time: they write the same bytes, and the slower one
    finds that the other has finished.

    Args:
        place: folder of the pictures in the end. Files of other names stay in it.
        plan: everything that decides the pictures, as JSON values.
        count: pictures, at least one.
    """

    def __init__(self, place: Path, plan: Mapping[str, Any], count: int) -> None:
        self.place = place.resolve()
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
        name = f".{self.place.name}.{digest}"
        beside = self.place.with_name(name)
        self.folder = beside if beside.is_dir() or not self.place.is_dir() else self.place / name
        digits = max(4, len(str(count)))
        self.names = [f"{number:0{digits}}.png" for number in range(1, count + 1)]
        self._begun = self.folder.is_dir()
        if self.folder.parent.is_dir():
            clear(self.folder)

    def drawn(self) -> set[int]:
        """Indices of the pictures that are there already."""
        placing = (self.folder / _PLACING).exists()
        folders = (self.folder, self.place) if placing else (self.folder,)
        there = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
        return {index for index, name in enumerate(self.names) if name in there}

    def save(self, index: int, picture: Image) -> None:
        """Write a picture, whole or not at all.

        Raises:
            DiskFullError: no space left; what is drawn stays for the next time.
        """
        try:
            with atomic_file(self.folder / self.names[index], beside=self.folder) as partial:
                picture.save(partial, format="PNG", optimize=True)
                if not self._begun:
                    self.folder.mkdir(exist_ok=True)
                    self._begun = True
        except DiskFullError as error:
            raise DiskFullError(
                errno.ENOSPC,
                f"{self.place} needs more room than its disk has left, so nothing was written; free some space and "
                "start again, which goes on where this stopped",
            ) from error
        except FileNotFoundError:
            if not self._elsewhere():
                raise

    def finish(self) -> None:
        """Move all pictures to their place: by one rename where there is nothing yet, else file by file.

        Raises:
            FileNotFoundError: pictures are missing, such as those of a process that sees another disk.
        """
        missing = sorted(set(range(len(self.names))) - self.drawn())
        if missing and not self._elsewhere():
            raise FileNotFoundError(
                f"{len(self.names)} pictures were expected in {self.folder}, got none for {len(missing)} of them, "
                f"first {self.names[missing[0]]}; let all processes write to one disk, and start again"
            )
        if not os.path.lexists(self.place) and not (self.folder / _PLACING).exists():
            with suppress(OSError):  # another process was faster, or has just made the place
                self.folder.rename(self.place)
        with suppress(FileNotFoundError):  # another process has done the rest
            self._move()

    def _move(self) -> None:
        """A kill in between is no harm: the mark says that pictures which are gone are in their place."""
        (self.folder / _PLACING).touch()
        self.place.mkdir(exist_ok=True)
        for name in self.names:
            with suppress(FileNotFoundError):
                (self.folder / name).replace(self.place / name)
        emptied = self.folder.with_name(f"{prefix(self.folder)}placed")
        self.folder.rename(emptied)  # what another process still writes to it is in its place already
        remove(emptied)

    def _elsewhere(self) -> bool:
        """Whether another process has finished the plan."""
        return not self.folder.exists() and all((self.place / name).exists() for name in self.names)
