"""Writing a token store: by one process or many, killed at any moment, to the same bytes.

Every shard is made whole by one process and renamed into place, so that a store holds finished shards alone. The same
command again makes those that are missing. Processes that write one store, on one machine or on several that share its
disk, take shards by locks that the system gives back when a process dies; where a file system has no locks, two may
make the same shard, which is then written twice with the same bytes. Whoever finishes the last shard writes the index.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from .files import atomic_file
from .leftovers import clear, prefix
from .store_plan import StorePlan, differences
from .store_shards import PLAN, Row, ShardNote, TokenRecord, check_shard, damaged, write_shard

#: Shards and their checksums, written last; what locks are held on.
INDEX, LOCK = "_index.json", ".lock"

#: Byte of the lock that every writer shares, beyond those of the shards.
_PRESENT = 1 << 40


class StoreWriter:
    """A store that is being made; a context manager that gives its locks back.

    Args:
        folder: of the store, new or begun with the same plan.
        plan: what decides its bytes.

    Raises:
        ValueError: a folder with other files in it, or a store of another plan; the sentence names the difference.
    """

    def __init__(self, folder: str | Path, plan: StorePlan) -> None:
        self.folder, self.plan = Path(folder), plan
        self._made = not self.folder.exists()
        _begin(self.folder, plan)
        self._lock: int | None = None
        self._held: set[int] = set()
        self._written: set[int] = set()

    def __enter__(self) -> Self:
        while True:  # another writer that gives up takes an empty folder away
            _begin(self.folder, self.plan)
            with suppress(FileNotFoundError):
                self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                _locked(self._lock, fcntl.LOCK_SH, _PRESENT)
                if (self.folder / PLAN).is_file() and os.fstat(self._lock).st_nlink:
                    return self
                os.close(self._lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if error is not None and self._made:
            self._forget()
        os.close(self._lock)
        self._lock = None

    def _forget(self) -> None:
        """Take a new folder away in which no shard was made, unless another process is at it."""
        assert self._lock is not None
        if _locked(self._lock, fcntl.LOCK_EX, _PRESENT) and not any(self.folder.glob("*.parquet")):
            for name in (PLAN, LOCK):
                (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there."""
        return [number for number, name in enumerate(self.plan.shards) if not (self.folder / name).is_file()]

    def claims(self) -> Iterator[int]:
        """Numbers of missing shards that no other process is making; each is this one's until it is written.

        Shards of a process that died meanwhile are looked for too: the last pass over all finds nothing.
        """
        found = True
        while found:
            found = False
            for number in self.missing():
                if number in self._held or not self._take(number):
                    continue
                if self._is_missing(number):  # not finished by another between the two looks
                    self._held.add(number)
                    found = True
                    yield number
                else:
                    self._give(number)

    def write(self, number: int, rows: Sequence[Row], pictures: str = "", left_out: Sequence[str] = ()) -> None:
        """Write a claimed shard.

        Args:
            number: of the shard.
            rows: in the order of their pictures.
            pictures: digest of the pictures, see `ShardNote`.
            left_out: names of those that could not be read.

        Raises:
            ValueError: ids that do not keep the promise of the tokenizer's spec.
            DiskFullError: no space left.
        """
        note = ShardNote(self.plan.to_dict(), number, pictures, list(left_out))
        write_shard(self.folder / self.plan.shards[number], rows, self.plan.tokenizer["spec"], note)
        self._written.add(number)
        self._give(number)
        self._held.discard(number)

    def finish(self) -> dict[str, Any] | None:
        """Check all shards and write the index; None where some are still missing.

        Where there is an index already, every shard that this process did not write must be the one that it names.

        Raises:
            ValueError: a damaged shard, or one of another store; the sentence names it. Or not one row.
        """
        if self.missing():
            return None
        index = make_index(self.folder, self.plan)
        if not index["rows"]:
            raise ValueError(
                f"at least one readable picture is needed, got {index['left_out']} broken; check the source"
            )
        for number, (shard, before) in enumerate(zip(index["shards"], self._indexed(), strict=False)):
            if number not in self._written and shard["sha256"] != before:
                raise damaged(self.folder / shard["file"], "its checksum is not that of the index")
        with atomic_file(self.folder / INDEX) as file:
            file.write_text(json.dumps(index, indent=1))
        with suppress(FileNotFoundError):
            (self.folder / LOCK).unlink()
        clear(self.folder / PLAN)  # of processes that were killed since this one began
        return index

    def _indexed(self) -> list[str]:
        """SHA-256 of every shard by the index that is there, if there is one that can be read."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            index = json.loads((self.folder / INDEX).read_text())
            if index["plan"] == self.plan.digest:
                return [str(shard["sha256"]) for shard in index["shards"]]
        return []

    def _is_missing(self, number: int) -> bool:
        return not (self.folder / self.plan.shards[number]).is_file()

    def _take(self, number: int) -> bool:
        if self._lock is None:
            raise RuntimeError("shards are claimed inside a with block")
        return _locked(self._lock, fcntl.LOCK_EX, number) is not False

    def _give(self, number: int) -> None:
        if self._lock is not None:
            with suppress(OSError):
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, number)


def make_index(folder: Path, plan: StorePlan) -> dict[str, Any]:
    """What ``_index.json`` says of a finished store: rows, bytes and SHA-256 of every shard, and sums over all.

    Raises:
        ValueError: a damaged shard, or one of another store; the sentence names it.
    """
    shards, pictures, left_out = list[dict[str, Any]](), 0, 0
    for number, name in enumerate(plan.shards):
        path = folder / name
        rows, note, digest = check_shard(path, plan.tokenizer["spec"])
        check_note(path, note, plan, number)
        shards.append({"file": name, "rows": rows, "bytes": path.stat().st_size, "sha256": digest})
        pictures, left_out = (pictures + int(note.pictures or "0", 16)) % 2**256, left_out + len(note.left_out)
    total = sum(shard["rows"] for shard in shards)
    return {"plan": plan.digest, "rows": total, "left_out": left_out, "pictures": f"{pictures:064x}", "shards": shards}


def check_note(path: Path, note: ShardNote, plan: StorePlan, number: int) -> None:
    """Raise unless a shard says that it is the one of its number in a store of this plan.

    Raises:
        ValueError: it says otherwise.
    """
    if (note.plan, note.shard) != (plan.to_dict(), number):
        raise ValueError(f"shard {path} belongs to another token store; delete it and tokenize again")


def write_store(
    folder: str | Path,
    ids: Tensor,
    records: Sequence[TokenRecord],
    tokenizer: Mapping[str, Any],
    source: str = "codes",
    *,
    transform: Mapping[str, Any] | None = None,
    pictures: str = "",
    shard_size: int = 10_000,
) -> None:
    """Write codes that are at hand as a token store.

    Args:
        folder: new, or a store of the same codes that was begun.
        ids: ``[M, N, D]`` integers, -1 where padded.
        records: M of them.
        tokenizer: that made the codes: ``fingerprint`` and ``spec`` at least, or its ``identity()``.
        source: what the pictures are called.
        transform: what was done to them before they were coded.
        pictures: digest of all pictures, see `ShardNote`.
        shard_size: pictures of a shard.

    Raises:
        ValueError: another number of records than of images, ids outside their codebook, or another store there.
    """
    if len(ids) != len(records):
        raise ValueError(
            f"a token store needs one record per image, got {len(records)} for {len(ids)} images; "
            "an empty TokenRecord stands for an image without text"
        )
    plan = StorePlan(tokenizer, {"name": source, "pictures": len(ids)}, transform or {}, shard_size=shard_size)
    arrays = ids.cpu().numpy()
    with StoreWriter(folder, plan) as writer:
        for number in writer.claims():
            rows = [Row(arrays[index], records[index], str(index), index) for index in plan.pictures(number)]
            writer.write(number, rows, pictures if number == 0 else "")  # they are summed up
        writer.finish()


def read_plan(folder: Path) -> StorePlan:
    """The plan of a store.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(
            f"a token store was expected in {folder}, which lacks {PLAN}; make one with smalti tokenize"
        )
    try:
        return StorePlan.from_dict(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no readable plan of a token store ({error}); tokenize into another folder"
        ) from error


def _begin(folder: Path, plan: StorePlan) -> None:
    """Write the plan of a new store, or compare it: of several processes that begin at once, one writes it."""
    if folder.is_dir() and not (folder / PLAN).is_file():
        found = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        if found:
            raise ValueError(
                f"{folder} must be new or a token store that was begun, got {found[0]} in it; choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder / PLAN)
    if not (folder / PLAN).is_file():
        _place(folder, json.dumps(plan.to_dict(), indent=1))
    told = differences(read_plan(folder).to_dict(), plan.to_dict())
    if told:
        raise ValueError(
            f"the token store in {folder} was begun otherwise: {'; '.join(told[:4])}; choose another folder, "
            "or tokenize as before"
        )


def _place(folder: Path, plan: str) -> None:
    """Write the plan, whole, unless another process was first."""
    mine = folder / f"{prefix(folder / PLAN)}plan"
    with mine.open("w") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(mine, folder / PLAN)  # fails where the name is taken, unlike a rename
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        mine.replace(folder / PLAN)
    finally:
        mine.unlink(missing_ok=True)


def _locked(lock: int, kind: int, byte: int) -> bool | None:
    """Whether a byte could be locked; None where the file system has no locks."""
    try:
        fcntl.lockf(lock, kind | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
