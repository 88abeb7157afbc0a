"""Sampling to a folder is killed with signal 9 at any picture: the next run draws the rest, with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
from PIL import Image

from smalti.cli.drawing import Drawing
from smalti.cli.main import main
from smalti.generation.pipeline import TextToImagePipeline

RED, BLUE = "a red circle", "a blue square"
PROMPTS, COUNT = (RED, BLUE), 4  #: eight pictures


def command(model, out, *more):
    flags = ("sample", *PROMPTS, "--count", COUNT, "--model", model, "--out", f"{out}/", *more)
    return [str(flag) for flag in flags]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dies(run, monkeypatch, function, number):
    """Run a command in a child that ends itself by signal 9 after some calls of a function of ``os``."""
    child = os.fork()
    if not child:
        try:
            real, calls = getattr(os, function), []

            def stand_in(*args, **kwargs):
                if len(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls.append(args)
                return real(*args, **kwargs)

            monkeypatch.setattr(os, function, stand_in)
            main(run)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def drawn(monkeypatch):
    """Prompt and seed of every picture that is drawn."""
    told, real = [], TextToImagePipeline.__call__

    def call(self, prompts, generators, *rest):
        told.extend((prompt, each.initial_seed()) for prompt, each in zip(prompts, generators, strict=True))
        return real(self, prompts, generators, *rest)

    monkeypatch.setattr(TextToImagePipeline, "__call__", call)
    return told


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(model, out)) == 0
    return content(out)


@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_command_goes_on(model, tmp_path, monkeypatch, answers, drawn, whole, exists):
    out, jobs = tmp_path / "out", [(prompt, seed) for prompt in PROMPTS for seed in range(COUNT)]
    if exists:
        out.mkdir()
        (out / "0001.png").write_bytes(b"earlier")
        (out / "notes.txt").write_bytes(b"mine")
    first = random.Random(exists).randrange(1, 4)
    second = random.Random(10 + exists).randrange(1, 4)
    for number in (first, second):
        dies(command(model, out), monkeypatch, "replace", number)
    shown = [path.name for path in tmp_path.glob("out/*.png") if path.name[0] != "."]
    assert shown == (["0001.png"] if exists else [])
    assert not exists or (out / "0001.png").read_bytes() == b"earlier"
    lines = answers(*command(model, out))
    assert lines == [f"wrote {out}: 8 pictures of 16x16"]
    assert drawn == jobs[first + second :]
    assert content(out) == whole | ({"notes.txt": b"mine"} if exists else {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [8, 12, 16])
def test_killed_while_pictures_move_to_their_place(model, tmp_path, monkeypatch, answers, drawn, whole, number):
    (tmp_path / "out").mkdir()
    dies(command(model, tmp_path / "out"), monkeypatch, "rename" if number == 16 else "replace", number % 16)
    answers(*command(model, tmp_path / "out"))
    assert drawn == []
    assert content(tmp_path / "out") == whole


def test_killed_before_the_folder_takes_its_place(model, tmp_path, monkeypatch, answers, drawn, whole):
    dies(command(model, tmp_path / "out"), monkeypatch, "rename", 0)
    assert not (tmp_path / "out").exists()
    answers(*command(model, tmp_path / "out"))
    assert drawn == []
    assert content(tmp_path / "out") == whole


def test_a_batch_is_drawn_whole_again(model, tmp_path, monkeypatch, answers, drawn):
    answers(*command(model, tmp_path / "undisturbed", "--batch", 3))
    drawn.clear()
    dies(command(model, tmp_path / "out", "--batch", 3), monkeypatch, "replace", 4)
    answers(*command(model, tmp_path / "out", "--batch", 3))
    assert drawn == [(RED, 3), *((BLUE, seed) for seed in range(COUNT))]  # all but the first batch
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_a_failure_leaves_what_was_drawn(model, tmp_path, monkeypatch, fails, answers, drawn, whole):
    real, calls = Image.Image.save, []

    def save(self, path, **options):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    line = fails(*command(model, tmp_path / "out"))
    expected = f"{tmp_path / 'out'} needs more room than its disk has left, so nothing was written; free some space and"
    assert expected in line
    (left,) = tmp_path.iterdir()
    assert {name: whole[name] for name in ("0001.png", "0002.png", "0003.png")} == content(left)
    drawn.clear()
    answers(*command(model, tmp_path / "out"))
    assert len(drawn) == 5
    assert content(tmp_path / "out") == whole


def test_another_plan_starts_anew(model, tmp_path, monkeypatch, answers, drawn):
    dies(command(model, tmp_path / "out"), monkeypatch, "replace", 2)
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    before = content(left)
    for change in (("--seed", 1), ("--scale", 2), ("--top-k", 3), ("--batch", 4)):
        drawn.clear()
        answers(*command(model, tmp_path / "out", *change))
        assert len(drawn) == 8
        assert content(left) == before


def test_another_model_starts_anew(model, broken_model, tmp_path, monkeypatch, answers, drawn):
    out = tmp_path / "pictures" / "out"
    dies(command(model, out), monkeypatch, "replace", 2)
    answers(*command(broken_model, out))  # an undamaged copy
    assert len(drawn) == 6
    dies(command(model, out), monkeypatch, "replace", 2)
    (broken_model / "note.txt").write_text("changed")
    drawn.clear()
    answers(*command(broken_model, out))
    assert len(drawn) == 8


PLAN = {"seed": 0}


def picture(index):
    return Image.fromarray(np.full((2, 2, 3), index, np.uint8))


def test_two_processes_of_one_plan_do_no_harm(tmp_path):
    """Each is interrupted by the whole of the other between any two of its steps."""
    expected = None
    for moment in range(8):
        for exists in (False, True):
            place = tmp_path / f"{moment} {exists}"
            if exists:
                place.mkdir()
            one, other = (Drawing(place, PLAN, 3) for _ in range(2))
            steps = [lambda index=index, one=one: one.save(index, picture(index)) for index in range(3)]
            steps.append(one.finish)
            for index in sorted(set(range(3)) - other.drawn()) if moment % 2 else ():
                other.save(index, picture(index))
            for at, step in enumerate(steps):
                if at == moment // 2:
                    for index in range(3):
                        other.save(index, picture(index))
                    other.finish()
                step()
            found = content(place)
            expected = expected or found
            assert found == expected
            assert sorted(found) == ["0001.png", "0002.png", "0003.png"]
    assert all(path.name[0] != "." for path in tmp_path.iterdir())


def test_two_finish_at_once(tmp_path, monkeypatch):
    for exists in (False, True):
        place = tmp_path / str(exists)
        if exists:
            place.mkdir()
        one, other = (Drawing(place, PLAN, 3) for _ in range(2))
        for index in range(3):
            one.save(index, picture(index))
        threads = [threading.Thread(target=each.finish) for each in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(content(place)) == ["0001.png", "0002.png", "0003.png"]


def test_missing_pictures_are_said(tmp_path):
    drawing = Drawing(tmp_path / "out", PLAN, 3)
    drawing.save(1, picture(1))
    expected = r"3 pictures were expected in .*\.out\.\w{16}, got none for 2 of them, first 0001.png; let all processes"
    with pytest.raises(FileNotFoundError, match=expected):
        drawing.finish()
    assert drawing.drawn() == {1}


def test_a_folder_that_vanishes_is_an_error(tmp_path):
    drawing = Drawing(tmp_path / "out", PLAN, 2)
    drawing.save(0, picture(0))
    (drawing.folder / "0001.png").unlink()
    drawing.folder.rmdir()
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        drawing.save(1, picture(1))


def test_names_have_as_many_digits_as_they_need(tmp_path):
    assert Drawing(tmp_path / "out", PLAN, 12_345).names[0] == "00001.png"
