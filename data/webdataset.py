"""Pictures and captions in WebDataset tars, read where they lie."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from . import tars
from .base import SUFFIXES, RowSource, as_text, expand
from .decoding import decode, printable

_log = logging.getLogger(__name__)


class WebDataset(RowSource):
    """Samples in uncompressed WebDataset tars, read in place.

    Args:
        paths: a tar, a glob, or a list of either; sorted within each glob.
        caption_field: member that holds the caption, by its field: ``"txt"`` for a text file, ``"json.caption"`` for
            the key ``caption`` of a JSON file (``"json.a.b"`` goes deeper); None reads none.
        image_field: member that holds the picture, for samples that hold several; the only one where None.

    Raises:
        FileNotFoundError: nothing matches ``paths``.
        ValueError: a file is no complete, uncompressed tar, a sample holds several pictures, or there is no picture or
            no caption at all.
    """

    def __init__(
        self, paths: str | list[str], caption_field: str | None = None, image_field: str | None = None
    ) -> None:
        super().__init__()
        self.shards = expand(paths, "tar files")
        self.caption_field, self.image_field = caption_field, image_field
        self._text_field, self._text_keys = _split_field(caption_field)
        if next(self._samples(), None) is None:
            raise ValueError(f"expected samples with a picture in {paths!r}, got none; check the tars or image_field")
        if caption_field is not None and all(
            text is None or self._read_text(shard, text.offset, text.size) is None for shard, _, text in self._samples()
        ):
            raise ValueError(
                f"no captions: expected {caption_field!r} beside the pictures in {paths!r}, got none; "
                "check caption_field, None for none"
            )

    def picture(self, index: int) -> Image.Image:
        row = self.rows[index]
        return decode(tars.read(self.shards[row["shard"]], row["offset"], row["size"]), self.name(index))

    def caption(self, index: int) -> str | None:
        row = self.rows[index]
        if row["text_offset"] is None:
            return None
        return self._read_text(row["shard"], row["text_offset"], row["text_size"])

    def name(self, index: int) -> str:
        row = self.rows[index]
        return printable(f"{self.shards[row['shard']].name}/{os.fsdecode(row['name'])}")

    def _load(self) -> datasets.Dataset:
        integer = datasets.Value("int64")
        columns: dict[str, list[Any]] = {
            "shard": [], "name": [], "offset": [], "size": [], "text_offset": [], "text_size": []
        }  # fmt: skip
        for shard, image, text in self._samples():
            row = (shard, os.fsencode(f"{image.key}.{image.field}"), image.offset, image.size)
            row += (text.offset, text.size) if text is not None else (None, None)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        bare = columns["text_offset"].count(None)
        if self.caption_field is not None and bare:
            _log.warning("%d of %d samples have no member %r", bare, len(columns["shard"]), self._text_field)
        features = dict.fromkeys(columns, integer) | {"name": datasets.Value("binary")}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def _samples(self) -> Iterator[tuple[int, tars.Member, tars.Member | None]]:
        """Shard number, picture and caption of every sample that has a picture."""
        for shard, path in enumerate(self.shards):
            for fields in tars.samples(path):
                image = self._image(fields, path)
                if image is not None:
                    yield shard, image, fields.get(self._text_field or "")

    def _image(self, fields: Mapping[str, tars.Member], path: Path) -> tars.Member | None:
        if self.image_field is not None:
            return fields.get(self.image_field)
        found = [member for field, member in fields.items() if field.rpartition(".")[2] in SUFFIXES]
        if len(found) > 1:
            raise ValueError(
                f"expected one picture a sample, got {', '.join(member.field for member in found)} in "
                f"{found[0].key!r} of {str(path)!r}; pass image_field"
            )
        return found[0] if found else None

    def _read_text(self, shard: int, offset: int, size: int) -> str | None:
        content = tars.read(self.shards[shard], offset, size)
        where = f"{str(self.shards[shard])!r} at byte {offset}"
        try:
            value: Any = json.loads(content) if self._text_keys else content.decode("utf-8").strip()
        except ValueError as error:
            raise ValueError(
                f"expected a UTF-8 caption in {where}, got something else ({error}); write the tar again"
            ) from error
        for key in self._text_keys:
            value = value.get(key) if isinstance(value, dict) else None
        return as_text(value, str(self.caption_field), where)


def _split_field(field: str | None) -> tuple[str | None, tuple[str, ...]]:
    """``"json.a.b"`` as member ``"json"`` and keys ``("a", "b")``; a field without JSON keys as itself."""
    if field is None:
        return None, ()
    before, marker, keys = field.partition("json.")
    return (f"{before}json", tuple(keys.split("."))) if marker else (field, ())
