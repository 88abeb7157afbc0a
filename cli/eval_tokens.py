"""``smalti eval tokens``: the language that codes form."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_tokenizer, number
from .errors import UsageError
from .eval_pictures import add_batch, dataset_name, picture_source
from .models import load_tokenizer, tokenizer_folder
from .outputs import file_target, say
from .progress import Bar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..tokenizers.codes import Codes

#: Several processes encode; see `run_chosen`.
SHARES_WORK = True

#: The file by which a token store is known.
_STORE = "_store.json"


@dataclass(frozen=True)
class _Coded:
    """Codes and what a protocol says about them."""

    codes: Codes
    dataset: str
    dataset_hash: str
    dtype: str  #: of the forward pass, or that there was none
    crop: Mapping[str, Any] | None
    model: Mapping[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti eval tokens``."""
    text = "a token store, a codes file of smalti encode, or pictures: files, folders, tars, scenes[:full|small]"
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=text)
    add_tokenizer(parser)
    parser.add_argument("--out", default="tokens.json", help="result file (default: tokens.json)")
    text = "how a grid is read: raster (default), column, snake or hilbert; anything else is read as it is stored"
    parser.add_argument("--order", default="raster", help=text)
    text = "measure one codebook, one of its columns (pixel.1) or joint (default: every column, and all as one)"
    parser.add_argument("--codebook", metavar="NAME", help=text)
    parser.add_argument("--limit", type=number(least=2), metavar="N", help="take the first N images (default: all)")
    parser.add_argument("--dataset", metavar="NAME", help="name of the pictures and split (default: their file names)")
    text = "of pictures: lanczos (default), bicubic, bilinear, box or nearest"
    parser.add_argument("--filter", help=text)
    add_batch(parser)
    text = "tokens that the grammar reads at most (default: 65536)"
    parser.add_argument("--grammar", type=number(least=1), default=65_536, metavar="TOKENS", help=text)
    parser.add_argument("--seed", type=number(least=0), default=0, help="of halves, controls and held-out images")


def run(args: argparse.Namespace) -> int:
    """Read or make codes, measure every stream of them, print a table and write the result.

    Raises:
        UsageError: an output that cannot be written, or a tokenizer or filter beside stored codes.
        FileNotFoundError: missing codes, pictures or tokenizer.
        BrokenImageError: a file that is no picture.
        ValueError: damaged codes, an unknown codebook or order, an order that needs a grid, or a single image.
    """
    out = file_target(args.out, "--out", ".json")
    _check_order(args.order)
    coded = _coded(args)
    if not args.processes.first:
        return 0

    from ..eval.protocol import Protocol, write_result
    from ..eval.tables import markdown
    from ..eval.tokens.statistics import ESTIMATORS, TokenStatistics, statistics_table
    from ..eval.tokens.stream import streams

    chosen = streams(coded.codes, args.order, args.codebook)
    found: list[TokenStatistics] = []
    with Bar("measuring", len(chosen)) as bar:
        for stream in chosen:
            found.append(TokenStatistics.of(stream, args.seed, args.grammar))
            bar.update(len(found), len(chosen))
    protocol = Protocol(
        task="token-statistics",
        dataset=coded.dataset,
        dataset_hash=coded.dataset_hash,
        count=len(coded.codes),
        dtype=coded.dtype,
        seed=args.seed,
        crop=coded.crop,
        filter=None if coded.crop is None else str(coded.crop.get("filter")),
        extra={"order": args.order, "estimators": dict(ESTIMATORS), "grammar_budget": args.grammar},
    )
    write_result(out, {"streams": {one.name: one.to_dict() for one in found}}, protocol, coded.model)
    layout = coded.codes.spec.layout
    read = f"read in {args.order} order" if layout.kind == "grid" else "read as stored"
    say(f"{len(coded.codes):,} images, each a {layout.kind} of {'x'.join(map(str, layout.shape))}, {read}")
    say(markdown(statistics_table(found)))
    say(f"wrote {out}")
    return 0


def _check_order(order: str) -> None:
    from ..eval.tokens.scan import scan
    from ..tokenizers.codes import CodeLayout

    scan(CodeLayout("grid", (1, 1)), order)


def _coded(args: argparse.Namespace) -> _Coded:
    first = Path(args.source[0])
    is_store = (first / _STORE).is_file()
    if len(args.source) > 1 or not (is_store or first.suffix == ".safetensors"):
        return _pictures(args)
    for option in ("tokenizer", "filter"):
        if getattr(args, option) is not None:
            raise UsageError(
                f"--{option} is for pictures, but {str(first)!r} holds codes already; leave it out or give pictures"
            )
    return _store(first, args) if is_store else _file(first, args)


def _store(folder: Path, args: argparse.Namespace) -> _Coded:
    """A token store, which knows its pictures by their hash if at all."""
    from ..data.store import TokenStore
    from ..eval.tokens.stream import stored_codes

    store = TokenStore(folder)
    codes = stored_codes(store)
    known = store.index["pictures"] if int(store.index["pictures"], 16) else None
    named, digits = _identity(codes, known, args.dataset or str(store.plan.source["name"]))
    model = {"tokenizer_fingerprint": store.fingerprint}
    return _Coded(codes[: args.limit], named, digits, "stored codes", store.plan.transform or None, model)


def _file(path: Path, args: argparse.Namespace) -> _Coded:
    """A codes file, which knows its pictures by their hash if at all."""
    from ..tokenizers.files import CodesFile

    coded = CodesFile.open(path)
    named, digits = _identity(coded.codes, coded.pictures_hash, args.dataset or "a codes file")
    model = {"tokenizer_fingerprint": coded.fingerprint}
    return _Coded(coded.codes[: args.limit], named, digits, "stored codes", coded.transform or None, model)


def _identity(codes: Codes, pictures_hash: str | None, named: str) -> tuple[str, str]:
    """What a protocol calls stored codes, and a hash of their pictures, or of all codes where those are unknown."""
    from ..eval.protocol import state_hash

    if pictures_hash is not None:
        return named, pictures_hash
    return f"{named}, pictures unknown, hash of the codes", state_hash({"ids": codes.ids, "mask": codes.mask})


def _pictures(args: argparse.Namespace) -> _Coded:
    folder = tokenizer_folder(args.tokenizer)
    source = picture_source(args.source, args.limit)

    import torch

    from ..data.transforms import Crop, from_uint8
    from ..eval.images.picture_sets import ContentHash, PictureSet
    from ..tokenizers.codes import Codes

    chosen = args.filter or "lanczos"
    Crop(1, filter=chosen)  # a wrong filter is told before anything is loaded
    tokenizer = load_tokenizer(folder, args.device)
    crop = Crop(tokenizer.image_size, filter=chosen)
    pictures, content = PictureSet(source, dataset_name(args.source, args.dataset), crop), ContentHash()
    parts: list[Codes] = []

    def encode(_first: int, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = tokenizer.encode(from_uint8(levels).to(tokenizer.device, tokenizer.dtype)).to("cpu")
        return codes.ids, codes.mask

    with torch.inference_mode(), Bar("encoding", len(pictures)) as bar:
        for ids, mask in pictures.shared(args.batch, args.processes, encode, content):
            parts.append(Codes(ids, mask, tokenizer.spec))
            bar.update(sum(map(len, parts)), len(pictures))
    dtype = str(tokenizer.dtype).removeprefix("torch.")
    model = {"tokenizer": type(tokenizer).__name__, "tokenizer_fingerprint": tokenizer.fingerprint()}
    return _Coded(Codes.cat(parts), pictures.name, content.digits, dtype, crop.describe(), model)
