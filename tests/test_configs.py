"""Every configuration is trained and every recipe is carried out, in small; each header says how it is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from smalti.cli import bench
from smalti.cli.main import COMMANDS, main
from smalti.data.scene_prompts import prompts
from smalti.eval import comparison, suite
from smalti.eval.decoder_report import REFERENCES
from smalti.eval.protocol import read_result
from smalti.eval.sampling_speed import measure as drawing
from smalti.eval.speed import measure
from smalti.generation.folders import load_pictures
from smalti.tokenizers.base import VisualTokenizer
from smalti.training.recipe import timings

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.y*ml"))
CONTENT = {file: yaml.safe_load(file.read_text()) for file in FILES}
RECIPES = [file for file in FILES if "stages" in CONTENT[file]]
BENCHES = [file for file in FILES if "compare" in CONTENT[file]]
CONFIGURATIONS = [file for file in FILES if file not in RECIPES + BENCHES]

#: Numbers that a configuration is trained with, wherever they stand; what decides a shape stays as it is.
SMALL = {"max_steps": 2, "val_check_interval": 2, "batch_size": 2, "held_out": 2, "count": 8, "warmup_steps": 1}

#: What a header says about how good the outcome is.
MEASURED = re.compile(r"\d\s*dB\b|\b(PSNR|r?FID|SceneEval|accuracy|retrieval)\b\D{0,20}\d")


def name(file: Path) -> str:
    return file.relative_to(ROOT / "configs").as_posix()


def header(file: Path) -> list[str]:
    """The comment lines at the top."""
    lines = file.read_text().splitlines()
    return lines[: next(at for at, line in enumerate(lines) if not line.startswith("#"))]


def compared(file: Path) -> str:
    """What ``smalti bench`` compares with a file, as its header says."""
    return shlex.split(header(file)[0].removeprefix("#"))[2]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside ``value``, itself included."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(item)


def made_small(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with few steps, and results in ``folder``."""
    for node in nodes(config):
        node.update({key: min(value, node[key]) for key, value in SMALL.items() if isinstance(node.get(key), int)})
        if "save_to" in node:
            node["save_to"] = str(folder / "saved")
    config["trainer"] |= {"default_root_dir": str(folder / "run"), "accelerator": "cpu", "log_every_n_steps": 1}
    return config


def test_there_are_configurations_of_all_kinds():
    assert RECIPES
    assert BENCHES
    assert CONFIGURATIONS


@pytest.mark.parametrize("file", FILES, ids=name)
def test_the_header_says_how_to_run_it_and_how_good_it_is(file):
    lines = header(file)
    assert lines, "a configuration starts with its command"
    command = shlex.split(lines[0].removeprefix("#"))
    assert command[0] == "smalti"
    assert command[1] in COMMANDS
    assert file.relative_to(ROOT).as_posix() in command
    assert (command[1] == "run") == (file in RECIPES)
    assert (command[1] == "bench") == (file in BENCHES)
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    assert "not yet trained" in text or MEASURED.search(text), "a header has a measured result or 'not yet trained'"


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=name)
def test_a_configuration_trains(file, tiny, tmp_path):
    config = made_small(tiny(file, yaml.safe_load(file.read_text())), tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", str(tmp_path / "config.yaml")]) == 0
    rows = next((tmp_path / "run").glob("logs/*/metrics.csv")).read_text().splitlines()
    assert len(rows) > 1
    if config["model"]["class_path"] == "TokenizerTraining":
        assert VisualTokenizer.from_pretrained(tmp_path / "saved").spec.codebooks


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=name)
def test_a_configuration_is_understood_as_it_stands(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", str(file), "--print_config"])
    assert end.value.code in (0, None)
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith(CONTENT[file]["model"]["class_path"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_the_arguments_of_a_recipe_are_accepted_as_they_stand(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(file), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CONTENT[file]["stages"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_runs_from_end_to_end(file, shrunk, tmp_path):
    recipe = shrunk(file)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--folder", str(tmp_path / "run")]) == 0
    assert list(timings(tmp_path / "run")) == list(recipe["stages"])
    for stage, entry in recipe["stages"].items():
        for published in entry.get("publish", []):
            assert (tmp_path / "run" / published).stat().st_size > 0
        if entry["run"] == "score":
            assert read_result(tmp_path / "run" / stage / "scores.json").scores["scene_eval"]["oracle"] == 1
            model = entry["with"]["model"].replace("${", f"{tmp_path}/run/").replace("}", "")
            assert load_pictures(model).sampling


@pytest.mark.parametrize("file", BENCHES, ids=name)
def test_the_arguments_of_a_comparison_are_accepted_as_they_stand(file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", compared(file), "-c", str(file), "--list"]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[: len(CONTENT[file]["before"])] == list(CONTENT[file]["before"])
    content = CONTENT[file]
    named = content.get("families") or [f"{name}-{seed}" for name in content["variants"] for seed in content["seeds"]]
    trained = [f"{name}-decoder" for name in named] if compared(file) == "decoders" else list(named)
    assert [line for line in lines if line in trained] == trained
    assert lines[-1] == "comparison"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", BENCHES, ids=name)
def test_a_comparison_runs_from_end_to_end(file, shrunk, monkeypatch, tmp_path):
    # In this process: seconds less for each family. tests/eval/test_comparison.py and tests/cli/test_bench.py measure
    # in another.
    monkeypatch.setattr(comparison, "measured", lambda folder, device: measure(folder, 2, 1, device))
    monkeypatch.setattr(bench, "sampling_speed", lambda folder, prompts, _: drawing(f"{folder}/lm", prompts, (2, 1), 1))
    monkeypatch.setattr(bench, "time_step_apart", lambda configuration, steps: bench.time_step(configuration, 2))
    monkeypatch.setattr(suite, "prompts", lambda world, seed=0: prompts(world, seed)[::4])  # of every task some
    config, what = shrunk(file), compared(file)
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    folder = tmp_path / "run"
    assert main(["bench", what, "-c", str(tmp_path / "bench.yaml"), "--folder", str(folder)]) == 0
    scores = read_result(folder / f"{what}.json").scores
    assert [name for name in scores if name != REFERENCES] == list(config.get("families") or config["variants"])
    for kind in ("html", "png", "md"):
        assert (folder / f"{what}.{kind}").stat().st_size > 0
