"""``smalti bench``: what its file stands for, and what is refused; carried out by tests/test_configs.py."""

from __future__ import annotations

import pytest
import yaml

from smalti.cli.bench import bench_recipe

FILE = {
    "folder": "somewhere",
    "before": {"vocabulary": {"run": "vocabulary", "with": {"source": "x"}}},
    "training": {
        "model": {"pixel_loss": "loss", "seed": 1},
        "data": {"class_path": "ImageData"},
        "trainer": {"max_steps": 3},
    },
    "families": {"one": {"tokenizer": "first"}, "two": {"tokenizer": "second", "seed": 2}},
    "compare": {"size": 64},
}


def written(tmp_path, **changed):
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changed}))
    return path


def test_a_file_stands_for_a_recipe(tmp_path):
    recipe = bench_recipe(written(tmp_path))
    assert [(stage.name, stage.run) for stage in recipe.stages] == [
        ("vocabulary", "vocabulary"),
        ("one", "fit"),
        ("two", "fit"),
        ("comparison", "compare"),
    ]
    first, second = (stage.arguments for stage in recipe.stages[1:3])
    assert first["data"] == second["data"] == FILE["training"]["data"]
    assert first["trainer"] == second["trainer"] == FILE["training"]["trainer"]
    common = {"pixel_loss": "loss", "seed": 1, "tokenizer": "first", "save_to": "${one}/model"}
    assert first["model"] == {"class_path": "TokenizerTraining", "init_args": common}
    assert second["model"]["init_args"]["seed"] == 2  # a family's own come last
    assert recipe.stages[3].arguments == {"models": {"one": "${one}/model", "two": "${two}/model"}, "size": 64}
    assert str(bench_recipe(written(tmp_path), tmp_path / "other").folder) == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"families": {"one": {"tokenizer": "x"}}}, "at least two families to compare"),
        ({"families": {"one": {"tokenizer": "x"}, "two": {}}}, "family 'two' in .* must have a tokenizer"),
        ({"training": {"model": {}}}, "must have model, data and trainer"),
        ({"more": 1}, "must be a mapping with folder, before, training, families, compare, got"),
    ],
)
def test_files_of_another_form(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench_recipe(written(tmp_path, **changed))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="recipe file was expected"):
        bench_recipe(tmp_path / "nowhere.yaml")
