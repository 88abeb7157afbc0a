"""The token store: codes of a data set, computed once, with the captions and questions that go with them.

A folder of Parquet shards that need no smalti to be read (``store_shards`` says how they look), ``_store.json``, the
plan (what made them, from what), and ``_index.json``, written last, with the SHA-256 of every shard. Rows are read
where they lie: what was read last is kept in memory, decoded.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .order import Draw
from .store_plan import StorePlan, tokenizer_differences
from .store_shards import (
    PLAN,
    Group,
    TokenRecord,
    books,
    damaged,
    file_digest,
    open_shard,
    positions,
    read_group,
    row_ids,
)
from .store_writer import INDEX, check_note, read_plan, write_store

if TYPE_CHECKING:
    import datasets

__all__ = ["PLAN", "OneCrop", "TokenRecord", "TokenStore", "write_store"]

#: Bytes of decoded rows that one process keeps.
_MEMORY = 1 << 30


class TokenStore(Dataset[dict[str, Any]]):
    """Codes and texts by index. Rows of one picture, its crops, stand together.

    Args:
        folder: of a finished store.
        memory: bytes of decoded rows that each process keeps; the rows that were used longest ago go first.

    Raises:
        FileNotFoundError: no store, or one that is not finished or lacks a shard.
        ValueError: a damaged plan or index, a shard of another size than was written, or of another store.
    """

    def __init__(self, folder: str | Path, memory: int = _MEMORY) -> None:
        self.folder, self.memory = Path(folder), memory
        self.plan = read_plan(self.folder)
        self.spec: dict[str, Any] = dict(self.plan.tokenizer["spec"])  #: of the codes, as JSON values
        self.index = _read_index(self.folder, self.plan)
        self._shards = [self.folder / shard["file"] for shard in self.index["shards"]]
        for path, shard in zip(self._shards, self.index["shards"], strict=True):
            _check_size(path, shard["bytes"])
        opened = [open_shard(path) for path in self._shards]
        for number, (path, (_, note)) in enumerate(zip(self._shards, opened, strict=True)):
            check_note(path, note, self.plan, number)
        self._footers = [footer for footer, _ in opened]
        self._groups = [(s, g) for s, footer in enumerate(self._footers) for g in range(footer.num_row_groups)]
        rows = [self._footers[s].row_group(g).num_rows for s, g in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._kept: OrderedDict[int, Group] = OrderedDict()
        self._bytes = 0

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer that made the codes."""
        return str(self.plan.tokenizer["fingerprint"])

    @property
    def crops(self) -> int:
        """Rows of every picture."""
        return self.plan.crops

    @property
    def decoded(self) -> int:
        """Bytes of all rows once they are decoded, roughly."""
        item = sum(depth * (1 if size <= 256 else 2 if size <= 65536 else 4) for _, size, depth in books(self.spec))
        return len(self) * positions(self.spec) * item

    @property
    def starts(self) -> list[int]:
        """Where the rows that are packed together begin, and the number of rows."""
        return self._starts.tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``ids`` ``[N, D]`` int64 (-1 where padded), ``caption``, ``questions``, ``key``, ``image`` and ``crop``.

        Raises:
            IndexError: there is no such row.
            ValueError: a damaged shard; the sentence names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}), got {int(index)}; stay inside the store")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, row = self._group(number), int(index - self._starts[number])
        told = {name: group.table.column(name)[row].as_py() for name in ("key", "image", "crop", "caption")}
        asked = group.table.column("questions")[row].as_py()
        questions = tuple((item["question"], item["answer"]) for item in asked)
        return {"ids": torch.from_numpy(row_ids(group, row, self.spec)), "questions": questions, **told}

    def ids(self, start: int = 0, stop: int | None = None) -> Tensor:
        """``[M, N, D]`` int64 codes of the rows from ``start`` to ``stop``, by default of all; -1 where padded."""
        stop = len(self) if stop is None else min(stop, len(self))
        found = torch.full((max(0, stop - start), positions(self.spec), sum(d for _, _, d in books(self.spec))), -1)
        for number, first in enumerate(self._starts[:-1].tolist()):
            last = int(self._starts[number + 1])
            if first < stop and last > start:
                group, rows = self._group(number), range(max(start, first), min(stop, last))
                found[rows.start - start : rows.stop - start] = self._rows(
                    group, range(rows.start - first, rows.stop - first)
                )
        return found

    def texts(self) -> list[str]:
        """Every caption, question and answer: what a vocabulary is trained on."""
        found = list[str]()
        for number in range(len(self._groups)):
            table = self._group(number).table
            found += [caption for caption in table.column("caption").to_pylist() if caption]
            for asked in table.column("questions").to_pylist():
                found += [text for item in asked for text in (item["question"], item["answer"])]
        return found

    def check_tokenizer(self, identity: Mapping[str, Any]) -> None:
        """Raise unless a tokenizer made these codes.

        Args:
            identity: of the tokenizer, its ``identity()``.

        Raises:
            ValueError: another tokenizer, or a changed one; the sentence names the difference.
        """
        if told := tokenizer_differences(self.plan.tokenizer, identity):
            raise ValueError(
                f"the token store must come from tokenizer {identity['fingerprint']}, got one of {self.fingerprint} in "
                f"{self.folder}: {'; '.join(told[:4])}; tokenize the pictures again with this tokenizer"
            )

    def verify(self) -> None:
        """Compare the SHA-256 of every shard with the index.

        Raises:
            ValueError: a damaged shard; the sentence names it.
        """
        for path, shard in zip(self._shards, self.index["shards"], strict=True):
            if file_digest(path) != shard["sha256"]:
                raise damaged(path, "its checksum is not that of the index")

    def dataset(self, cache_dir: str | Path | None = None) -> datasets.Dataset:
        """The rows as a `datasets.Dataset`, for random access and shuffling there; converted once into its cache."""
        return self._load(None if cache_dir is None else str(cache_dir), streaming=False)

    def stream(self) -> datasets.IterableDataset:
        """The rows as a `datasets.IterableDataset`, read shard by shard.

        ``shuffle(seed, buffer_size=1)`` draws the order of shards, and ``state_dict`` goes on exactly where it was. A
        larger buffer is lost with the process, as `datasets` says: to shuffle rows and resume exactly, train with
        ``TokenData``.
        """
        return self._load(None, streaming=True)

    def __getstate__(self) -> dict[str, Any]:
        """All but the rows that are kept: workers read their own."""
        return self.__dict__ | {"_kept": OrderedDict(), "_bytes": 0}

    def _rows(self, group: Group, rows: range) -> Tensor:
        if self.spec["dynamic"]:
            return torch.from_numpy(np.stack([row_ids(group, row, self.spec) for row in rows]))
        parts = [
            codes[places[rows.start] : places[rows.stop]].astype(np.int64).reshape(len(rows), -1, depth)
            for (codes, places), (_, _, depth) in zip(group.ids, books(self.spec), strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts, axis=2))

    def _group(self, number: int) -> Group:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        shard, at = self._groups[number]
        group = read_group(self._shards[shard], at, self.spec, self._footers[shard])
        self._kept[number] = group
        self._bytes += group.bytes
        while self._bytes > self.memory and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return group

    def _load(self, cache_dir: str | None, streaming: bool) -> Any:
        import datasets

        rows = [footer.num_rows for footer in self._footers]
        files = [str(path) for path, count in zip(self._shards, rows, strict=True) if count]  # it cannot read none
        return datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=streaming, cache_dir=cache_dir
        )


class OneCrop(Dataset[dict[str, Any]]):
    """The pictures of a store with several crops of each: every epoch shows one of them, drawn from seed and epoch.

    Args:
        store: with any number of crops.
        seed: >= 0.
    """

    def __init__(self, store: TokenStore, seed: int = 0) -> None:
        self.store, self.seed = store, seed

    @property
    def groups(self) -> list[int]:
        """Where the pictures of rows that are packed together begin, and their number: what an order reads fastest."""
        return [-(-start // self.store.crops) for start in self.store.starts]

    def __len__(self) -> int:
        return len(self.store) // self.store.crops

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row of one crop of a picture; the epoch is the one the index brings along (`Draw`), else 0."""
        epoch, crops = index.epoch if isinstance(index, Draw) else 0, self.store.crops
        crop = int(np.random.default_rng((self.seed, epoch, int(index))).integers(crops)) if crops > 1 else 0
        return self.store[int(index) * crops + crop]


def _read_index(folder: Path, plan: StorePlan) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"the token store in {folder} is not finished: it lacks {INDEX}; the same smalti tokenize goes on"
        )
    try:
        index = json.loads(path.read_text())
        names = [shard["file"] for shard in index["shards"]]
        whole = [
            int(shard["rows"]) >= 0 and int(shard["bytes"]) > 0 and len(shard["sha256"]) for shard in index["shards"]
        ]
        fits = index["plan"] == plan.digest and names == plan.shards and set(whole) == {64}
        int(index["pictures"], 16)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no readable index ({error}); delete it and tokenize again, which makes it"
        ) from error
    if not fits:
        raise ValueError(f"{path} is not the index of the store beside it; delete it and tokenize again")
    return index


def _check_size(path: Path, expected: int) -> None:
    if path.is_file() and (found := path.stat().st_size) != expected:
        raise damaged(path, f"{found} bytes in place of {expected}")
