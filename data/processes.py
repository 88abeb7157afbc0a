"""Work that several processes share: dealt out item by item, gathered in order, so that their number decides nothing.

An item is whatever must stay together for its result to be the same, such as a whole batch of pictures. The processes
have a group of their own: what sums over the default group of ``torch.distributed`` by itself (metrics, codebooks in
training) must not see them, because every process does everything that is not dealt out, on all results.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: How long the processes wait for the last of them to start, and for each other. The end of one is noticed at once.
_START, _PATIENCE = timedelta(minutes=10), timedelta(hours=3)

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


class OtherProcessError(RuntimeError):
    """Another process failed, and says so itself."""


class LostProcessError(ValueError):
    """Another process ended without a word."""


@dataclass(frozen=True)
class Processes:
    """One of the processes that share a work; alone by default."""

    rank: int = 0  #: of this process, from 0
    world: int = 1  #: how many there are
    group: Any = None  #: what they talk through; None where there is one

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def shared(self, items: Sequence[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
        """Results of all items in their order, of which each process works on its share.

        Item ``i`` falls to process ``i % world``. All processes must call this with the same items, and read to the
        end.

        Args:
            items: what is dealt out.
            work: takes one of them. On several processes a result is of tensors on the CPU, numbers, texts, None,
                lists, tuples and dicts.

        Raises:
            OtherProcessError: an item of another process failed.
            LostProcessError: another process was killed.
        """
        for start in range(0, len(items), self.world):
            part = items[start : start + self.world]
            yield from self.gathered(work(part[self.rank]) if self.rank < len(part) else None)[: len(part)]

    def gathered(self, value: object) -> list[Any]:
        """The values of all processes by rank, in each of them; errors and kinds of values as in `shared`."""
        if self.group is None:
            return [value]
        found = self._exchanged({"value": value})
        if any("failed" in each for each in found):
            raise OtherProcessError
        return [each["value"] for each in found]

    def told_before(self) -> bool:
        """Tell the others that this process failed; whether a process of a lower rank did at the same time."""
        try:
            found = self._exchanged({"failed": True})
        except LostProcessError:
            return False
        return any("failed" in each for each in found[: self.rank])

    def _exchanged(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        sent = _packed(record)
        try:
            sizes = [int(size) for size in self._all(torch.tensor([len(sent)]))]
            padded = torch.zeros(max(sizes), dtype=torch.uint8)
            padded[: len(sent)] = sent
            rows = self._all(padded)
        except RuntimeError as error:
            raise LostProcessError(
                f"all {self.world} processes must go on to the end, got one that was lost, or that no process heard of "
                f"for {_PATIENCE}; start the command again, it goes on where it can"
            ) from error
        return [_unpacked(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def _all(self, tensor: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.world)]
        self.group.allgather([rows], [tensor]).wait()
        return rows


ALONE = Processes()


def world_size(environment: Mapping[str, str] | None = None) -> int:
    """How many processes the launcher started, as ``WORLD_SIZE`` says.

    Raises:
        ValueError: it says no number.
    """
    given = (os.environ if environment is None else environment).get("WORLD_SIZE", "1")
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {given!r}; start with torchrun, or unset it")
    return int(given)


@contextmanager
def joined() -> Generator[Processes]:
    """The processes that torchrun, or srun with the same variables, started: alone without ``WORLD_SIZE``.

    An error of one ends all, at the next thing that they gather: the failed one raises its own, the others
    `OtherProcessError`; if several failed, so do all but the first of them. All wait for the last to finish.

    Raises:
        ValueError: variables that are missing, or processes that never started.
    """
    world = world_size()
    if world == 1:
        yield ALONE
        return
    processes = _connected(world)
    try:
        yield processes
        processes.gathered(None)
    except (OtherProcessError, LostProcessError):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            processes.gathered(None)
        elif processes.told_before():
            raise OtherProcessError from error
        raise
    finally:
        processes.group.shutdown()
        object.__setattr__(processes, "group", None)


def _connected(world: int) -> Processes:
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"{world} processes find each other by {', '.join(_NEEDED)}, got no {missing[0]}; start with torchrun, or "
            "unset WORLD_SIZE"
        )
    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=_START))
        store = dist.PrefixStore("smalti", store)
        store.set(f"started {rank}", "")
        store.wait([f"started {each}" for each in range(world)], _START)
        return Processes(rank, world, dist.ProcessGroupGloo(store, rank, world, _PATIENCE))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"all {world} processes must start and reach {os.environ['MASTER_ADDR']}, got one that did not within "
            f"{_START} ({reason}); check the launcher"
        ) from error


def _packed(record: dict[str, Any]) -> Tensor:
    stream = io.BytesIO()
    torch.save(record, stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _unpacked(sent: Tensor) -> dict[str, Any]:
    return torch.load(io.BytesIO(sent.numpy().tobytes()), weights_only=True)
