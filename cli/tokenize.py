"""``smalti tokenize``: the pictures of a source to a token store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.decoding import printable
from ..data.places import check_place
from .arguments import add_tokenizer, number
from .errors import InterruptedRunError, UsageError
from .eval_pictures import dataset_name, picture_source
from .models import load_tokenizer, tokenizer_folder
from .outputs import say
from .progress import Bar

if TYPE_CHECKING:
    from ..data.base import ImageSource
    from ..training.tokenize import Tokenized

_LAST_SEED = 2**63 - 1

#: Pictures of a shard where nothing else is said.
_SHARD = 10_000

_TABLES, _ROWS, _PACKED = (
    (".csv", ".json", ".jsonl"),
    (".parquet", ".arrow"),
    (".tar.gz", ".tgz", ".tar.zst", ".tar.xz"),
)

_SOURCE = (
    "pictures, folders of them, WebDataset tars, folders of tars, tables (csv, json, jsonl), parquet or arrow files, "
    "npz files of ADM, "
    "or scenes[:full|small[:train|validation|heldout]] of the embedded world"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti tokenize``."""
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the store, new or begun alike")
    told = "where captions are: a member of tars (txt, json.caption), a column of tables; any word for .txt in folders"
    parser.add_argument("--captions", metavar="FIELD", help=told)
    parser.add_argument("--limit", type=number(least=1), metavar="N", help="take the first N pictures (default: all)")
    parser.add_argument("--dataset", metavar="NAME", help="name of the pictures and split (default: their file names)")
    told = "center (default), random: place and scale drawn, or adm: ADM's, that of ImageNet"
    parser.add_argument("--crop", choices=("center", "random", "adm"), default="center", help=told)
    parser.add_argument(
        "--crops", type=number(least=1, most=1000), default=1, help="crops of every picture (default: 1)"
    )
    parser.add_argument("--flip", action="store_true", help="mirror every second crop, by chance")
    parser.add_argument("--filter", help="lanczos (default), bicubic, bilinear, box or nearest")
    parser.add_argument("--seed", type=number(least=0, most=_LAST_SEED), default=0, help="of the crops (default: 0)")
    parser.add_argument("--batch", type=number(least=1), default=64, help="crops coded together (default: 64)")
    shards = parser.add_mutually_exclusive_group()
    told = f"pictures of a shard (default: {_SHARD}); each is made by one process, and made anew where that is killed"
    shards.add_argument("--shard-size", type=number(least=1), default=_SHARD, metavar="N", help=told)
    shards.add_argument("--shards", type=number(least=1), metavar="N", help="how many shards to make instead")
    parser.add_argument("--workers", type=number(least=0), default=0, help="processes that read pictures (default: 0)")
    told = "precision that the tokenizer computes in, quantizers left out (default: float32)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help=told)
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out files that are no picture, and count them"
    )
    add_tokenizer(parser)


def run(args: argparse.Namespace) -> int:
    """Make what is missing of the store; where nothing is, compare its checksums.

    Several processes may run the same command at once and share out the shards.

    Raises:
        UsageError: an unknown world or split, or captions where there can be none.
        InterruptedRunError: Ctrl-C.
        FileNotFoundError: missing pictures or tokenizer.
        BrokenImageError: a file that is no picture, without ``--skip-broken``.
        ValueError: crops that would all be the same, a damaged tokenizer or shard, or a store that was begun otherwise.
    """
    from ..data.transforms import Crop
    from ..training.tokenize import TokenizeSettings, tokenize_source

    out = _store_folder(args.out)
    source = caption_source(args.source, args.limit, args.captions)
    folder = tokenizer_folder(args.tokenizer)
    options: dict[str, Any] = {"mode": args.crop, "flip": args.flip} | ({"filter": args.filter} if args.filter else {})
    size = args.shard_size if args.shards is None else -(-len(source) // args.shards)
    rest: list[Any] = [args.crops, args.batch, size, args.workers, args.seed]
    rest += ["skip" if args.skip_broken else "raise", args.dtype]
    TokenizeSettings(Crop(1, **options), *rest)  # what is wrong is told before anything is loaded
    tokenizer = load_tokenizer(folder, args.device)
    settings = TokenizeSettings(Crop(tokenizer.image_size, **options), *rest)
    name = dataset_name(args.source, args.dataset)
    try:
        with Bar("tokenizing", len(source)) as bar:
            done = tokenize_source(tokenizer, source, out, name, settings, bar.update)
    except KeyboardInterrupt as error:
        raise InterruptedRunError("interrupted; the same command goes on after the last whole shard") from error
    _tell(out, done)
    return 0


def caption_source(paths: Sequence[str], limit: int | None, captions: str | None) -> ImageSource:
    """The pictures that a command line names, with their captions.

    Args:
        paths: files, folders, tars, tables, parquet or arrow files, npz files, ``scenes``; at least one.
        limit: pictures at most, the first ones.
        captions: field or column of the captions; a table's is ``caption`` by default, elsewhere there is none.

    Raises:
        FileNotFoundError: a path that does not exist.
        UsageError: an unknown world or split, or captions of what has none.
        ValueError: nothing to read, or no such captions.
    """
    from ..data.base import Part
    from ..eval.images.picture_sets import Joined

    told = [_captioned(path, captions) for path in paths]
    bare = [path for path, source in zip(paths, told, strict=True) if source is None]
    if captions is not None and bare:
        raise UsageError(f"--captions is for folders, tars and tables, got {printable(bare[0])}; leave it out")
    if len(bare) == len(paths):
        return picture_source(paths, limit)
    sources = [
        picture_source([path], limit) if source is None else source for path, source in zip(paths, told, strict=True)
    ]
    source = sources[0] if len(sources) == 1 else Joined(sources)
    return source if limit is None or limit >= len(source) else Part(source, 0, limit)


def _captioned(path: str, captions: str | None) -> ImageSource | None:
    """A source of one path that may have captions, or None where pictures alone are meant."""
    from ..data.sources import ArrowFiles, CaptionTable, ImageFolder, WebDataset

    suffix, file = Path(path).suffix.lower(), Path(path)
    if file.is_dir():
        if (file / "state.json").is_file():
            return ArrowFiles(path, caption_column=captions)
        tars = sorted(map(str, file.glob("*.tar")))
        return WebDataset(tars, captions) if tars else ImageFolder(path, captions=captions is not None)
    if file.is_file() and suffix in _TABLES:
        return CaptionTable(path, caption_column=captions or "caption")
    if file.is_file() and suffix in _ROWS:
        return ArrowFiles(path, caption_column=captions)
    if file.name.lower().endswith(_PACKED):
        raise UsageError(f"tars are read where they lie, uncompressed, got {printable(path)}; decompress it")
    return WebDataset(path, captions) if file.is_file() and suffix == ".tar" else None


def _store_folder(given: str) -> Path:
    path = Path(given)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out must be a folder, got the file {given!r}; choose another place")
    check_place(path / "_store.json", "--out")
    return path


def _tell(out: Path, done: Tokenized) -> None:
    from ..data.store import TokenStore

    if done.left_out:
        sys.stderr.write(f"left out {_count(done.left_out, 'broken picture')}; their names are in the shards\n")
    if done.pictures:
        rate, waiting = done.pictures / done.seconds, done.waited / done.seconds
        pictures = _count(done.pictures, "picture")
        say(f"{pictures} in {done.seconds:.1f} s, {rate:.1f}/s, {waiting:.0%} of it waiting for them")
    if done.index is None:
        say(f"the rest of {out} is being made by other processes; once they are done, the same command looks at it")
        return
    shards = done.index["shards"]
    if not done.pictures:
        say(f"{out} was finished before; the checksums of {_count(len(shards), 'shard')} are right")
    rows, size = done.index["rows"], sum(shard["bytes"] for shard in shards)
    made = f"{size / rows:.1f} bytes each, by tokenizer {TokenStore(out).fingerprint}"
    say(f"{out}: {_count(rows, 'row')} in {_count(len(shards), 'shard')}, {made}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
