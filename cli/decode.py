"""``smalti decode``: a file of codes back to pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_decoder, add_scale, add_tokenizer, number
from .models import load_decoder, load_tokenizer, tokenizer_folder
from .outputs import picture_target, say, write_pictures
from .progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..generation.detokenizers import Detokenizer
    from ..tokenizers.base import VisualTokenizer
    from ..tokenizers.codes import Codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``smalti decode``."""
    parser.add_argument("codes", help="file of codes from smalti encode")
    parser.add_argument(
        "--out", default="out.png", help="a PNG (several pictures make a sheet), or a folder (out/) for one PNG each"
    )
    parser.add_argument("--batch", type=number(least=1), default=32, help="pictures decoded together (default: 32)")
    parser.add_argument("--seed", type=number(least=0), default=0, help="of decoders that draw (default: 0)")
    add_decoder(parser, "pixels")
    add_scale(parser)
    add_tokenizer(parser)


def run(args: argparse.Namespace) -> int:
    """Decode the codes with the tokenizer that made them and write the pictures.

    Raises:
        UsageError: an output that cannot be written, or more pictures than a sheet holds.
        FileNotFoundError: no codes, no tokenizer or no decoder.
        ValueError: codes or a decoder of another tokenizer, or a damaged file.
    """
    target = picture_target(args.out)
    folder = tokenizer_folder(args.tokenizer)

    from ..data.transforms import to_pil
    from ..generation.coded import PIXELS
    from ..tokenizers.files import CodesFile

    coded = CodesFile.open(args.codes)
    target.check_count(len(coded.codes))
    tokenizer = load_tokenizer(folder, args.device)
    coded.check_tokenizer(tokenizer)
    own = args.decoder in (None, PIXELS)
    painter = tokenizer if own else load_decoder(Path(args.decoder), tokenizer)
    pictures = to_pil(decode_codes(painter, coded.codes, args.batch, args.seed))
    labels = [Path(name).name for name in coded.names]
    say(write_pictures(pictures, labels, target, args.scale))
    return 0


def decode_codes(painter: VisualTokenizer | Detokenizer, codes: Codes, batch: int, seed: int = 0) -> Tensor:
    """Pixels of codes, ``[M, 3, H, W]`` float32 in [-1, 1] on the CPU.

    Args:
        painter: the tokenizer that made the codes, or a decoder of its codes, on any device.
        codes: of M >= 1 pictures.
        batch: pictures decoded together.
        seed: of what is drawn; every picture has a seed of its own, whatever the batch.
    """
    import torch

    images: list[Tensor] = []
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(), Bar("decoding", len(codes)) as bar:
        for start in range(0, len(codes), batch):
            part = codes[start : start + batch].to(painter.device)
            images.append(painter.decode(part, generator).float().cpu())
            bar.update(min(start + batch, len(codes)), len(codes))
    return torch.cat(images)
