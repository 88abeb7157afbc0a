"""Where pictures go is checked before the work."""

from __future__ import annotations

import pytest

from smalti.cli.errors import UsageError
from smalti.cli.outputs import SHEET_LIMIT, Target, file_target, picture_target


def test_folders_and_files(tmp_path):
    assert picture_target(f"{tmp_path}/new/") == Target(tmp_path / "new", is_folder=True)
    assert picture_target(str(tmp_path)) == Target(tmp_path, is_folder=True)
    assert picture_target(f"{tmp_path}/a/b/new.PNG") == Target(tmp_path / "a" / "b" / "new.PNG", is_folder=False)
    assert list(tmp_path.iterdir()) == []


def test_other_endings(tmp_path):
    for name in ("out.jpg", "out"):
        with pytest.raises(UsageError, match=rf"--out must end in .png or be a folder \(end in /\), got .*{name}'"):
            picture_target(str(tmp_path / name))
    with pytest.raises(UsageError, match=r"--out must end in .safetensors, got 'codes.pt'; rename it"):
        file_target("codes.pt", "--out", ".safetensors")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UsageError, match=r"--sheet must be a file, got the folder .*; name a file in it"):
        file_target(str(tmp_path / "x.png"), "--sheet", ".png")


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"--out cannot be written to .*file \(Not a directory\); choose another place"
    ):
        picture_target(str(tmp_path / "file" / "out.png"))
    with pytest.raises(UsageError, match="--out cannot be written to"):
        picture_target(f"{tmp_path / 'file'}/")


def test_a_sheet_is_not_endless(tmp_path):
    Target(tmp_path / "s.png", is_folder=False).check_count(SHEET_LIMIT)
    Target(tmp_path, is_folder=True).check_count(SHEET_LIMIT + 1)
    with pytest.raises(
        UsageError, match=f"a sheet holds at most {SHEET_LIMIT} pictures, got {SHEET_LIMIT + 1}; .*: s/"
    ):
        Target(tmp_path / "s.png", is_folder=False).check_count(SHEET_LIMIT + 1)


def test_output_is_checked_before_the_model_is_loaded(tmp_path, fails):
    for command in (("sample", "a red circle", "--model"), ("decode", "none.safetensors", "--tokenizer")):
        assert "--out must end in .png" in fails(*command, tmp_path / "none", "--out", tmp_path / "out.txt")
    assert "--out must end in .safetensors" in fails("encode", "none.png", "--out", tmp_path / "codes.txt")
    assert "--sheet must end in .png" in fails("encode", "none.png", "--sheet", tmp_path / "sheet.txt")
