"""Bytes or a file to an upright RGB picture, in one place for every source."""

from __future__ import annotations

import errno
import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What Pillow's plugins raise on damaged input, seen file by file; OSError covers a missing and a truncated file.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)

# Of the machine, not of the picture: one that is left out as broken for these would be lost.
_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BrokenImageError(ValueError):
    """A picture that cannot be read: missing, truncated, or no picture at all."""


def printable(name: str | bytes) -> str:
    """``name`` with the bytes that are not UTF-8 written as escapes, safe to log."""
    text = os.fsdecode(name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode(source: bytes | str | Path, name: str | None = None) -> Image.Image:
    """Read a picture whole, turn it upright and make it RGB.

    Grey, palette, CMYK and 16-bit pictures are converted (16-bit values are divided by 257 and rounded); transparency
    is laid on white; of an animation the first frame is taken.

    Args:
        source: the encoded bytes, or the path of a file.
        name: how messages call the picture; the path where None.

    Returns:
        An image of mode RGB, uint8, with its EXIF orientation applied.

    Raises:
        BrokenImageError: the picture is missing, damaged, or holds floating-point pixels of unknown range.
        OSError: the machine could not read it, as where the disk fails or too many files are open.
    """
    label = printable(name or ("<bytes>" if isinstance(source, bytes) else str(source)))
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise OSError(error.errno, os.strerror(error.errno), label) from error
        raise BrokenImageError(
            f"expected a readable picture, got {label!r} ({_reason(error)}); repair the file or leave it out"
        ) from error


def _reason(error: Exception) -> str:
    """The cause in a few words, on one line and without memory addresses."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a known picture format"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(printable(str(error)).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode in _SIXTEEN_BIT:
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
