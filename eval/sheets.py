"""Contact sheets: many pictures on one, with words under them, as PNG."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.files import atomic_file
from ..data.transforms import to_pil
from .images.metrics import psnr

Pictures = Sequence[Image.Image] | npt.NDArray[np.uint8]

_PAPER, _INK, _RIGHT, _WRONG = "#ffffff", "#23262b", "#2e7d4f", "#b3382c"
_TEXT_SIZE = 13
_LINE = 18  # pixels from one text line to the next
_NARROWEST = 112  # pixels a labelled cell is wide at least, so that words fit
_COMFORTABLE = 128  # pixels an automatically scaled picture measures


def grid(
    images: Pictures,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 8,
    *,
    labels: Sequence[str] | None = None,
    marks: Sequence[bool | None] | None = None,
) -> Image.Image:
    """Lay pictures out in rows on white.

    Args:
        images: PIL pictures of any sizes, or ``(N, H, W, 3)`` uint8.
        columns: pictures per row; all rows about as many as there are rows when left out.
        scale: whole-number enlargement by repeating pixels.
        gap: pixels between cells and around the sheet.
        labels: text under each picture, wrapped to the cell.
        marks: a green tick (true) or a red cross (false) before each label; nothing for ``None``.

    Raises:
        ValueError: for no pictures, a count of labels or marks that differs, columns or scale below 1, a negative
            gap, or an array of another shape.
        TypeError: for an array that is not uint8.
    """
    pictures = [_enlarged(picture, scale) for picture in _listed(images)]
    across = round(len(pictures) ** 0.5) if columns is None else columns
    if across < 1 or gap < 0:
        raise ValueError(f"expected at least 1 column and a gap of at least 0, got {across} and {gap}; change them")
    cells = _labelled(pictures, labels, marks)
    return _arranged([cells[start : start + across] for start in range(0, len(cells), across)], gap)


def reconstruction_sheet(
    originals: Tensor, reconstructions: Tensor, columns: int = 8, scale: int | None = None, gap: int = 8
) -> Image.Image:
    """Originals above their reconstructions, each pair with its PSNR.

    Args:
        originals: ``(B, 3, H, W)`` in ``[-1, 1]``.
        reconstructions: the same shape and range.
        columns: pairs per row.
        scale: whole-number enlargement; about 128 pixels a side when left out.
        gap: pixels between pairs.

    Raises:
        ValueError: if shapes differ, values leave the range, or there is no image or column.
        TypeError: if a tensor is not floating point.
    """
    ratios = psnr(reconstructions, originals).tolist()
    if not ratios or columns < 1:
        raise ValueError(f"expected at least 1 pair and 1 column, got {len(ratios)} and {columns}; pass some images")
    factor = _fitting(max(originals.shape[-2:])) if scale is None else scale
    above, below = ([_enlarged(picture, factor) for picture in to_pil(side)] for side in (originals, reconstructions))
    pairs = [_stacked([top, bottom], gap=4) for top, bottom in zip(above, below, strict=True)]
    cells = _labelled(pairs, [f"{ratio:.1f} dB" for ratio in ratios], None)
    titles = _titles(["original", "rebuilt"], above[0].height, gap=4)
    return _arranged([[titles, *cells[start : start + columns]] for start in range(0, len(cells), columns)], gap)


def row_sheet(rows: Mapping[str, Tensor]) -> Image.Image:
    """A row of pictures for each name, which stands under the first of them; about 96 pixels a side.

    Args:
        rows: ``(S, 3, H, W)`` in ``[-1, 1]`` by name, as many in each row.

    Raises:
        ValueError: if there is no row, or rows differ in length.
    """
    counts = {len(images) for images in rows.values()}
    if len(counts) != 1:
        raise ValueError(f"expected rows of one length, got {sorted(counts) or 'no row'}; pass the same pictures")
    pictures = [picture for images in rows.values() for picture in to_pil(images)]
    labels = [name if at == 0 else "" for name, images in rows.items() for at in range(len(images))]
    side = max(max(images.shape[-2:]) for images in rows.values())
    return grid(pictures, counts.pop(), max(1, 96 // side), labels=labels)


def sample_sheet(
    images: Pictures,
    prompts: Sequence[str],
    verdicts: Sequence[bool | None] | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Generated pictures, each over its prompt and, where judged, a green tick or a red cross.

    Args:
        images: PIL pictures, or ``(N, H, W, 3)`` uint8.
        prompts: one per picture.
        verdicts: whether each picture shows its prompt; ``None`` where nobody judged.
        columns: pictures per row; a square sheet when left out.
        scale: whole-number enlargement; about 128 pixels a side when left out.

    Raises:
        ValueError: as `grid`.
        TypeError: as `grid`.
    """
    pictures = _listed(images)
    factor = _fitting(max(max(picture.size) for picture in pictures)) if scale is None else scale
    return grid(pictures, columns, factor, gap=12, labels=prompts, marks=verdicts)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        ValueError: if ``path`` does not end in ``.png``.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png, got {Path(path).name}; rename it")
    with atomic_file(path) as partial:
        image.save(partial, format="PNG", optimize=True)


def _listed(images: Pictures) -> list[Image.Image]:
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            raise TypeError(f"expected a uint8 array of pictures, got {images.dtype}; use data.transforms.to_uint8")
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected an array of shape (N, H, W, 3), got {images.shape}; move the channels last")
        pictures = [Image.fromarray(image) for image in images]
    else:
        pictures = [image.convert("RGB") for image in images]
    if not pictures:
        raise ValueError("expected at least one picture, got none; leave the sheet out")
    return pictures


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}; resize the pictures instead")
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _fitting(side: int) -> int:
    return max(1, round(_COMFORTABLE / side))


def _labelled(
    pictures: list[Image.Image], labels: Sequence[str] | None, marks: Sequence[bool | None] | None
) -> list[Image.Image]:
    """Pictures with their label and mark below; as they are where there is neither."""
    for name, given in (("labels", labels), ("marks", marks)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"expected {len(pictures)} {name}, one per picture, got {len(given)}; pass them in order")
    if labels is None and marks is None:
        return pictures
    words = labels or [""] * len(pictures)
    signs = marks or [None] * len(pictures)
    width = max(_NARROWEST, *(picture.width for picture in pictures))
    texts = [_text(label, mark, width) for label, mark in zip(words, signs, strict=True)]
    return [_stacked([picture, text], gap=4) for picture, text in zip(pictures, texts, strict=True)]


def _text(label: str, mark: bool | None, width: int) -> Image.Image:
    font = ImageFont.load_default(_TEXT_SIZE)
    indent = 0 if mark is None else 18
    lines = _wrapped(label, width - indent, font)
    panel = Image.new("RGB", (width, _LINE * max(1, len(lines))), _PAPER)
    draw = ImageDraw.Draw(panel)
    if mark is not None:
        _sign(draw, mark)
    for row, line in enumerate(lines):
        draw.text((indent, row * _LINE), line, fill=_INK, font=font)
    return panel


def _sign(draw: ImageDraw.ImageDraw, right: bool) -> None:
    if right:
        draw.line([(1, 8), (5, 12), (12, 3)], fill=_RIGHT, width=3, joint="curve")
    else:
        draw.line([(2, 3), (11, 12)], fill=_WRONG, width=3)
        draw.line([(2, 12), (11, 3)], fill=_WRONG, width=3)


def _wrapped(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines no wider than ``width`` pixels, to the accuracy of the label's mean letter width."""
    if not label.strip():
        return []
    letters = max(1, int(width / (font.getlength(label) / len(label))))
    while letters > 1:
        lines = textwrap.wrap(label, letters)
        if max(font.getlength(line) for line in lines) <= width:
            return lines
        letters -= 1
    return textwrap.wrap(label, 1)


def _titles(words: list[str], height: int, gap: int) -> Image.Image:
    """Row titles: each word vertically in the middle of its picture."""
    font = ImageFont.load_default(_TEXT_SIZE)
    width = int(max(font.getlength(word) for word in words)) + 8
    panel = Image.new("RGB", (width, (height + gap) * len(words)), _PAPER)
    draw = ImageDraw.Draw(panel)
    for row, word in enumerate(words):
        draw.text((0, row * (height + gap) + height // 2), word, fill=_INK, font=font, anchor="lm")
    return panel


def _stacked(parts: list[Image.Image], gap: int) -> Image.Image:
    width = max(part.width for part in parts)
    panel = Image.new("RGB", (width, sum(part.height for part in parts) + gap * (len(parts) - 1)), _PAPER)
    top = 0
    for part in parts:
        panel.paste(part, ((width - part.width) // 2, top))
        top += part.height + gap
    return panel


def _arranged(rows: list[list[Image.Image]], gap: int) -> Image.Image:
    """Cells in rows; a column is as wide, a row as high, as its largest cell."""
    across = max(len(row) for row in rows)
    widths = [max(row[at].width for row in rows if at < len(row)) for at in range(across)]
    heights = [max(cell.height for cell in row) for row in rows]
    size = (sum(widths) + gap * (across + 1), sum(heights) + gap * (len(rows) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for cell, width in zip(row, widths, strict=False):
            sheet.paste(cell, (left + (width - cell.width) // 2, top))
            left += width + gap
        top += height + gap
    return sheet
