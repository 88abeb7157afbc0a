"""Runs from what they left behind: attempts put together, settings without places."""

from __future__ import annotations

import pytest
import yaml

from smalti.eval.run_logs import find_runs


def attempt(folder, number, rows, **settings):
    place = folder / "logs" / f"version_{number}"
    place.mkdir(parents=True)
    lines = [f"{step},{value}" for step, value in rows]
    (place / "metrics.csv").write_text("\n".join(["step,train/l1", *lines]) + "\n")
    model = {"class_path": "Training", "init_args": settings}
    (place / "config.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {}}))


def test_attempts_of_a_run_are_one(tmp_path):
    attempt(tmp_path / "one", 2, [(20, 0.2), (30, 0.1)], seed=4, weight=2.0)
    attempt(tmp_path / "one", 10, [(30, 0.3), (40, 0.4)], seed=5, weight=3.0)
    attempt(tmp_path / "two", 0, [(1, 1.0)], save_to="here", teacher={"checkpoint": "there", "width": 8})
    one, two = find_runs(tmp_path)
    assert (one.folder, two.folder) == (tmp_path / "one", tmp_path / "two")
    assert one.curves == {"train/l1": [(20, 0.2), (30, 0.3), (40, 0.4)]}
    assert (one.settings, one.seed) == ({"weight": 3.0}, 5)
    assert (two.settings, two.seed) == ({"teacher.width": 8}, None)
    assert find_runs(tmp_path / "one")[0].folder == tmp_path / "one"
    assert find_runs(tmp_path / "one" / "logs")[0].curves == one.curves
    assert len(find_runs(tmp_path / "one" / "logs" / "version_2")[0].curves["train/l1"]) == 2


def test_a_log_without_a_configuration(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/l1\n0,1\n")
    (found,) = find_runs(tmp_path)
    assert (found.folder, found.settings, found.seed) == (tmp_path, {}, None)


@pytest.mark.parametrize("text", ["model: [", "model: {init_args: 3}", "nothing: 1"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    attempt(tmp_path, 0, [(0, 1.0)])
    (tmp_path / "logs" / "version_0" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml does not describe a run"):
        find_runs(tmp_path)
