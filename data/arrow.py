"""Pictures inside the rows of parquet files, Arrow files and data sets of the Hugging Face hub."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .base import RowSource, as_text, check_columns, expand
from .decoding import BrokenImageError, decode


class _Columns(RowSource):
    """A source whose rows hold the pictures themselves, in a column of encoded bytes or of paths."""

    def __init__(self, image_column: str, caption_column: str | None, where: str) -> None:
        super().__init__()
        self.image_column, self.caption_column, self.where = image_column, caption_column, where

    def picture(self, index: int) -> Image.Image:
        value: dict[str, Any] = self.rows[self.image_column][index] or {}
        source = value.get("bytes") or value.get("path")
        if not source:
            raise BrokenImageError(f"expected a picture in {self.name(index)}, got an empty entry; leave the row out")
        return decode(source, self.name(index))

    def caption(self, index: int) -> str | None:
        if self.caption_column is None:
            return None
        return as_text(self.rows[self.caption_column][index], self.caption_column, self.name(index))

    def name(self, index: int) -> str:
        return f"row {index} of {self.where}"

    def _prepare(self, table: datasets.Dataset) -> datasets.Dataset:
        """Check ``table`` and leave its pictures encoded, whatever type their column has."""
        check_columns(table.column_names, self.image_column, self.caption_column, self.where)
        if len(table) == 0:
            raise self._no_rows()
        return table.cast_column(self.image_column, datasets.Image(decode=False))

    def _no_rows(self) -> ValueError:
        return ValueError(f"expected rows in {self.where}, got none; check the data set")


class ArrowFiles(_Columns):
    """Rows of parquet files, of Arrow files, or of a folder written by `datasets.Dataset.save_to_disk`.

    Arrow is mapped into memory where it lies; parquet is converted once into the cache of `datasets`.

    Args:
        paths: a file, a glob, a list of either, or the saved folder.
        image_column: column of the pictures: `datasets.Image`, encoded bytes, or paths.
        caption_column: column of the captions; None reads none.
        cache_dir: folder for converted parquet; ``HF_DATASETS_CACHE`` where None.

    Raises:
        FileNotFoundError: nothing matches ``paths``.
        ValueError: the files are of several or other kinds, have no rows, or lack a column.
    """

    def __init__(
        self,
        paths: str | list[str],
        image_column: str = "image",
        caption_column: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(image_column, caption_column, str(paths))
        self.cache_dir = cache_dir
        self.folder = Path(paths) if isinstance(paths, str) and Path(paths).is_dir() else None
        if self.folder is not None:
            if not (self.folder / "state.json").is_file():
                raise ValueError(
                    f"expected a folder written by save_to_disk, got {paths!r} without state.json; "
                    "pass one split's folder, or a glob of its files"
                )
            self.files = []
            if next(self.folder.glob("*.arrow"), None) is None:  # how `datasets` saves no rows, and cannot load them
                raise self._no_rows()
            self._table = self._load()  # maps the files, so that a missing column is known at once
            return
        self.files = expand(paths, "parquet or arrow files")
        suffixes = sorted({file.suffix for file in self.files})
        if suffixes not in ([".parquet"], [".arrow"]):
            raise ValueError(f"expected files all .parquet or all .arrow, got {', '.join(suffixes)}; narrow the paths")
        schema = _schema(self.files[0])
        check_columns(schema.names, image_column, caption_column, self.where)
        _check_kind(schema.field(image_column).type, image_column, self.where)

    def _load(self) -> datasets.Dataset:
        if self.folder is not None:
            return self._prepare(datasets.Dataset.load_from_disk(self.folder))
        if self.files[0].suffix == ".arrow":
            mapped = [datasets.Dataset.from_file(str(file)) for file in self.files]
            return self._prepare(datasets.concatenate_datasets(mapped))
        if not any(pq.read_metadata(file).num_rows for file in self.files):
            raise self._no_rows()
        # `datasets` takes names for patterns
        names = [glob.escape(str(file)) for file in self.files]
        cache = None if self.cache_dir is None else str(self.cache_dir)
        return self._prepare(datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=cache))


class HubDataset(_Columns):
    """One split of a data set on the Hugging Face hub, downloaded by `datasets` on first use and kept in its cache.

    Args:
        id: ``owner/name`` on the hub, or a local folder that `datasets.load_dataset` understands.
        split: the split, slices included (``"train[:1%]"``).
        config: the configuration, for data sets that have several.
        revision: branch, tag or commit; name a commit where a result must be repeatable.
        image_column: column of the pictures.
        caption_column: column of the captions; None reads none.
        cache_dir: folder for the download; ``HF_DATASETS_CACHE`` where None.

    Raises:
        ValueError: on first use, where the split has no rows or lacks a column.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the hub's own word
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        *,
        image_column: str = "image",
        caption_column: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(image_column, caption_column, f"{id} ({split})")
        self.id, self.split, self.config, self.revision, self.cache_dir = id, split, config, revision, cache_dir

    def _load(self) -> datasets.Dataset:
        cache = None if self.cache_dir is None else str(self.cache_dir)
        return self._prepare(
            datasets.load_dataset(self.id, self.config, split=self.split, revision=self.revision, cache_dir=cache)
        )


def _check_kind(kind: Any, column: str, where: str) -> None:
    """Raise ValueError where a column holds neither encoded pictures nor paths."""
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(fits(kind) for fits in (*texts, pa.types.is_struct)):
        raise ValueError(
            f"expected pictures, bytes or paths in column {column!r} of {where}, got {kind}; pass image_column"
        )


def _schema(path: Path) -> Any:
    """The schema of a parquet file or an Arrow stream, read from its header.

    Raises:
        ValueError: it is neither.
    """
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).schema
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"expected a parquet file or an Arrow stream, got {str(path)!r} ({error}); write it again with `datasets`"
        ) from error
