"""GenEval's folders of images (arXiv 2310.11513): written for the official scorer, and read back if they are complete.

The layout is ``<five digits>/metadata.jsonl`` beside ``<five digits>/samples/*.png``, one numbered folder a prompt. The
official scorer takes whatever it finds, so runs with prompts missing have been published; here every prompt must have
its images.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..data.decoding import BrokenImageError
from ..data.files import atomic_file
from .geneval import identity
from .geneval_prompts import Entry, geneval_prompts

PER_PROMPT = 4  #: images of each prompt in a published run


@dataclass(frozen=True)
class Sample:
    """One image of the layout."""

    path: Path  #: of the PNG
    entry: Entry  #: its prompt's metadata


def write_layout(folder: str | Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Make the folders with their metadata, for a generator to put ``samples/00000.png`` and so on into.

    Folders that exist keep their samples.

    Raises:
        ValueError: if a folder has the metadata of another prompt.
    """
    for index, entry in enumerate(entries):
        place = _place(folder, index)
        path = place / "metadata.jsonl"
        if path.exists() and _read_entry(path) != dict(entry):
            raise ValueError(f"{path} must hold {entry['prompt']!r}, got another prompt; choose another folder")
        (place / "samples").mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(entry), encoding="utf-8")


def read_layout(
    folder: str | Path,
    entries: Sequence[Mapping[str, Any]] | None = None,
    *,
    per_prompt: int = PER_PROMPT,
    rewritten: bool = False,
) -> list[Sample]:
    """The images of a complete layout, in the order of the prompts and then of their numbers.

    Args:
        folder: holds the numbered folders; other names are passed over, as the official scorer does.
        entries: the prompts there must be; the official 553 by default.
        per_prompt: number of images each must have, named ``<digits>.png``.
        rewritten: whether the metadata may have another text as ``prompt``, everything else being equal.

    Raises:
        FileNotFoundError: if there is no such folder.
        BrokenImageError: if an image is no readable PNG.
        ValueError: if a prompt's folder is missing or there is one too many, if its metadata is not that prompt's, or
            if it has too few or too many images. The message names the first.
    """
    wanted = geneval_prompts() if entries is None else entries
    places = _places(Path(folder), wanted)
    samples: list[Sample] = []
    for index, entry in enumerate(wanted):
        found = _read_entry(places[index] / "metadata.jsonl")
        if identity(found, rewritten) != identity(entry, rewritten) or not isinstance(found.get("prompt"), str):
            raise ValueError(
                f"{places[index]} must hold the metadata of prompt {index}, {entry['prompt']!r}, got "
                f"{found.get('prompt')!r}; write the folders with `smalti eval geneval prompts --layout`"
            )
        samples += [Sample(path, found) for path in _pngs(places[index] / "samples", per_prompt, entry)]
    for sample in samples:
        _check_png(sample.path)
    return samples


def _place(folder: str | Path, index: int) -> Path:
    return Path(folder) / f"{index:05d}"


def _places(folder: Path, wanted: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The folder of each prompt."""
    if not folder.is_dir():
        raise FileNotFoundError(f"expected GenEval's folders in {folder}, found no such folder; check the path")
    found: dict[int, Path] = {}
    for place in sorted(folder.iterdir()):
        if place.name.isdecimal() and place.is_dir():
            other = found.setdefault(int(place.name), place)
            if other is not place:
                raise ValueError(
                    f"expected one folder of each number in {folder}, got {other.name} and {place.name}; take one out"
                )
    missing = [index for index in range(len(wanted)) if index not in found]
    if missing:
        first = missing[0]
        raise ValueError(
            f"expected {len(wanted)} prompt folders in {folder}, got {len(wanted) - len(missing)}; draw the missing "
            f"ones, first {first:05d} ({wanted[first]['prompt']!r})"
        )
    more = sorted(set(found) - set(range(len(wanted))))
    if more:
        raise ValueError(
            f"expected {len(wanted)} prompt folders in {folder}, got {len(found)}; take out {found[more[0]].name}, "
            "which is no prompt's"
        )
    return [found[index] for index in range(len(wanted))]


def _read_entry(path: Path) -> Entry:
    if not path.is_file():
        raise ValueError(f"expected a prompt's metadata in {path}, found no such file; write the folders again")
    try:
        entry: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected a JSON object in {path}, got text that does not parse; write it again") from error
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(entry).__name__}; write the folders again")
    return cast("Entry", entry)


def _pngs(folder: Path, per_prompt: int, entry: Mapping[str, Any]) -> list[Path]:
    paths = [path for path in folder.iterdir() if re.fullmatch(r"\d+\.png", path.name)] if folder.is_dir() else []
    if len(paths) != per_prompt:
        few = len(paths) < per_prompt
        raise ValueError(
            f"expected {per_prompt} images in {folder} ({entry['prompt']!r}), got {len(paths)}; "
            f"{'draw the missing ones' if few else 'take out the others'}, or score with another number per prompt"
        )
    return sorted(paths, key=lambda path: (int(path.stem), path.name))


def _check_png(path: Path) -> None:
    """Read the file's chunks and their checksums, which costs less than its pixels."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise BrokenImageError(f"expected a readable PNG, got {str(path)!r}; draw the image again") from error
