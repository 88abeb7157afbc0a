"""What the commands that score pictures share: which are meant, how they are cropped, where they go, and the table."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..data.decoding import printable
from .arguments import number
from .errors import UsageError
from .outputs import file_target, say

if TYPE_CHECKING:
    from ..data.base import ImageSource
    from ..data.transforms import Crop
    from ..eval.images.picture_sets import Levels
    from ..eval.presets import Preset

#: What stands for the embedded world in place of a path.
SCENES = "scenes"

#: What stands before the file of the published Inception in place of a folder.
INCEPTION = "inception:"

#: Pictures of the embedded world where nothing else is said.
_SCENES_COUNT = 1000

_LAST_SEED = 2**63 - 1

_TEXT = (
    "pictures, folders of them, WebDataset tars, npz files of ADM, or scenes[:full|small[:train|validation|heldout]] "
    f"of the embedded world ({_SCENES_COUNT:,} unless --limit says another number)"
)


def add_pictures(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Declare the pictures, ``--limit``, ``--dataset`` and ``--batch``."""
    parser.add_argument("pictures", nargs="*" if optional else "+", metavar="PICTURES", help=_TEXT)
    parser.add_argument("--limit", type=number(least=1), metavar="N", help="take the first N pictures (default: all)")
    parser.add_argument("--dataset", metavar="NAME", help="name of the pictures and split (default: their file names)")
    add_batch(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Declare ``--batch``."""
    parser.add_argument("--batch", type=number(least=1), default=32, help="pictures handled together (default: 32)")


def add_seed(parser: argparse.ArgumentParser, told: str) -> None:
    """Declare ``--seed``; ``told`` says of what."""
    seed = number(least=0, most=_LAST_SEED)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help=f"of {told} (default: 0)")


def add_crop(parser: argparse.ArgumentParser, size: str) -> None:
    """Declare ``--size``, ``--crop`` and ``--filter``; ``size`` says what the default size is."""
    parser.add_argument("--size", type=number(least=1), metavar="N", help=f"side of the crop (default: {size})")
    parser.add_argument("--crop", choices=("center", "adm"), help="center (default), or adm: ADM's, that of ImageNet")
    parser.add_argument("--filter", help="of center: lanczos (default), bicubic, bilinear, box or nearest")


def add_extractor(parser: argparse.ArgumentParser, told: str, required: bool = False) -> None:
    """Declare ``--extractor`` and ``--unknown-weights``."""
    text = f"{told}: inception:FILE, or a folder of a vision model"
    parser.add_argument("--extractor", metavar="SPEC", required=required, help=text)
    text = "take an Inception file of other weights than the published ones; their hash is written down"
    parser.add_argument("--unknown-weights", action="store_true", help=text)


def check_extractor(args: argparse.Namespace) -> None:
    """Raise where ``--unknown-weights`` would be passed over.

    Raises:
        UsageError: the extractor is no Inception.
    """
    if args.unknown_weights and not (args.extractor or "").startswith(INCEPTION):
        came = f"--extractor {args.extractor}" if args.extractor else "no --extractor"
        raise UsageError(f"--unknown-weights is for --extractor inception:FILE, got {came}; leave it out")


def chosen_crop(args: argparse.Namespace, size: int | tuple[int, int]) -> Crop:
    """The crop of ``--size``, ``--crop`` and ``--filter``.

    Args:
        args: those of `add_crop`.
        size: where ``--size`` is not given.

    Raises:
        ValueError: an unknown filter, or one that does not apply.
    """
    from ..data.transforms import Crop

    options = {"mode": args.crop, "filter": args.filter}
    return Crop(size if args.size is None else args.size, **{name: it for name, it in options.items() if it})


def with_preset(args: argparse.Namespace) -> Preset | None:
    """The preset of ``--preset``; what it says about options that were not given is set on ``args``.

    Raises:
        UsageError: ``--limit`` beside it: a preset never takes a part of the pictures.
        ValueError: an unknown name.
    """
    if args.preset is None:
        return None
    from ..eval.presets import get_preset

    preset = get_preset(args.preset)
    if getattr(args, "limit", None) is not None:
        raise UsageError(
            f"the preset {preset.name} takes all of {preset.count:,} pictures, got --limit {args.limit}; leave one out"
        )
    for name, value in preset.defaults.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)
    return preset


def check_preset(preset: Preset | None, task: str, paths: Sequence[str], count: int) -> None:
    """Raise where pictures cannot be those of a preset, before anything is loaded.

    Args:
        preset: None passes.
        task: what the command measures.
        paths: what the command line names, drawn pictures and originals alike.
        count: pictures to be scored.

    Raises:
        UsageError: a preset of another task, pictures of the embedded world, or of another number.
    """
    if preset is None:
        return
    if preset.task != task:
        raise UsageError(f"the preset {preset.name} is of {preset.task}, got a {task}; choose one of this command")
    scenes = [path for path in paths if _is_scenes(path)]
    if scenes:
        raise UsageError(
            f"the preset {preset.name} is of published pictures, got {scenes[0]} of the embedded world; name the "
            "pictures, or leave the preset out"
        )
    if count != preset.count:
        raise UsageError(
            f"the preset {preset.name} needs exactly {preset.count:,} pictures, got {count:,}; name those of the "
            "preset, or leave it out"
        )


def picture_source(paths: Sequence[str], limit: int | None) -> ImageSource:
    """The pictures that a command line names.

    Args:
        paths: files, folders, tars, npz files, ``scenes``; at least one.
        limit: pictures at most, the first ones.

    Raises:
        FileNotFoundError: a path that does not exist.
        UsageError: an unknown world.
        ValueError: a folder, a tar or an npz without pictures.
    """
    from ..data.base import Part
    from ..eval.images.picture_sets import Files, Joined

    sources: list[ImageSource] = []
    for single, found in [(single, list(group)) for single, group in groupby(paths, _is_single)]:
        sources += [Files(found)] if single else [_source(path, limit) for path in found]
    source = sources[0] if len(sources) == 1 else Joined(sources)
    return source if limit is None or limit >= len(source) else Part(source, 0, limit)


def dataset_name(paths: Sequence[str], given: str | None) -> str:
    """What a protocol calls the pictures: the name given, or the last parts of their paths."""
    if given:
        return given
    names = [f"scenes-{' '.join(_world(path))}" if _is_scenes(path) else Path(path).absolute().name for path in paths]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def say_scores(scores: Mapping[str, Any], count: int) -> None:
    """Print scores below each other, four significant digits each."""
    from ..eval.protocol import flat

    found = flat(scores)
    width = max(map(len, found))
    say(f"{count:,} pictures")
    for name, value in found.items():
        say(f"  {name:<{width}}  {_UNITS.get(name, _plain)(value)}")


@contextmanager
def say_warnings() -> Generator[None]:
    """Turn warnings about the numbers into one line each on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for line in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        sys.stderr.write(f"note: {line}\n")


@dataclass(frozen=True)
class Export:
    """Where pictures will be written, whole or not at all: one npz, or a folder of PNGs."""

    path: Path
    is_folder: bool
    option: str  #: what named it

    @classmethod
    def npz(cls, given: str, option: str) -> Self:
        """An npz.

        Raises:
            UsageError: another ending, or a place that cannot be written to.
        """
        return cls(file_target(given, option, ".npz"), False, option)

    @classmethod
    def folder(cls, given: str, option: str) -> Self:
        """A folder that holds nothing yet.

        Raises:
            UsageError: a folder with something in it, one named like an npz, or a place that cannot be written to.
        """
        folder = Path(given)
        if folder.suffix.lower() == ".npz":
            raise UsageError(f"{option} must be a folder of another ending than .npz, got {given!r}; rename it")
        file_target(str(folder / "000000.png"), option, ".png")
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{option} must be a new or empty folder, got {given!r} with files in it; name another")
        return cls(folder, True, option)

    @classmethod
    def either(cls, given: str, option: str) -> Self:
        """An npz where the ending says so, else a folder; errors as of both."""
        is_npz = Path(given).suffix.lower() == ".npz" and not given.endswith("/")
        return cls.npz(given, option) if is_npz else cls.folder(given, option)

    def write(self, pictures: Iterator[Levels], count: int) -> None:
        """Write ``count`` uint8 arrays ``[H, W, 3]``; errors as of `write_adm` and `write_png_folder`."""
        from ..eval.images.exports import write_adm, write_png_folder

        if self.is_folder:
            write_png_folder(self.path, pictures)
        else:
            write_adm(self.path, pictures, count)


def check_apart(exports: Sequence[Export], out: Path, read: Sequence[str]) -> None:
    """Raise where one output would take the place of another, or of pictures that are read.

    Args:
        exports: where pictures will go.
        out: where the result will go.
        read: paths of pictures.

    Raises:
        UsageError: one place named twice, or one inside a folder of the other.
    """
    places = [(export.option, export.path.resolve(), export.is_folder) for export in exports]
    places.append(("--out", out.resolve(), False))
    for (option, path, is_folder), (other, second, holds) in combinations(places, 2):
        if path == second or (is_folder and path in second.parents) or (holds and second in path.parents):
            raise UsageError(f"{option} and {other} must lie apart, got {path} and {second}; name another place")
    sources = {Path(path).resolve() for path in read}
    for option, path, _ in places:
        if path in sources:
            raise UsageError(f"{option} must be another file than the pictures, got {path} for both; rename it")


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


_UNITS: Mapping[str, Callable[[float], str]] = {
    "psnr": lambda value: f"{value:.2f} dB",
    "psnr_pooled": lambda value: f"{value:.2f} dB",
    "bits": lambda value: f"{value:.1f}",
}


def _source(path: str, limit: int | None) -> ImageSource:
    if _is_scenes(path):
        from ..data.scenes import Scenes

        world, split = _world(path)
        return Scenes(world, split, limit or _SCENES_COUNT)
    from ..data.sources import ImageFolder, WebDataset

    if not Path(path).exists():
        raise FileNotFoundError(f"pictures were expected at {printable(path)}, got no such file; check the path")
    if Path(path).is_dir():
        return ImageFolder(path)
    if Path(path).suffix.lower() == ".tar":
        return WebDataset(path)
    from ..eval.images.exports import read_images
    from ..eval.images.picture_sets import ArraySource

    return ArraySource(read_images(path))


def _is_single(path: str) -> bool:
    return not _is_scenes(path) and not Path(path).is_dir() and Path(path).suffix.lower() not in (".npz", ".tar")


def _is_scenes(path: str) -> bool:
    return path.partition(":")[0] == SCENES and not Path(path).exists()


def _world(path: str) -> tuple[Any, Any]:
    """World and split of the embedded world that are meant."""
    from ..data.scene_world import SPLITS

    given = [part or None for part in path.split(":")[1:]]
    world, split = (*given, None, None)[:2]
    world, split = world or "full", split or "validation"
    if world not in ("full", "small") or split not in SPLITS or len(given) > 2:
        raise UsageError(
            f"the embedded world is {SCENES}:full or {SCENES}:small, and its split one of {', '.join(SPLITS)}, as in "
            f"{SCENES}:full:train, got {path!r}; choose one of them"
        )
    return world, split
