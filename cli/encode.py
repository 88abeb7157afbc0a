"""``smalti encode``: pictures to a file of codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_tokenizer, number
from .decode import decode_codes
from .models import load_tokenizer, tokenizer_folder
from .outputs import file_target, say
from .pictures import NamedPicture, find_pictures, load_pictures
from .progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.transforms import Crop
    from ..tokenizers.base import VisualTokenizer
    from ..tokenizers.files import CodesFile

#: Pictures on ``--sheet`` at most: the first ones.
_SHOWN = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti encode``."""
    parser.add_argument("picture", nargs="+", help="pictures, or folders of them")
    parser.add_argument("--out", default="codes.safetensors", help="file of codes (default: codes.safetensors)")
    parser.add_argument(
        "--sheet", metavar="PNG", help=f"also show the first {_SHOWN} originals and what they decode to"
    )
    parser.add_argument("--skip-broken", action="store_true", help="name and leave out files that are no picture")
    parser.add_argument("--filter", default="lanczos", help="lanczos (default), bicubic, bilinear, box or nearest")
    parser.add_argument("--batch", type=number(least=1), default=32, help="pictures coded together (default: 32)")
    add_tokenizer(parser)


def run(args: argparse.Namespace) -> int:
    """Turn pictures upright, crop and resize them to the tokenizer's size, code them and write the codes.

    Raises:
        BrokenImageError: a file that is no picture, without ``--skip-broken``.
        UsageError: an output that cannot be written.
        FileNotFoundError: a missing picture or tokenizer.
        ValueError: an unknown filter, no readable picture, or a damaged tokenizer.
    """
    out = file_target(args.out, "--out", ".safetensors")
    sheet = file_target(args.sheet, "--sheet", ".png") if args.sheet else None
    pictures = find_pictures(args.picture)
    folder = tokenizer_folder(args.tokenizer)

    from ..data.transforms import Crop

    Crop(1, filter=args.filter)  # a wrong filter is told before anything is loaded
    tokenizer = load_tokenizer(folder, args.device)
    crop = Crop(tokenizer.image_size, filter=args.filter)
    broken: list[str] | None = [] if args.skip_broken else None
    coded, originals = encode_pictures(tokenizer, pictures, crop, args.batch, broken)
    rebuilt = decode_codes(tokenizer, coded.codes[: len(originals)], args.batch) if sheet else None
    for line in broken or ():
        sys.stderr.write(f"left out: {line}\n")
    coded.save(out)
    say(f"wrote {out}: {_describe(coded)}" + (f"; left out {len(broken)} broken" if broken else ""))
    if sheet and rebuilt is not None:
        say(_write_sheet(sheet, originals, rebuilt))
    return 0


def encode_pictures(
    tokenizer: VisualTokenizer,
    pictures: Sequence[NamedPicture],
    crop: Crop,
    batch: int,
    broken: list[str] | None = None,
) -> tuple[CodesFile, Tensor]:
    """Code pictures.

    Args:
        tokenizer: on any device.
        pictures: at least one.
        crop: to the tokenizer's size.
        batch: pictures coded together.
        broken: as in `load_pictures`.

    Returns:
        The codes, and the first :data:`_SHOWN` originals ``[S, 3, H, W]`` in [-1, 1].

    Raises:
        BrokenImageError: an unreadable picture, where ``broken`` is None.
        ValueError: every picture is broken.
    """
    import torch

    from ..eval.images.picture_sets import ContentHash
    from ..tokenizers.codes import Codes
    from ..tokenizers.files import CodesFile

    content = ContentHash()
    names: list[str] = []
    parts: list[Codes] = []
    originals: list[Tensor] = []
    with torch.inference_mode(), Bar("encoding", len(pictures)) as bar:
        for loaded in load_pictures(pictures, crop, batch, broken, content):
            originals.append(loaded.images[: max(0, _SHOWN - len(names))])
            names += loaded.names
            parts.append(tokenizer.encode(loaded.images.to(tokenizer.device, tokenizer.dtype)).to("cpu"))
            bar.update(loaded.seen, len(pictures))
    if not parts:
        raise ValueError(f"at least one readable picture is needed, got {len(pictures)} broken; check the paths")
    coded = CodesFile(Codes.cat(parts), tuple(names), tokenizer.fingerprint(), crop.describe(), content.digits)
    return coded, torch.cat(originals)


def _write_sheet(path: Path, originals: Tensor, rebuilt: Tensor) -> str:
    from ..eval.images.metrics import psnr
    from ..eval.sheets import reconstruction_sheet, save_png

    save_png(reconstruction_sheet(originals, rebuilt, columns=min(8, len(originals))), path)
    mean = float(psnr(rebuilt, originals).mean())
    return f"wrote {path}: {len(originals)} originals above their reconstructions, mean PSNR {mean:.1f} dB"


def _describe(coded: CodesFile) -> str:
    spec, names = coded.codes.spec, coded.names
    books = ", ".join(f"{book.depth} of {book.size} {book.name}" for book in spec.codebooks)
    shape = "x".join(map(str, spec.layout.shape))
    count = f"{len(names)} picture{'s' * (len(names) > 1)}"
    return f"{count}, each a {spec.layout.kind} of {shape} codes ({books}), by tokenizer {coded.fingerprint}"
