"""``smalti decode``: a file of codes back to pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_scale, add_tokenizer, number
from .models import load_tokenizer, tokenizer_folder
from .outputs import picture_target, say, write_pictures
from .progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..tokenizers.base import VisualTokenizer
    from ..tokenizers.codes import Codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti decode``."""
    parser.add_argument("codes", help="file of codes from smalti encode")
    parser.add_argument(
        "--out", default="out.png", help="a PNG (several pictures make a sheet), or a folder (out/) for one PNG each"
    )
    parser.add_argument("--batch", type=number(least=1), default=32, help="pictures decoded together (default: 32)")
    add_scale(parser)
    add_tokenizer(parser)


def run(args: argparse.Namespace) -> int:
    """Decode the codes with the tokenizer that made them and write the pictures.

    Raises:
        UsageError: an output that cannot be written, or more pictures than a sheet holds.
        FileNotFoundError: no codes or no tokenizer.
        ValueError: codes of another tokenizer, or a damaged file.
    """
    target = picture_target(args.out)
    folder = tokenizer_folder(args.tokenizer)

    from ..data.transforms import to_pil
    from ..tokenizers.files import CodesFile

    coded = CodesFile.open(args.codes)
    target.check_count(len(coded.codes))
    tokenizer = load_tokenizer(folder, args.device)
    coded.check_tokenizer(tokenizer)
    pictures = to_pil(decode_codes(tokenizer, coded.codes, args.batch))
    labels = [Path(name).name for name in coded.names]
    say(write_pictures(pictures, labels, target, args.scale))
    return 0


def decode_codes(tokenizer: VisualTokenizer, codes: Codes, batch: int) -> Tensor:
    """Pixels of codes, ``[M, 3, H, W]`` float32 in [-1, 1] on the CPU.

    Args:
        tokenizer: the one that made the codes, on any device.
        codes: of M >= 1 pictures.
        batch: pictures decoded together.
    """
    import torch

    images: list[Tensor] = []
    with torch.inference_mode(), Bar("decoding", len(codes)) as bar:
        for start in range(0, len(codes), batch):
            part = codes[start : start + batch].to(tokenizer.device)
            images.append(tokenizer.decode(part).float().cpu())
            bar.update(min(start + batch, len(codes)), len(codes))
    return torch.cat(images)
