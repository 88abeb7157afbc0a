"""SIGKILL at random points of every stage, then the same command again: the same files as if nothing had happened.

``SMALTI_KILLS=200 pytest -n0 --timeout 3600 --log-cli-level INFO tests/faults`` kills that often (20 by default);
``SMALTI_SEED`` draws other points.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smalti.training.recipe import MARK

KILLS, SEED = int(os.environ.get("SMALTI_KILLS", "20")), int(os.environ.get("SMALTI_SEED", "0"))
#: Kills of one run before it is left to end, at least and at most.
PATIENCE = (2, 6)

PART = {"dim": 8, "width": 8, "multipliers": [1, 1, 1], "blocks": 1}
SOURCE = {"class_path": "Scenes", "init_args": {"world": "small", "count": 48, "size": 16}}
FEW = {"world": "small", "split": "validation", "count": 6, "size": 16}
SPLITS = {"train": SOURCE, "validation": {"class_path": "Scenes", "init_args": FEW}}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
VOCABULARY = {
    "class_path": "smalti.lm.vocabulary.Vocabulary.from_pretrained",
    "init_args": {"folder": "${vocabulary}"},
}
TRAINER = {
    "max_steps": 8,
    "accelerator": "cpu",
    "log_every_n_steps": 1,
    "val_check_interval": 4,
    "callbacks": [{"class_path": "GracefulInterrupt", "init_args": {"every": 2}}],
}
TOKENIZER = {
    "class_path": "TokenizerTraining",
    "init_args": {
        "tokenizer": {
            "class_path": "VQTokenizer",
            "init_args": {
                "image_size": 16,
                "encoder": {"class_path": "ConvEncoder", "init_args": PART},
                "quantizer": {"class_path": "VectorQuantizer", "init_args": {"dim": 4, "codebook_size": 16}},
                "decoder": {"class_path": "ConvDecoder", "init_args": PART},
            },
        },
        "pixel_loss": {"class_path": "PixelLoss", "init_args": {"l1": 1.0}},
        "save_to": "${tokenizer}/model",
    },
}
MODEL = {
    "class_path": "LanguageModelTraining",
    "init_args": {
        "tokenizer": "${tokenizer}/model",
        "vocabulary": VOCABULARY,
        "backbone": LLAMA | {"num_attention_heads": 2},
        "caption_dropout": 0.1,
        "save_to": "${lm}/model",
    },
}
STORES = {"train": "${codes}/train", "validation": "${codes}/validation"}
CODES = {"class_path": "TokenData", "init_args": {**STORES, "batch_size": 4}}
HELD = {"train": SOURCE, "size": 16, "batch_size": 4, "flip": True, "held_out": 6}
PICTURES = {"class_path": "ImageData", "init_args": HELD}
RECIPE = {
    "folder": "run",
    "stages": {
        "vocabulary": {"run": "vocabulary", "with": {"source": SOURCE}},
        "tokenizer": {"run": "fit", "with": {"trainer": TRAINER, "model": TOKENIZER, "data": PICTURES}},
        "codes": {"run": "encode", "with": {"tokenizer": "${tokenizer}/model", **SPLITS}},
        "lm": {"run": "fit", "with": {"trainer": TRAINER, "model": MODEL, "data": CODES}},
    },
}


@dataclass
class Server:
    """The process that runs commands, and kills them."""

    process: subprocess.Popen[str]

    def run(self, argv: list[str], cwd: Path, after: float | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd), "after": after}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    script = Path(__file__).parent / "server.py"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], cwd=Path(__file__).parent, **pipes) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Command:
    """What is killed, and what it leaves when it is not."""

    argv: list[str]
    seconds: float
    left: dict[str, Any]


@pytest.fixture(scope="module")
def commands(server, tmp_path_factory) -> dict[str, Command]:
    """Every command, run once undisturbed."""
    made = tmp_path_factory.mktemp("made")
    (made / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (made / "prompts.txt").write_text("a red circle\na blue square\na green triangle\n")
    tokenizer, model = made / "recipe" / "run" / "tokenizer" / "model", made / "recipe" / "run" / "lm" / "model"
    source = ["scenes:small:train", "--limit", "40", "--tokenizer", str(tokenizer), "--out", "store"]
    wanted = {
        "recipe": ["run", str(made / "recipe.yaml")],
        "tokenize": ["tokenize", *source, "--shard-size", "5", "--batch", "2", "--crop", "random", "--crops", "2"],
        "workers": ["tokenize", *source, "--shard-size", "10", "--batch", "5", "--workers", "1"],
        "sample": ["sample", "--prompts", str(made / "prompts.txt"), "--count", "3", "--model", str(model)],
        "reconstruction": ["eval", "reconstruction", "scenes:small", "--limit", "48", "--tokenizer", str(tokenizer)],
    }
    wanted["sample"] += ["--out", "drawn/"]
    wanted["reconstruction"] += ["--out", "scores.json", "--sheet", "sheet.png"]
    found = dict[str, Command]()
    for name, argv in wanted.items():
        done = server.run(argv, made / name)
        assert done["code"] == 0, (name, (made / name / "log.txt").read_text())
        found[name] = Command(argv, done["seconds"], left(made / name))
    return found


def left(folder: Path) -> dict[str, Any]:
    """Everything that a command left, but for times of day and how long it took."""
    found = dict[str, Any]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name == "log.txt" or "/logs/" in name:
            continue
        found[name] = content(path)
    for logs in sorted(folder.rglob("logs")):
        found[str(logs.relative_to(folder))] = logged(logs)
    return found


def content(path: Path) -> Any:
    if path.suffix == ".ckpt":
        saved = torch.load(path, weights_only=True)
        kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "guard")
        return {name: flat(saved.get(name)) for name in kept}
    if path.name == MARK:
        return json.loads(path.read_text())["finished"]  # the rest is made of times of day
    if path.suffix == ".json":
        return untimed(json.loads(path.read_text()))
    return path.read_bytes()


def flat(value: Any) -> Any:
    """Tensors as plain numbers, so that they can be compared."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {str(name): flat(item) for name, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


def untimed(value: Any) -> Any:
    told = ("seconds", "started", "images_per_second", "per_second", "date", "created", "time")
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if not any(word in name for word in told)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def logged(logs: Path) -> dict[tuple[str, str], set[str]]:
    """Every value of every step that any attempt logged: each must have one."""
    found = dict[tuple[str, str], set[str]]()
    for table in sorted(logs.glob("version_*/metrics.csv")):
        for row in csv.DictReader(table.open()):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and not name.startswith("data/waiting"):
                    found.setdefault((row["step"], name), set()).add(value)
    return found


def until_done(server: Server, command: Command, folder: Path, draw: random.Random, kills: int) -> int:
    """Run a command again and again, killing it, until it ends; how often it was killed."""
    killed, most = 0, min(kills, draw.randint(*PATIENCE))
    while True:
        after = draw.uniform(0, command.seconds) if killed < most else None
        done = server.run(command.argv, folder, after)
        if done["code"] is not None:
            assert done["code"] == 0, (folder / "log.txt").read_text()
            return killed
        killed += 1


def test_killed_at_any_point_and_run_again_everything_is_as_if_undisturbed(server, commands, tmp_path):
    draw, killed, at = random.Random(SEED), dict.fromkeys(commands, 0), 0
    while sum(killed.values()) < KILLS:
        name = list(commands)[at % len(commands)]
        folder = tmp_path / f"{at}-{name}"
        killed[name] += until_done(server, commands[name], folder, draw, KILLS - sum(killed.values()))
        found = left(folder)
        assert sorted(found) == sorted(commands[name].left), (name, at)
        for file, expected in commands[name].left.items():
            assert found[file] == expected, (name, at, file)
        shutil.rmtree(folder)
        at += 1
    logging.getLogger(__name__).info("%d kills in %d runs: %s", sum(killed.values()), at, killed)
