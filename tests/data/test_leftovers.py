"""Writers that are killed with signal 9 at every step: what stands in place, what the next one finds and removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smalti.data import leftovers
from smalti.data.files import atomic_file, atomic_folder
from smalti.data.leftovers import recovered

OLD, NEW, NEXT = {"a.txt": "old", "b.txt": "old"}, {"a.txt": "new"}, {"c.txt": "next"}


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(target, files):
    with atomic_folder(target) as partial:
        for name, text in files.items():
            (partial / name).write_text(text)


def killed(work):
    """Run in a child that must end by signal 9; its process id."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return child


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(function, number, after):
    """A stand-in for a function of ``os`` that ends the process at a call of it, before or after its work."""
    real, calls = getattr(os, function), []

    def stand_in(*args, **kwargs):
        calls.append(args)
        if len(calls) - 1 == number and not after:
            die()
        found = real(*args, **kwargs)
        if len(calls) - 1 == number:
            die()
        return found

    return stand_in


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(("function", "after"), [("fsync", False), ("replace", False), ("replace", True)])
def test_a_file_is_whole_wherever_its_writer_was_killed(tmp_path, monkeypatch, old, function, after):
    target = tmp_path / "codes.json"
    if old:
        target.write_text(old)

    def work():
        monkeypatch.setattr(os, function, dies_at(function, 0, after))
        with atomic_file(target) as partial:
            partial.write_text("new")

    killed(work)
    assert (target.read_text() if target.exists() else None) == ("new" if after else old)
    assert len(names(tmp_path)) == bool(old or after) + (not after)
    with atomic_file(target) as partial:
        assert names(tmp_path) == [partial.name, *(["codes.json"] if old or after else [])]
        partial.write_text("next")
    assert names(tmp_path) == ["codes.json"]
    assert target.read_text() == "next"


#: What a kill leaves in place: the renames are the old folder's retirement, the new one's arrival, the old one's end.
STAGES = [
    ("mkdir", 1, True, OLD),
    ("fsync", 1, False, OLD),
    ("rename", 0, False, OLD),
    ("rename", 0, True, None),
    ("rename", 1, False, None),
    ("rename", 1, True, NEW),
    ("rename", 2, False, NEW),
    ("rename", 2, True, NEW),
    ("rmdir", 0, False, NEW),
]


@pytest.mark.parametrize(("function", "number", "after", "left"), STAGES)
def test_a_folder_is_whole_wherever_its_writer_was_killed(tmp_path, monkeypatch, function, number, after, left):
    target = tmp_path / "model"
    fill(target, OLD)

    def work():
        monkeypatch.setattr(os, function, dies_at(function, number, after))
        fill(target, NEW)

    killed(work)
    assert (content(target) if target.exists() else None) == left
    assert len(names(tmp_path)) > 1
    assert content(recovered(target)) == (left or OLD)
    fill(target, NEXT)
    assert names(tmp_path) == ["model"]
    assert content(target) == NEXT


def test_a_new_folder_is_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "model"
    for after, left in ((False, None), (True, NEW)):

        def work(after=after):
            monkeypatch.setattr(os, "rename", dies_at("rename", 0, after))
            fill(target, NEW)

        killed(work)
        assert (content(recovered(target)) if target.exists() else None) == left
    fill(target, NEXT)
    assert names(tmp_path) == ["model"]


def test_a_retired_folder_is_never_half_of_one(tmp_path, monkeypatch):
    target = tmp_path / "model"
    fill(target, OLD)

    def work():
        monkeypatch.setattr(os, "unlink", dies_at("unlink", 1, after=False))
        fill(target, NEW)

    killed(work)  # one of two old files is removed
    assert content(target) == NEW
    target.rename(tmp_path / "elsewhere")
    assert not recovered(target).exists()


def test_the_newest_of_several_retired_ones_comes_back(tmp_path):
    for name, text in ((".model.a-1.7.zz0.retired", "first"), (".model.b.9.aa0.retired", "second")):
        fill(tmp_path / "model", {"a.txt": text})
        (tmp_path / "model").rename(tmp_path / name)
        time.sleep(0.02)  # the clock of file systems is coarse
    (tmp_path / ".model.bak.retired").mkdir()
    assert content(recovered(tmp_path / "model")) == {"a.txt": "second"}
    assert recovered(tmp_path / "none" / "model") == tmp_path / "none" / "model"


def test_recovered_by_another_a_writer_retires_again(tmp_path, monkeypatch):
    target, real = tmp_path / "model", os.rename
    fill(target, OLD)
    moves = []

    def rename(source, place):
        real(source, place)
        moves.append(source)
        if len(moves) == 1:
            assert content(recovered(target)) == OLD  # another process, between the two renames

    monkeypatch.setattr(os, "rename", rename)
    fill(target, NEW)
    assert content(target) == NEW
    assert names(tmp_path) == ["model"]


def test_what_belongs_to_others_stays(tmp_path):
    target = tmp_path / "model.json"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        gone = killed(die)
        host = leftovers._host()
        kept = [
            f".model.json.{host}.{sleeper.pid}.abc.json",  # alive
            f".model.json.{host}.1.abc.json",  # alive, another user's
            f".model.json.other-4026531836.{gone}.abc.json",  # another host's
            f".model.json5.{host}.{gone}.abc.json",  # of another target
            f".model.json.{host}.{gone}.mine.too.json",  # no name of ours
            "model.json.bak",
        ]
        for name in (*kept, f".model.json.{host}.{gone}.abc.json", f".model.json.{host}.{gone}.abc"):
            (tmp_path / name).write_text("")
        with atomic_file(target) as partial:
            partial.write_text("")
        assert names(tmp_path) == sorted([*kept, "model.json"])
    finally:
        sleeper.communicate(b"\n")


def test_a_file_may_be_written_beside_its_folder(tmp_path):
    folder = tmp_path / "all"
    with atomic_file(folder / "one.png", beside=folder) as partial:
        assert (partial.parent, partial.suffix) == (tmp_path, ".png")
        assert not folder.exists()
        partial.write_text("new")
        folder.mkdir()
    assert content(folder) == {"one.png": "new"}
    assert names(tmp_path) == ["all"]


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    told, real = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(handle):
        told.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real["fsync"](handle)

    def moved(name):
        def move(source, place):
            told.append(name)
            real[name](source, place)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", moved("rename"))
    monkeypatch.setattr(os, "replace", moved("replace"))
    with atomic_file(tmp_path / "one.json") as partial:
        partial.write_text("{}")
    assert told == [partial.name, "replace", tmp_path.name]
    told.clear()
    with atomic_folder(tmp_path / "all") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "weights").write_text("1")
    assert told == ["weights", "deep", partial.name, "rename", tmp_path.name]


def test_long_names_of_hosts_are_cut(monkeypatch):
    try:
        for given, length in (("node-7.cluster", 14), ("x" * 80, 24)):
            monkeypatch.setattr("socket.gethostname", lambda given=given: given)
            leftovers._host.cache_clear()
            name, _, space = leftovers._host().rpartition("-")
            assert len(name) == length
            assert space.isdigit()
            assert "." not in name
    finally:
        monkeypatch.undo()
        leftovers._host.cache_clear()
