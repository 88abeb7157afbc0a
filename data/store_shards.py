"""One shard of a token store: a Parquet file that every reader of Parquet understands, and what it says about itself.

A row is one crop of one picture: ``key`` (its name), ``image`` (index into the source), ``crop``, ``caption``,
``questions`` (question and answer), and for every codebook a list ``codes_<name>`` of the smallest unsigned integers
that hold it: N positions of ``depth`` codes each, position by position, or as many as the picture needs. Codes are
bit-packed by Parquet's dictionary encoding (10 bits for 1,024 codes), every page has a checksum, and the footer repeats
the plan of the store.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .files import atomic_file

#: Rows that are packed, checked and read together.
GROUP = 4096

#: What the file of the plan is called. Readers of Parquet pass over such names.
PLAN = "_store.json"

#: Where the footer says what the shard is.
_FOOTER = b"smalti"

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenRecord:
    """What is known about one image besides its codes."""

    caption: str | None = None
    questions: tuple[tuple[str, str], ...] = ()  #: pairs of question and answer


@dataclass(frozen=True)
class Row:
    """One row to be written."""

    ids: Ids  #: [N, D], -1 where padded
    record: TokenRecord
    key: str
    image: int
    crop: int = 0


@dataclass(frozen=True)
class ShardNote:
    """What a shard says about itself beside its rows."""

    plan: Mapping[str, Any]  #: of the store, as JSON values
    shard: int  #: its number
    pictures: str = ""  #: hex digits: the sum, modulo 2^256, of a SHA-256 of each picture as it was coded
    left_out: list[str] = field(default_factory=list)  #: names of pictures that could not be read


@dataclass(frozen=True)
class Group:
    """Rows that were read together."""

    table: pa.Table
    ids: list[tuple[Ids, npt.NDArray[np.int64]]]  #: of every codebook: all codes, and R + 1 places where rows begin

    @property
    def bytes(self) -> int:
        """What it keeps in memory."""
        return self.table.nbytes + sum(codes.nbytes + places.nbytes for codes, places in self.ids)


def books(spec: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Column, size and depth of every codebook of a spec (``CodeSpec.to_dict()``)."""
    return [(f"codes_{book['name'].replace('.', '_')}", book["size"], book["depth"]) for book in spec["codebooks"]]


def positions(spec: Mapping[str, Any]) -> int:
    """N, the number of positions of a spec, or the largest of a dynamic one."""
    shape = spec["layout"]["shape"]
    return sum(side * side for side in shape) if spec["layout"]["kind"] == "scales" else int(np.prod(shape))


def write_shard(path: Path, rows: Sequence[Row], spec: Mapping[str, Any], note: ShardNote) -> None:
    """Write a shard, whole or not at all; the same rows give the same bytes.

    Raises:
        ValueError: an id outside its codebook, or padding in a spec that is not dynamic.
        DiskFullError: no space left.
    """
    about = {"plan": note.plan, "shard": note.shard, "pictures": note.pictures, "left_out": note.left_out}
    table = _table(rows, spec).replace_schema_metadata({_FOOTER: json.dumps(about, sort_keys=True)})
    packed = [f"{name}.list.element" for name, _, _ in books(spec)]
    largest = max(size for _, size, _ in books(spec))
    write: Any = pq.write_table  # its stubs know no lists of columns
    with atomic_file(path, beside=path.with_name(PLAN)) as partial:  # what is left of it is cleared with the plan's
        write(
            table,
            partial,
            row_group_size=GROUP,
            compression="zstd",
            use_dictionary=["caption", "questions.list.element.question", "questions.list.element.answer", *packed],
            column_encoding={"key": "DELTA_BYTE_ARRAY", "image": "DELTA_BINARY_PACKED", "crop": "DELTA_BINARY_PACKED"},
            dictionary_pagesize_limit=max(1 << 20, 8 * largest),
            write_statistics=["image"],
            write_page_checksum=True,
        )


def open_shard(path: Path, content: Any = None) -> tuple[Any, ShardNote]:
    """The footer of a shard (pyarrow's ``FileMetaData``) and what it says; its pages are not looked at.

    Args:
        path: of the shard.
        content: pyarrow's reader of its bytes, where they are in memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: damaged, or no shard of a token store; the sentence names it.
        OSError: the system cannot read it.
    """
    with _named(path):
        metadata = pq.read_metadata(path if content is None else content)
        return metadata, ShardNote(**json.loads(metadata.metadata[_FOOTER]))


def read_group(path: Path, number: int, spec: Mapping[str, Any], metadata: Any = None, content: Any = None) -> Group:
    """One row group of a shard; the checksum of every page is compared. Arguments and errors as `open_shard`."""
    source = path if content is None else content
    with _named(path):
        with pq.ParquetFile(
            source, metadata=metadata, memory_map=content is None, page_checksum_verification=True
        ) as file:
            table = file.read_row_group(number)
        columns = [table.column(name).combine_chunks() for name, _, _ in books(spec)]
    ids = [(c.values.to_numpy(), c.offsets.to_numpy().astype(np.int64)) for c in columns]
    return Group(table.drop_columns([name for name, _, _ in books(spec)]), ids)


def row_ids(group: Group, row: int, spec: Mapping[str, Any]) -> Ids:
    """``[N, D]`` int64 codes of one row, -1 where padded."""
    columns = books(spec)
    found = np.full((positions(spec), sum(depth for _, _, depth in columns)), -1, np.int64)
    at = 0
    for (codes, places), (_, _, depth) in zip(group.ids, columns, strict=True):
        own = codes[places[row] : places[row + 1]].reshape(-1, depth)
        found[: len(own), at : at + depth] = own
        at += depth
    return found


def check_shard(path: Path, spec: Mapping[str, Any]) -> tuple[int, ShardNote, str]:
    """Read a shard whole, so that every checksum is compared.

    Returns:
        Its rows, what it says, and the SHA-256 of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: damaged; the sentence names it.
    """
    with _named(path):
        content = path.read_bytes()
    metadata, note = open_shard(path, pa.BufferReader(content))
    for number in range(metadata.num_row_groups):
        read_group(path, number, spec, metadata, pa.BufferReader(content))
    return metadata.num_rows, note, sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def damaged(path: Path, reason: object) -> ValueError:
    """The error about a shard that cannot be read."""
    return ValueError(
        f"shard {path} is damaged ({' '.join(str(reason).split())}); delete it and tokenize into the same store again, "
        "which makes what is missing"
    )


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Turn what is wrong with a shard into an error that names it; what is wrong with the system stays as it is."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"shard {path} of the token store is missing; tokenize into it again, which makes it"
        ) from error
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged(path, error) from error


def _table(rows: Sequence[Row], spec: Mapping[str, Any]) -> Any:
    text = pa.string()
    asked = pa.list_(pa.struct([("question", text), ("answer", text)]))
    questions = [[{"question": q, "answer": a} for q, a in row.record.questions] for row in rows]
    columns: dict[str, Any] = {
        "key": pa.array([row.key for row in rows], text),
        "image": pa.array([row.image for row in rows], pa.int64()),
        "crop": pa.array([row.crop for row in rows], pa.int32()),
        "caption": pa.array([row.record.caption for row in rows], text),
        "questions": pa.array(questions, asked),
    }
    at = 0
    for name, size, depth in books(spec):
        columns[name] = _codes([row.ids[:, at : at + depth] for row in rows], name, size, spec["dynamic"])
        at += depth
    return pa.table(columns)


def _codes(ids: Sequence[Ids], name: str, size: int, dynamic: bool) -> Any:
    real = [own[own[:, 0] >= 0] if dynamic else own for own in ids]
    values = np.concatenate([own.reshape(-1) for own in real]) if real else np.zeros(0, np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < size:
        raise ValueError(f"ids of {name} must lie in [0, {size}), got {values.min()}..{values.max()}; check the codes")
    places = np.concatenate([[0], np.cumsum([own.size for own in real])]).astype(np.int32)
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32) if size - 1 <= np.iinfo(kind).max)
    return pa.ListArray.from_arrays(pa.array(places), pa.array(values.astype(kind)))
