"""A comparison of decoders as JSON, as one HTML page, as a table in Markdown and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.transforms import from_uint8
from .decoders import DecoderRow, References
from .protocol import Protocol, write_result
from .report import Report, write_report
from .sheets import row_sheet, save_png
from .tables import Table, table_of, write_markdown

#: Titles of the columns after tokenizer and decoder, and what their cells are made from; see :func:`table_of`.
COLUMNS = (
    ("scenes right (95 %)", "{objects[right]:.3f} ({objects[low]:.3f} to {objects[high]:.3f})"),
    ("objects found", "{objects[found]:.3f}"),
    ("chance", "{objects[chance]:.3f}"),
    ("PSNR dB", "{psnr:.1f}"),
    ("SSIM", "{ssim:.3f}"),
    ("perceptual", "{perceptual:.3f}"),
    ("rFID", "{rfid:.2f}"),
    ("agreement (chance)", "{agreement:.3f} ({agreement_chance:.3f})"),
    ("images/s", "{images_per_second:.1f}"),
    ("M parameters", "{parameters:.2M}"),
    ("trained steps", "{steps:.0f}"),
    ("trained", "{seconds:time}"),
)

#: What stands for the family of rows without a tokenizer, in the file.
REFERENCES = "references"

#: What a reader calls the kinds of rows.
TITLES = {
    "pixel": "its own",
    "trained": "trained beside it",
    "untrained": "the same, untrained",
    "originals": "originals",
    "gray": "plain gray",
}

_NOTES = (
    "Scenes right: all objects are there with shape and colour, and nothing else; chance judges by all other scenes.",
    "Agreement: cosine of the teacher's features of original and reconstruction; chance is that of different pictures.",
    "rFID and perceptual distance are measured with the network that the protocol names. They compare with no others.",
)


def write_decoders(
    folder: Path,
    title: str,
    rows: Sequence[DecoderRow],
    references: References,
    protocol: Protocol,
    stages: Mapping[str, float] | None = None,
) -> str:
    """Write ``decoders.json``, ``decoders.html``, ``decoders.png`` and ``decoders.md``.

    Args:
        folder: of the files.
        title: of the page.
        rows: of all families, which bear other names than :data:`REFERENCES`.
        references: what the rows are read against.
        protocol: how all were measured.
        stages: seconds of every stage of the run.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: a score that is not finite; the sentence names it.
    """
    every = [*rows, *references.rows]
    scores: dict[str, Any] = {}
    for row in every:
        scores.setdefault(row.family or REFERENCES, {})[row.kind] = row.scores
    write_result(folder / "decoders.json", scores, protocol, {f"{row.family}.{row.kind}": row.about for row in rows})
    shown = {f"{row.family}, {TITLES[row.kind]}": from_uint8(row.pictures) for row in rows}
    table, sheet = _table(every), row_sheet({"original": from_uint8(references.originals), **shown})
    save_png(sheet, folder / "decoders.png")
    families = len({row.family for row in rows})
    page = Report(
        title,
        f"decoders for the codes of {families} tokenizers, the same {protocol.count:,} pictures",
        protocols={"all numbers": protocol},
        tables={"Decoders": table},
        sheets={"Originals, and the same pictures after each decoder": sheet},
        stages=stages or {},
        notes=_NOTES,
    )
    write_report(folder / "decoders.html", page)
    return write_markdown(folder / "decoders.md", table)


def _table(rows: Sequence[DecoderRow]) -> Table:
    cells = table_of({str(at): row.scores for at, row in enumerate(rows)}, COLUMNS)
    names = [(row.family or "none", TITLES[row.kind]) for row in rows]
    lines = [[*name, *line[1:]] for name, line in zip(names, cells.rows, strict=True)]
    return Table(["tokenizer", "decoder", *cells.head[1:]], lines, frozenset(range(2, 2 + len(COLUMNS))))
