"""A comparison of tokenizers as JSON, as one HTML page and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .comparison import Row
from .protocol import Protocol, write_result
from .report import Report, write_report
from .sheets import row_sheet, save_png
from .tables import Table, table_of, write_markdown

#: Titles of the columns after the name, and what their cells are made from; see :func:`table_of`.
COLUMNS = (
    ("usage", "{usage}"),
    ("perplexity", "{perplexity}"),
    ("PSNR dB", "{psnr:.1f}"),
    ("SSIM", "{ssim:.3f}"),
    ("perceptual", "{perceptual:.3f}"),
    ("ceiling", "{ceiling:.3f}"),
    ("rFID", "{rfid:.2f}"),
    ("codes", "{tokens:.0f}"),
    ("bits", "{bits:.0f}"),
    ("probe", "{probe:.3f}"),
    ("zero-shot", "{zero_shot:.3f}"),
    ("encode/s", "{encode_per_second:.0f}"),
    ("decode/s", "{decode_per_second:.0f}"),
    ("M parameters", "{parameters:.2M}"),
    ("peak MiB", "{peak_memory_mib:.0f}"),
    ("trained", "{seconds:time}"),
)


def write_comparison(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    protocol: Protocol,
    originals: Tensor,
    seconds: Mapping[str, float] | None = None,
) -> str:
    """Write ``tokenizers.json``, ``tokenizers.html``, ``tokenizers.png`` and ``tokenizers.md``.

    Args:
        folder: of the files.
        title: of the page.
        rows: one for each tokenizer.
        protocol: how all were measured.
        originals: ``[S, 3, H, W]`` in [-1, 1], what the rows show reconstructions of.
        seconds: of training, by row.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: a score that is not finite; the sentence names it.
    """
    times = seconds or {}
    scores = {row.name: {**row.scores, **({"seconds": times[row.name]} if row.name in times else {})} for row in rows}
    models = {row.name: f"{row.family} {row.fingerprint}" for row in rows}
    write_result(folder / "tokenizers.json", scores, protocol, models)
    table = table_of({row.name: _shown(row, scores[row.name]) for row in rows}, COLUMNS)
    sheet = row_sheet({"original": originals, **{row.name: row.pictures for row in rows}})
    save_png(sheet, folder / "tokenizers.png")
    note = f"rFID is measured with: {protocol.extractor}. It compares with no other rFID."
    write_report(
        folder / "tokenizers.html",
        Report(
            title,
            f"{len(rows)} tokenizers, the same pictures and the same training",
            protocols={"all numbers": protocol},
            tables={"Tokenizers": table, "Codebooks": _codebooks(rows)},
            sheets={"Originals, and the same pictures after each tokenizer": sheet},
            stages=times,
            notes=[note],
        ),
    )
    return write_markdown(folder / "tokenizers.md", table)


def _shown(row: Row, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a row, and the ends of what is measured for each codebook."""
    ends = {"usage": _range(row.scores["usage"], "{:.0%}"), "perplexity": _range(row.scores["perplexity"], "{:.0f}")}
    return {**scores, **ends}


def _range(values: Mapping[str, float], shape: str) -> str:
    """Smallest and largest over the codebooks."""
    ends = dict.fromkeys(shape.format(value) for value in (min(values.values()), max(values.values())))
    return " to ".join(ends)


def _codebooks(rows: Sequence[Row]) -> Table:
    lines = [
        [row.name, book, f"{row.scores['usage'][book]:.1%}", f"{row.scores['perplexity'][book]:.1f}"]
        for row in rows
        for book in row.scores["usage"]
    ]
    return Table(["tokenizer", "codebook", "usage", "perplexity"], lines, frozenset({2, 3}))
