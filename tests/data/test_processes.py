"""Work shared by two and three processes: results in order, and errors that end all of them."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch

from smalti.data import processes as module
from smalti.data.processes import ALONE, LostProcessError, OtherProcessError, joined, world_size


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def together(world, work, folder):
    """Run ``work(processes)`` in as many children; what each gave, or the name and text of its error, or its signal."""
    port, children = free_port(), []
    for rank in range(world):
        child = os.fork()
        if not child:
            try:
                os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                try:
                    with joined() as processes:
                        found = work(processes)
                except (OSError, RuntimeError, ValueError, SystemExit) as error:
                    found = (type(error).__name__, str(error))
                torch.save(found, folder / f"{rank}.pt")
            finally:
                os._exit(0)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [end if end else torch.load(folder / f"{rank}.pt") for rank, end in enumerate(ends)]


@pytest.mark.parametrize("world", [2, 3])
def test_results_come_in_order_to_all(tmp_path, world):
    def work(processes):
        done = []

        def square(item):
            done.append(item)
            return {"square": torch.full((item,), item**2), "names": [str(item), None]}

        found = list(processes.shared(range(7), square))
        assert list(processes.shared([], square)) == []
        return done, found, processes.gathered(processes.rank), processes.first

    answers = together(world, work, tmp_path)
    alone = [{"square": torch.full((item,), item**2), "names": [str(item), None]} for item in range(7)]
    for rank, (done, found, ranks, first) in enumerate(answers):
        assert done == list(range(rank, 7, world))
        assert [each["names"] for each in found] == [each["names"] for each in alone]
        assert all(torch.equal(one["square"], other["square"]) for one, other in zip(found, alone, strict=True))
        assert ranks == list(range(world))
        assert first == (rank == 0)


def fails_at(item):
    def work(processes):
        def check(given):
            if given == item:
                raise ValueError(f"item {given} is wrong")

        return list(processes.shared(range(6), check))

    return work


@pytest.mark.parametrize("item", [0, 1, 2, 5])
def test_an_error_of_one_ends_all(tmp_path, item):
    answers = together(3, fails_at(item), tmp_path)
    assert answers[item % 3] == ("ValueError", f"item {item} is wrong")
    assert {name for rank, (name, _) in enumerate(answers) if rank != item % 3} == {"OtherProcessError"}


def test_of_several_errors_the_first_speaks(tmp_path):
    def work(processes):
        if processes.rank:
            raise ValueError(f"{processes.rank} is wrong")
        return processes.gathered(0)

    names = [name for name, _ in together(3, work, tmp_path)]
    assert names == ["OtherProcessError", "ValueError", "OtherProcessError"]


def test_an_error_after_the_work_ends_those_who_wait(tmp_path):
    def work(processes):
        if processes.first:
            raise FileNotFoundError("no room for the result")

    assert [name for name, _ in together(2, work, tmp_path)] == ["FileNotFoundError", "OtherProcessError"]


def test_an_end_without_an_error_is_none(tmp_path):
    def work(processes):
        raise SystemExit(0)  # as --help does

    assert together(2, work, tmp_path) == [("SystemExit", "0")] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_noticed_at_once(tmp_path, rank):
    def work(processes):
        if processes.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(processes.shared(range(4), float))

    begun = time.monotonic()
    answers = together(2, work, tmp_path)
    assert answers[rank] == -signal.SIGKILL
    name, text = answers[1 - rank]
    assert name == "LostProcessError"
    assert "all 2 processes must go on to the end, got one that was lost" in text
    assert time.monotonic() - begun < 20


def test_alone_nothing_is_sent():
    kept = object()
    assert list(ALONE.shared([1, 2], lambda item: (item, kept))) == [(1, kept), (2, kept)]
    assert ALONE.gathered(kept) == [kept]
    with joined() as processes:
        assert processes is ALONE
    assert issubclass(LostProcessError, ValueError)
    assert not issubclass(OtherProcessError, ValueError)


def test_variables_that_do_not_fit(monkeypatch):
    assert world_size({}) == 1
    for given in ("two", "0", "-1"):
        with pytest.raises(ValueError, match=f"WORLD_SIZE must be a number of processes, got '{given}'; start with"):
            world_size({"WORLD_SIZE": given})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(ValueError, match=r"2 processes find each other by RANK, .*, got no MASTER_ADDR; start with"),
        joined(),
    ):
        pass


def test_a_process_that_never_starts_is_said(monkeypatch):
    monkeypatch.setattr(module, "_START", timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"all 2 processes must start and reach 127.0.0.1, got one that did"), joined():
        pass
