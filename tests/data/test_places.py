"""What cannot be written is known before the work."""

from __future__ import annotations

import pytest

from smalti.data.places import check_model_place, check_place


def test_places_that_can_be_written_stay_as_they_are(tmp_path):
    check_place(tmp_path / "a" / "b" / "file.json", "--out")
    check_model_place(tmp_path / "new" / "model", "--out")
    (tmp_path / "empty").mkdir()
    check_model_place(tmp_path / "empty", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("check", [check_place, check_model_place])
def test_a_file_in_place_of_a_folder(check, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(
        ValueError, match=r"--out cannot be written to .*file \(Not a directory\); choose another place"
    ):
        check(tmp_path / "file" / "x", "--out")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_model_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"save_to cannot be written to .*file \(Not a directory\)"):
        check_model_place(tmp_path / "file", "save_to")


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "decoder.json", "latents.json"])
def test_a_folder_that_is_replaced_holds_a_model_or_nothing(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "diary.txt").write_text("kept")
    wanted = r"--out must be a new folder or that of a model, which is replaced, got .*folder, which holds diary\.txt;"
    with pytest.raises(ValueError, match=wanted):
        check_model_place(folder, "--out")
    (folder / name).write_text("{}")
    check_model_place(folder, "--out")
