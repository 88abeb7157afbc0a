"""A configuration names classes of known packages; a module of another one is not even imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from smalti.cli.class_paths import PACKAGES, VARIABLE, allowed, allowing, take_packages
from smalti.cli.errors import UsageError
from smalti.cli.fit import check_configuration
from smalti.cli.main import main

STRANGE = """
from pathlib import Path
from torch import nn
from smalti.data.scenes import Scenes
Path("imported").touch()

class Strange(Scenes):
    "Scenes, told elsewhere."

def strange() -> Scenes:
    return Scenes()
"""
REFUSED = "may name classes of smalti, torch, lightning, transformers and diffusers, got '{}'; where you trust its code"
PART = {"dim": 8, "width": 8, "multipliers": [1, 1], "blocks": 1}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The current folder, with a module on the path of Python that leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "strange_module.py").write_text(STRANGE)
    yield tmp_path
    sys.modules.pop("strange_module", None)


def source(kind: str, **arguments) -> dict:
    return {"class_path": kind, "init_args": arguments}


def configuration(**changed) -> dict:
    parts = {
        "image_size": 16,
        "encoder": source("ConvEncoder", **PART),
        "quantizer": source("VectorQuantizer", dim=4, codebook_size=16),
        "decoder": source("ConvDecoder", **PART),
    }
    data = source("ImageData", train=source("Scenes", count=4), size=16, batch_size=2)
    tokenizer = source("VQTokenizer", **parts)
    model = source("TokenizerTraining", tokenizer=tokenizer, pixel_loss=source("PixelLoss", l1=1.0))
    return {"trainer": {"default_root_dir": "run", "max_steps": 1}, "model": model, "data": data} | changed


def unlike(*path: str, value) -> dict:
    """The configuration with another value at a path of keys."""
    made = configuration()
    *most, last = path
    inner = made
    for key in most:
        inner = inner[key]
    inner[last] = value
    return made


MODEL, SOURCE = ("model", "init_args"), ("data", "init_args", "train")
SYSTEM = source("os.system", command="touch imported")
CONFIGURATIONS = {
    "a class": (unlike(*SOURCE, value=source("strange_module.Strange")), "strange_module.Strange"),
    "a function": (unlike(*SOURCE, value=source("strange_module.strange")), "strange_module.strange"),
    "a bare name": (unlike(*SOURCE, value="strange_module.Strange"), "strange_module.Strange"),
    "the model": (configuration(model=source("strange_module.Strange")), "strange_module.Strange"),
    "a callback": (
        unlike("trainer", "callbacks", value=[source("strange_module.Strange")]),
        "strange_module.Strange",
    ),
    "a logger": (unlike("trainer", "logger", value=source("strange_module.Strange")), "strange_module.Strange"),
    "a name that begins alike": (unlike(*SOURCE, value=source("smaltish.Scenes")), "smaltish.Scenes"),
    "a command": (unlike(*SOURCE, value=SYSTEM), "os.system"),
    "a command found by way of torch": (unlike(*SOURCE, value=source("torch.os.system", command="x")), "posix.system"),
    "a command found by way of smalti": (unlike(*SOURCE, value=source("smalti.data.files.os.system")), "posix.system"),
    "a process": (unlike(*MODEL, "tokenizer", value=source("subprocess.Popen", args="x")), "subprocess.Popen"),
    "a pickle": (unlike(*MODEL, "pixel_loss", value=source("pickle.loads", data="x")), "pickle.loads"),
    "an expression": (unlike(*MODEL, "pixel_loss", value=source("builtins.eval", source="1")), "builtins.eval"),
    "a command in values without a type": (
        configuration(model=source("LanguageModelTraining", tokenizer="t", vocabulary=None, backbone={"a": SYSTEM})),
        "os.system",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_names_of_other_packages_are_refused_before_they_are_imported(name, workplace, fails):
    refused, came = CONFIGURATIONS[name]
    (workplace / "config.yaml").write_text(yaml.safe_dump(refused))
    assert REFUSED.format(came) in fails("fit", "-c", "config.yaml")
    assert not (workplace / "imported").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model.class_path", "strange_module.Strange"),
        ("--model=strange_module.Strange",),
        ("--model", '{"class_path": "strange_module.Strange"}'),
        ("--data.train", "strange_module.Strange"),
        ("--trainer.callbacks+=strange_module.Strange",),
        ("--model.help", "strange_module.Strange"),
    ],
)
def test_names_on_the_command_line_are_refused_alike(arguments, workplace, fails):
    (workplace / "config.yaml").write_text(yaml.safe_dump(configuration()))
    assert REFUSED.format("strange_module.Strange") in fails("fit", "-c", "config.yaml", *arguments)
    assert not (workplace / "imported").exists()


def test_a_short_name_is_refused_where_its_class_is_of_another_package(workplace, fails):
    kept = import_module("strange_module")
    (workplace / "config.yaml").write_text(yaml.safe_dump(unlike(*SOURCE, value=source(kept.Strange.__name__))))
    assert REFUSED.format("strange_module.Strange") in fails("fit", "-c", "config.yaml")


def test_what_no_type_asks_for_stays_plain_data(workplace):
    kept = source("Scenes", count=4) | {"dict_kwargs": {"extra": source("strange_module.Strange")}}
    check_configuration("fit", unlike("data", "init_args", "train", value=kept))
    assert not (workplace / "imported").exists()


@pytest.mark.parametrize("stage", [{"run": "vocabulary"}, {"run": "encode", "tokenizer": "somewhere"}])
def test_recipes_are_limited_alike(stage, workplace, fails):
    arguments = {name: value for name, value in stage.items() if name != "run"}
    named = "train" if stage["run"] == "encode" else "source"
    stages = {"one": {"run": stage["run"], "with": arguments | {named: source("strange_module.Strange")}}}
    (workplace / "recipe.yaml").write_text(yaml.safe_dump({"folder": "run", "stages": stages}))
    assert REFUSED.format("strange_module.Strange") in fails("run", "recipe.yaml")
    assert not (workplace / "imported").exists()
    assert not (workplace / "run").exists()


@pytest.mark.parametrize("given", ["option", "equals", "environment"])
def test_a_package_may_be_allowed_for_one_command(given, workplace, fails, monkeypatch, capsys):
    stages = {"one": {"run": "vocabulary", "with": {"source": source("strange_module.Strange", count=4)}}}
    (workplace / "recipe.yaml").write_text(yaml.safe_dump({"folder": "run", "stages": stages}))
    command = ["run", "recipe.yaml", "--list"]
    if given == "environment":
        monkeypatch.setenv(VARIABLE, "elsewhere, strange_module")
    command += {"option": ["--allow-classes", "strange_module"], "equals": ["--allow-classes=strange_module"]}.get(
        given, []
    )
    assert main(command) == 0
    assert "one  new, runs" in capsys.readouterr().out
    assert (workplace / "imported").exists()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert REFUSED.format("strange_module.Strange") in fails("run", "recipe.yaml", "--list")


def test_processes_that_a_command_starts_are_told(monkeypatch):
    monkeypatch.setenv(VARIABLE, "first")
    with allowing(["second"]):
        assert os.environ[VARIABLE] == "first,second"
        assert allowed() == [*PACKAGES, "first", "second"]
    assert os.environ[VARIABLE] == "first"
    monkeypatch.delenv(VARIABLE)
    with allowing([]):
        assert allowed() == list(PACKAGES)
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("name", ["", "a/b", "*", "jsonargparse", "jsonargparse.typing", "my package"])
def test_only_names_of_packages_can_be_allowed(name):
    with pytest.raises(UsageError, match="--allow-classes must be the name of a package, got"):
        take_packages(["fit", "--allow-classes", name])


def test_the_option_needs_a_package_and_the_environment_a_right_one(monkeypatch):
    with pytest.raises(UsageError, match="must be the name of a package, got ''"):
        take_packages(["fit", "--allow-classes"])
    monkeypatch.setenv(VARIABLE, "a/b")
    with pytest.raises(UsageError, match="SMALTI_ALLOW_CLASSES must be the name of a package, got 'a/b'"):
        allowed()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!strange"])
@pytest.mark.parametrize("command", ["fit", "run", "bench"])
def test_tags_of_yaml_run_nothing(command, tag, workplace, fails):
    (workplace / "file.yaml").write_text(f"folder: run\nstages: {tag} ['touch imported']\n")
    how = {"fit": ("-c", "file.yaml"), "run": ("file.yaml",), "bench": ("lm", "-c", "file.yaml")}
    line = fails(command, *how[command])
    assert "file.yaml must be YAML, got could not determine a constructor for the tag" in line
    assert not (workplace / "imported").exists()
