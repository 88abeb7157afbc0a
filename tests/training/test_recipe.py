"""Recipes: what runs, what is skipped, what continues, and what is refused before anything runs."""

from __future__ import annotations

import json
import time

import pytest

from smalti.training.recipe import MARK, Done, Recipe, Stage, check_recipe, plan_recipe, run_recipe, timings


class Worker:
    """An action that notes what it was asked to do and writes one file."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict, list[str]]] = []

    def __call__(self, folder, arguments):
        self.calls.append((folder.name, arguments, sorted(p.name for p in folder.iterdir() if p.name != MARK)))
        (folder / "result.txt").write_text(json.dumps(arguments))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def recipe(folder, **changed) -> Recipe:
    """``data`` is read by ``tokenizer``, that by ``lm``; ``teacher`` stands alone."""
    arguments = {
        "data": {"count": 3},
        "tokenizer": {"pictures": "${data}/train", "width": 8},
        "teacher": {"width": 4},
        "lm": {"paths": ["${tokenizer}", {"log": "${lm}/log"}]},
    }
    stages = [Stage(name, "work", arguments[name] | changed.get(name, {})) for name in arguments]
    return Recipe(folder, tuple(stages))


def names(done: list[Done], skipped: bool) -> list[str]:
    return [stage.name for stage in done if stage.skipped is skipped]


def test_stages_run_in_order_with_references_replaced(tmp_path):
    worker, told = Worker(), []
    done = run_recipe(recipe(tmp_path), {"work": worker}, told.append)
    assert worker.names == names(done, skipped=False) == ["data", "tokenizer", "teacher", "lm"]
    assert worker.calls[1][1] == {"pictures": f"{tmp_path}/data/train", "width": 8}
    assert worker.calls[3][1] == {"paths": [f"{tmp_path}/tokenizer", {"log": f"{tmp_path}/lm/log"}]}
    assert told[:2] == ["[1/4] data: starts", "[1/4] data: done in 0 s"]


def test_some_stages_alone_and_the_others_later(tmp_path):
    worker = Worker()
    for only in (["data"], ["teacher", "tokenizer"]):
        done = run_recipe(recipe(tmp_path), {"work": worker}, only=only)
        assert {stage.name for stage in done} == set(only)
    assert worker.names == ["data", "tokenizer", "teacher"]
    done = run_recipe(recipe(tmp_path), {"work": worker})
    assert worker.names == ["data", "tokenizer", "teacher", "lm"]
    assert names(done, skipped=True) == ["data", "tokenizer", "teacher"]


@pytest.mark.parametrize(
    ("finished", "only", "message"),
    [
        (None, ["lma"], "only stages of the recipe can run, got lma; there are data, tokenizer, teacher, lm"),
        (None, ["tokenizer"], "stage 'tokenizer' reads data, which must be finished, got new; run it too"),
        (["data"], ["lm"], "stage 'lm' reads tokenizer, which must be finished, got new; run it too"),
    ],
)
def test_a_stage_alone_that_reads_what_is_not_there_is_refused(tmp_path, finished, only, message):
    worker = Worker()
    if finished:
        run_recipe(recipe(tmp_path), {"work": Worker()}, only=finished)
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe(tmp_path), {"work": worker}, only=only)
    assert not worker.calls


def test_a_stage_alone_that_reads_what_has_changed_is_refused(tmp_path):
    run_recipe(recipe(tmp_path), {"work": Worker()})
    with pytest.raises(ValueError, match="stage 'tokenizer' reads data, which must be finished, got changed"):
        run_recipe(recipe(tmp_path, data={"count": 4}), {"work": Worker()}, only=["tokenizer"])


def test_finished_stages_are_skipped(tmp_path):
    run_recipe(recipe(tmp_path), {"work": Worker()})
    worker, told = Worker(), []
    done = run_recipe(recipe(tmp_path), {"work": worker}, told.append)
    assert worker.calls == []
    assert names(done, skipped=True) == ["data", "tokenizer", "teacher", "lm"]
    assert told[0] == "[1/4] data: finished before, skipped"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("data", ["data", "tokenizer", "lm"]),
        ("tokenizer", ["tokenizer", "lm"]),
        ("teacher", ["teacher"]),
        ("lm", ["lm"]),
    ],
)
def test_a_changed_stage_runs_anew_with_its_dependents_only(tmp_path, changed, expected):
    run_recipe(recipe(tmp_path), {"work": Worker()})
    worker = Worker()
    run_recipe(recipe(tmp_path, **{changed: {"new": True}}), {"work": worker})
    assert worker.names == expected
    assert all(found == [] for _, _, found in worker.calls)  # in an empty folder


def test_a_stage_whose_folder_is_gone_runs_anew_with_its_dependents(tmp_path):
    run_recipe(recipe(tmp_path), {"work": Worker()})
    (tmp_path / "tokenizer" / MARK).unlink()
    (tmp_path / "tokenizer" / "result.txt").unlink()
    worker = Worker()
    run_recipe(recipe(tmp_path), {"work": worker})
    assert worker.names == ["tokenizer", "lm"]


def test_a_changed_configuration_file_counts(tmp_path):
    config, worker = tmp_path / "lm.yaml", Worker()
    config.write_text("width: 8")
    plan = Recipe(tmp_path / "run", (Stage("lm", "work", {"config": str(config)}),))
    run_recipe(plan, {"work": worker})
    run_recipe(plan, {"work": worker})
    config.write_text("width: 16")
    run_recipe(plan, {"work": worker})
    assert worker.names == ["lm", "lm"]


def test_an_interrupted_stage_continues_with_its_folder_intact(tmp_path):
    found = []

    def work(folder, arguments):
        part = folder / "part.txt"
        if folder.name == "tokenizer" and not part.exists():
            part.write_text("half")
            raise KeyboardInterrupt("half way")
        found.append((folder.name, part.exists() and part.read_text()))

    with pytest.raises(KeyboardInterrupt, match="half way"):
        run_recipe(recipe(tmp_path), {"work": work})
    told = []
    done = run_recipe(recipe(tmp_path), {"work": work}, told.append)
    assert found == [("data", False), ("tokenizer", "half"), ("teacher", False), ("lm", False)]
    assert names(done, skipped=True) == ["data"]
    assert told[1] == "[2/4] tokenizer: continues"


def test_an_interrupted_stage_that_changed_starts_anew(tmp_path):
    def interrupt(folder, arguments):
        (folder / "part.txt").write_text("half")
        raise KeyboardInterrupt("stopped")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run_recipe(recipe(tmp_path), {"work": interrupt})
    worker = Worker()
    run_recipe(recipe(tmp_path, data={"count": 4}), {"work": worker})
    assert worker.calls[0] == ("data", {"count": 4}, [])


def test_an_unfinished_clearing_is_no_finished_stage(tmp_path, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt("stopped")

    def work(folder, arguments):
        (folder / "logs").mkdir()

    run_recipe(recipe(tmp_path), {"work": work})
    with monkeypatch.context() as patch:
        patch.setattr("smalti.training.recipe.shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            run_recipe(recipe(tmp_path, data={"count": 4}), {"work": work})
    worker = Worker()
    run_recipe(recipe(tmp_path), {"work": worker})  # the recipe as it was first
    assert worker.calls[0] == ("data", {"count": 3}, [])


def test_an_error_ends_the_run_and_leaves_the_stage_unfinished(tmp_path):
    def fails(folder, arguments):
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        run_recipe(recipe(tmp_path), {"work": fails})
    worker = Worker()
    assert names(run_recipe(recipe(tmp_path), {"work": worker}), skipped=True) == []


def test_files_that_no_stage_wrote_are_never_removed(tmp_path):
    precious = tmp_path / "data" / "photo.png"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(
        ValueError, match=r"data must be empty or written by a stage, got photo.png in it; choose another"
    ):
        run_recipe(recipe(tmp_path), {"work": Worker()})
    assert precious.read_text() == "mine"


def test_an_unknown_action_is_named_and_nothing_is_written(tmp_path):
    plan = Recipe(tmp_path / "run", (Stage("a", "work"), Stage("b", "wrok")))
    worker = Worker()
    with pytest.raises(ValueError, match="stage 'b' must run a known action, got 'wrok'; did you mean 'work'"):
        run_recipe(plan, {"work": worker})
    assert worker.calls == []
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="got 'work'; known are encode, fit"):
        run_recipe(plan, {"fit": worker, "encode": worker})


def test_arguments_of_all_stages_are_checked_before_the_first_one_runs(tmp_path):
    worker, seen = Worker(), []

    def check(folder, arguments):
        seen.append((folder.name, arguments))
        if folder.name == "lm":
            raise TypeError("width must be a number, got 'x'; correct it")

    for call in (run_recipe, check_recipe):
        with pytest.raises(ValueError, match="stage 'lm': width must be a number, got 'x'; correct it"):
            call(recipe(tmp_path / "run"), {"work": worker}, checks={"work": check})
    assert seen[1] == ("tokenizer", {"pictures": f"{tmp_path}/run/data/train", "width": 8})
    assert worker.calls == []
    assert not (tmp_path / "run").exists()


def test_foreign_files_of_a_later_stage_are_seen_before_the_first_one_runs(tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "notes.txt").write_text("mine")
    worker = Worker()
    with pytest.raises(ValueError, match=r"lm must be empty or written by a stage, got notes.txt in it"):
        run_recipe(recipe(tmp_path), {"work": worker})
    assert worker.calls == []


def states(folder, **changed) -> dict[str, str]:
    return {stage.name: stage.state for stage in plan_recipe(recipe(folder, **changed))}


def test_a_plan_tells_what_the_next_call_does(tmp_path):
    def work(folder, arguments):
        (folder / "part.txt").write_text("half")
        if folder.name == "teacher":
            raise KeyboardInterrupt("stopped")

    assert set(states(tmp_path / "run").values()) == {"new"}
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run_recipe(recipe(tmp_path / "run"), {"work": work})
    found = {"data": "finished", "tokenizer": "finished", "teacher": "interrupted", "lm": "new"}
    assert states(tmp_path / "run") == found
    assert states(tmp_path / "run", tokenizer={"width": 9}) == found | {"tokenizer": "changed"}
    assert states(tmp_path / "run", data={"count": 4}) == found | {"data": "changed", "tokenizer": "changed"}
    run_recipe(recipe(tmp_path / "run"), {"work": Worker()})
    assert states(tmp_path / "run", tokenizer={"width": 9})["lm"] == "changed"


def test_a_stage_that_is_refused_before_it_wrote_anything_leaves_nothing(tmp_path):
    def refuse(folder, arguments):
        raise ValueError("no pictures")

    with pytest.raises(ValueError, match="no pictures"):
        run_recipe(recipe(tmp_path / "run"), {"work": refuse})
    assert list(tmp_path.iterdir()) == []


def test_no_stage_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a recipe must have at least one stage, got none; add one"):
        Recipe(tmp_path, ())


def test_published_files_are_copied_to_the_run(tmp_path):
    plan = Recipe(tmp_path, (Stage("report", "work", {"x": 1}, publish=("result.txt",)),))
    run_recipe(plan, {"work": Worker()})
    assert (tmp_path / "result.txt").read_text() == (tmp_path / "report" / "result.txt").read_text() == '{"x": 1}'


def test_a_file_to_publish_must_be_written(tmp_path):
    plan = Recipe(tmp_path, (Stage("report", "work", publish=("page.html",)),))
    with pytest.raises(ValueError, match=r"stage 'report' must write page.html, which it publishes, got no such file"):
        run_recipe(plan, {"work": Worker()})
    assert timings(tmp_path) == {}


def test_timings_of_finished_stages_in_order_and_over_all_attempts(tmp_path):
    attempts = []

    def work(folder, arguments):
        attempts.append(folder.name)
        time.sleep(0.05)
        if attempts == ["z"]:
            raise KeyboardInterrupt("stopped")

    plan = Recipe(tmp_path, (Stage("z", "work"), Stage("a", "work")))
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run_recipe(plan, {"work": work})
    assert timings(tmp_path) == {}
    done = run_recipe(plan, {"work": work})
    found = timings(tmp_path)
    assert list(found) == ["z", "a"]
    assert found == {stage.name: stage.seconds for stage in done}
    assert found["z"] >= 0.1
    assert found["a"] >= 0.05


def test_reading_a_later_stage_is_an_error(tmp_path):
    message = r"stage 'a' reads \$\{b\}, which must be an earlier stage \(there is none\); reorder"
    with pytest.raises(ValueError, match=message):
        Recipe(tmp_path, (Stage("a", "work", {"x": "${b}"}), Stage("b", "work")))
    with pytest.raises(ValueError, match=r"stage 'b' reads \$\{lm-1\}, which must be an earlier stage \(a\)"):
        Recipe(tmp_path, (Stage("a", "work"), Stage("b", "work", {"x": ["${lm-1}/model"]})))


def test_duplicate_names_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="stage names must be unique, got 'a' twice; rename one"):
        Recipe(tmp_path, (Stage("a", "work"), Stage("a", "work")))


@pytest.mark.parametrize("name", ["..", "a/b", "", "a b", "-a"])
def test_names_must_be_names_of_folders(tmp_path, name):
    with pytest.raises(ValueError, match="stage names consist of letters, digits, _ and -, got"):
        Recipe(tmp_path, (Stage(name, "work"),))


def load(tmp_path, text: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return Recipe.load(file)


def test_a_file_is_read(tmp_path):
    text = """
    folder: runs/demo
    stages:
      data: {run: scenes, with: {count: 3}}
      lm-1: {run: fit, with: {path: "${data}"}, publish: [report.html]}
    """
    found = load(tmp_path, text)
    assert str(found.folder) == "runs/demo"
    assert found.stages == (
        Stage("data", "scenes", {"count": 3}),
        Stage("lm-1", "fit", {"path": "${data}"}, ("report.html",)),
    )
    assert Recipe.load(tmp_path / "recipe.yaml", tmp_path / "else").folder == tmp_path / "else"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a recipe file was expected at .*nowhere.yaml, which does not exist"):
        Recipe.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder: [", "recipe.yaml must be YAML, got while parsing"),
        ("folder: x\nstages: {a: {run: work}, a: {run: rest}}", "must be YAML, got the key 'a' twice"),
        ("- a", "must be a mapping with folder and stages alone, got list; correct it"),
        ("folder: x", "must be a mapping with folder and stages alone, got keys folder"),
        ("folder: x\nstages: [a]", "must be a mapping with folder and stages alone, got keys folder, stages"),
        ("folder: x\nstages: {}\nseed: 3", "got keys folder, stages, seed"),
        ("folder: x\nstages: {a: {with: {}}}", "stage 'a' must have run and may have with and publish, got keys with"),
        ("folder: x\nstages: {a: {run: work, needs: b}}", "stage 'a' must have run .* got keys run, needs"),
        ("folder: x\nstages: {a: work}", "stage 'a' must have run .* got str"),
        ("folder: x\nstages: {a: {run: work, with: [1]}}", "mapping under with and a list under publish, got list and"),
        ("folder: x\nstages: {a: {run: work, publish: b.txt}}", "a list under publish, got keys  and str"),
        (
            "folder: x\nstages: {a: {run: work, publish: [b/../../c]}}",
            r"files of its folder, got 'b/\.\./\.\./c'; name",
        ),
        ("folder: x\nstages: {a: {run: work, publish: [/etc/b]}}", "publish files of its folder, got '/etc/b'; name"),
        ("folder: x\nstages: {a: !!python/name:os.system x}", "got could not determine a constructor .* in line 2;"),
    ],
)
def test_what_is_no_recipe_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_a_folder_or_another_encoding_is_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a recipe file was expected at .*, which is a folder; check the path"):
        Recipe.load(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"folder: \xff")
    with pytest.raises(ValueError, match=r"recipe\.yaml must be YAML, got 'utf-8' codec can't decode byte 0xff"):
        Recipe.load(tmp_path / "recipe.yaml")
