import errno
import os
import stat

import pytest

from smalti.data.files import DiskFullError, atomic_file, atomic_folder

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("write failed: No space left on device (os error 28)"),
]


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def die_in(writer, target):
    with writer(target) as partial:
        (partial / "new.txt" if partial.is_dir() else partial).write_text("half")
        raise KeyError("mine")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("old", [None, "old"])
def test_file_appears_whole(tmp_path, old):
    target = tmp_path / "deep" / "codes.json"
    if old:
        target.parent.mkdir()
        target.write_text(old)
    with atomic_file(target) as partial:
        assert partial.parent == target.parent
        assert partial.suffix == ".json"
        partial.write_text("half")
        assert (target.read_text() if target.exists() else None) == old
        partial.write_text("whole")
    assert target.read_text() == "whole"
    assert entries(target.parent) == ["codes.json"]


@pytest.mark.parametrize("old", [None, "old"])
def test_failed_file_leaves_nothing(tmp_path, old):
    target = tmp_path / "codes.json"
    if old:
        target.write_text(old)
    with pytest.raises(KeyError, match="mine"):
        die_in(atomic_file, target)
    assert entries(tmp_path) == (["codes.json"] if old else [])
    assert not old or target.read_text() == old


@pytest.mark.parametrize("old", [None, "old"])
def test_folder_appears_whole(tmp_path, old):
    target = tmp_path / "deep" / "model"
    if old:
        target.mkdir(parents=True)
        (target / "old.txt").write_text(old)
    with atomic_folder(target) as partial:
        (partial / "new.txt").write_text("new")
        assert (target / "new.txt").exists() is False
    assert entries(target.parent) == ["model"]
    assert entries(target) == ["new.txt"]


@pytest.mark.parametrize("old", [None, "old"])
def test_failed_folder_leaves_nothing(tmp_path, old):
    target = tmp_path / "model"
    if old:
        target.mkdir()
        (target / "old.txt").write_text(old)
    with pytest.raises(KeyError, match="mine"):
        die_in(atomic_folder, target)
    assert entries(tmp_path) == (["model"] if old else [])
    assert not old or entries(target) == ["old.txt"]


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path):
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert mode(tmp_path / "file") == 0o640
    assert mode(tmp_path / "folder") == 0o750


@pytest.mark.parametrize("error", FULL, ids=["plain", "wrapped"])
@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_full_disk(tmp_path, error, writer):
    target = tmp_path / "target"
    expected = r"target needs more room than its disk has left, so nothing was written; free"
    with pytest.raises(DiskFullError, match=expected), writer(target):
        raise error
    assert entries(tmp_path) == []


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError, match="not yours"), atomic_file(tmp_path / "target"):
        raise PermissionError(errno.EACCES, "not yours")
