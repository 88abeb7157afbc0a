"""What the commands that score pictures share: which pictures are meant, how they are cropped, and the table."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

#: Pictures of the embedded world where nothing else is said.
_SCENES_COUNT = 1000

_TEXT = (
    "pictures, folders of them, WebDataset tars, or scenes[:full|small] for held-back pictures of the embedded world "
    f"({_SCENES_COUNT:,} unless --limit says another number)"
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
        ValueError: an unknown name.
    """
    if args.preset is None:
        return None
    from ..eval.presets import get_preset

    preset = get_preset(args.preset)
    named = {"limit" if name == "count" else name: value for name, value in preset.defaults.items()}
    for name, value in named.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)
    return preset


def picture_source(paths: Sequence[str], limit: int | None) -> ImageSource:
    """The pictures that a command line names.

    Args:
        paths: files, folders, tars, ``scenes``; at least one.
        limit: pictures at most, the first ones.

    Raises:
        FileNotFoundError: a path that does not exist.
        UsageError: an unknown world.
        ValueError: a folder or a tar without pictures.
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
    names = [f"scenes-{_world(path)} validation" if _is_scenes(path) else Path(path).absolute().name for path in paths]
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


def export_target(given: str | None, option: str) -> Path | None:
    """Where pictures will be exported to: an npz, or a folder that holds nothing yet.

    Raises:
        UsageError: a folder with something in it, or a place that cannot be written to.
    """
    if given is None:
        return None
    if not given.endswith("/") and Path(given).suffix.lower() == ".npz":
        return file_target(given, option, ".npz")
    folder = Path(given)
    file_target(str(folder / "000000.png"), option, ".png")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{option} must be a new or empty folder, or end in .npz, got {given!r} with files in it")
    return folder


def write_export(place: Path, pictures: Iterator[Levels], count: int) -> None:
    """Write uint8 ``[H, W, 3]`` arrays where `export_target` said, each place whole or not at all."""
    from ..eval.images.exports import write_adm, write_png_folder

    if place.suffix.lower() == ".npz":
        write_adm(place, pictures, count)
    else:
        write_png_folder(place, pictures)


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

        return Scenes(_world(path), "validation", limit or _SCENES_COUNT)
    from ..data.sources import ImageFolder, WebDataset

    if not Path(path).exists():
        raise FileNotFoundError(f"pictures were expected at {printable(path)}, got no such file; check the path")
    return ImageFolder(path) if Path(path).is_dir() else WebDataset(path)


def _is_single(path: str) -> bool:
    return not _is_scenes(path) and not Path(path).is_dir() and Path(path).suffix.lower() != ".tar"


def _is_scenes(path: str) -> bool:
    return path.partition(":")[0] == SCENES and not Path(path).exists()


def _world(path: str) -> Any:
    world = path.partition(":")[2] or "full"
    if world not in ("full", "small"):
        raise UsageError(f"the embedded world is {SCENES}:full or {SCENES}:small, got {path!r}; choose one of them")
    return world
