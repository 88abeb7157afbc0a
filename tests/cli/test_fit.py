"""``smalti fit`` on a small configuration: what it writes, how it stops, and what it says of mistakes."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from PIL import Image
from transformers import SiglipConfig, SiglipModel

from smalti.cli.main import main
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.vision import VisionTower

PARTS = {"dim": 8, "width": 8, "multipliers": [1, 1], "blocks": 1}
QUANTIZER = {"class_path": "VectorQuantizer", "init_args": {"dim": 4, "codebook_size": 16}}


@pytest.fixture
def config(tmp_path) -> dict:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.effect_noise((16, 16), 20 + number).convert("RGB").save(pictures / f"{number}.png")
    tokenizer = {
        "image_size": 16,
        "encoder": {"class_path": "ConvEncoder", "init_args": copy.deepcopy(PARTS)},
        "quantizer": copy.deepcopy(QUANTIZER),
        "decoder": {"class_path": "ConvDecoder", "init_args": copy.deepcopy(PARTS)},
    }
    arguments = {
        "tokenizer": {"class_path": "VQTokenizer", "init_args": tokenizer},
        "pixel_loss": {"class_path": "PixelLoss", "init_args": {"l1": 1.0}},
        "optimizer": {"learning_rate": 0.001},
        "save_to": str(tmp_path / "tokenizer"),
    }
    source = {"class_path": "ImageFolder", "init_args": {"path": str(pictures)}}
    return {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "max_steps": 4, "accelerator": "cpu"},
        "model": {"class_path": "TokenizerTraining", "init_args": arguments},
        "data": {"class_path": "ImageData", "init_args": {"train": source, "size": 16, "batch_size": 2, "held_out": 2}},
    }


def write(tmp_path, config: dict) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def failing(tmp_path, capsys, config: dict, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", write(tmp_path, config), *arguments])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert not (tmp_path / "run").exists()
    return lines[-1]


def test_fit_writes_a_tokenizer_a_checkpoint_and_logs(tmp_path, config):
    for _ in range(2):  # a second run overwrites nothing but last.ckpt
        assert main(["fit", "-c", write(tmp_path, config)]) == 0
    run = tmp_path / "run"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    versions = [f"logs/version_{n}/{name}" for n in (0, 1) for name in ("config.yaml", "metrics.csv")]
    assert names == ["last.ckpt", *versions]
    saved = yaml.safe_load((run / "logs/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"]["betas"] == [0.9, 0.95]
    tokenizer = VisualTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.encode(torch.zeros(1, 3, 16, 16)).ids.shape == (1, 64, 1)
    assert main(["validate", "-c", write(tmp_path, config), "--ckpt_path", str(run / "last.ckpt")]) == 0


def test_print_config_resolves_short_names(tmp_path, config, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", write(tmp_path, config), "--print_config"])
    assert end.value.code in (0, None)
    found = yaml.safe_load(capsys.readouterr().out)
    arguments = found["model"]["init_args"]
    quantizer = arguments["tokenizer"]["init_args"]["quantizer"]
    assert quantizer["class_path"] == "smalti.tokenizers.quantizers.VectorQuantizer"
    assert quantizer["init_args"]["decay"] == 0.99
    assert arguments["adversarial"]["clamp"] == [0.3, 10.0]
    assert not (tmp_path / "run").exists()


def test_a_classmethod_builds_a_teacher(tmp_path, config):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = size | {"image_size": 16, "patch_size": 8}, size | {"vocab_size": 9}
    SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(tmp_path / "siglip")
    tower = {
        "class_path": "smalti.tokenizers.vision.VisionTower.from_checkpoint",
        "init_args": {"checkpoint": str(tmp_path / "siglip")},
    }
    decoder = {"dim": 8, "width": 8, "multipliers": [1, 1, 1, 1], "blocks": 1}
    dual = {
        "encoder": tower,
        "semantic": copy.deepcopy(QUANTIZER),
        "pixel": copy.deepcopy(QUANTIZER),
        "decoder": {"class_path": "ConvDecoder", "init_args": decoder},
        "semantic_layer": 1,
        "pixel_layer": 1,
    }
    config["model"]["init_args"]["tokenizer"] = {"class_path": "DualTokenizer", "init_args": dual}
    config["model"]["init_args"]["teacher"] = copy.deepcopy(tower)
    assert VisionTower.from_checkpoint(str(tmp_path / "siglip")).width == 16
    assert main(["fit", "-c", write(tmp_path, config)]) == 0
    with (next((tmp_path / "run").rglob("config.yaml"))).open() as file:
        assert "from_checkpoint" in file.read()
    saved = VisualTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert [book.name for book in saved.spec.codebooks] == ["semantic", "pixel"]


MODEL, TOKENIZER = "model.init_args", "model.init_args.tokenizer.init_args"
LOADED = "smalti.tokenizers.vision.VisionTower.from_checkpoint"
UNKNOWN = "needs a class of kind {}, got the unknown name {!r}; did you mean {}"
NO_OPTION = "({}) has no option {!r}; did you mean {}"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "model.class_path",
            "TokeniserTraining",
            "model " + UNKNOWN.format("LightningModule", "TokeniserTraining", "TokenizerTraining"),
        ),
        (
            f"{MODEL}.tokenizer.class_path",
            "VQTokenzer",
            "model.tokenizer " + UNKNOWN.format("VisualTokenizer", "VQTokenzer", "VQTokenizer"),
        ),
        (
            f"{TOKENIZER}.encoder.class_path",
            "ConvEncodr",
            "model.tokenizer.encoder " + UNKNOWN.format("Encoder", "ConvEncodr", "ConvEncoder"),
        ),
        (
            "data.init_args.train.class_path",
            "ImageFoldr",
            "data.train " + UNKNOWN.format("ImageSource", "ImageFoldr", "ImageFolder"),
        ),
        (
            f"{TOKENIZER}.encoder.init_args.widht",
            3,
            "model.tokenizer.encoder " + NO_OPTION.format("ConvEncoder", "widht", "width"),
        ),
        (f"{MODEL}.sav_to", "x", "model " + NO_OPTION.format("TokenizerTraining", "sav_to", "save_to")),
        (
            f"{MODEL}.optimizer.learningrate",
            1,
            "model.optimizer " + NO_OPTION.format("OptimizerSettings", "learningrate", "learning_rate"),
        ),
        (
            f"{MODEL}.discriminator",
            {"class_path": "PatchDiscriminator", "init_args": {"widt": 1}},
            "model.discriminator " + NO_OPTION.format("PatchDiscriminator", "widt", "width"),
        ),
        ("trainer.max_step", 3, "trainer " + NO_OPTION.format("Trainer", "max_step", "max_steps")),
        (f"{TOKENIZER}.image_size", "x", "model.tokenizer.image_size must be int, got 'x'; correct it"),
        (f"{MODEL}.optimizer.learning_rate", 0.0, "learning_rate must be above 0, got 0.0"),
        ("data.init_args.held_out", -1, "expected held_out >= 0, got -1"),
        (f"{MODEL}.teacher", {"class_path": LOADED}, "the following arguments are required: checkpoint"),
    ],
)
def test_mistakes_in_a_configuration_are_named(tmp_path, config, capsys, path, value, line):
    *keys, last = path.split(".")
    node = config
    for key in keys:
        node = node[key]
    node[last] = value
    found = failing(tmp_path, capsys, config)
    assert line in found
    assert "Union" not in found


def test_mistakes_on_the_command_line_are_named(tmp_path, config, capsys):
    found = failing(tmp_path, capsys, config, "--model.init_args.sav_to", "x")
    assert found.startswith("error: model (TokenizerTraining) has no option 'sav_to'; did you mean save_to")
    found = failing(tmp_path, capsys, config, "--trainr.max_steps", "3")
    assert "trainr has no option 'max_steps'" in found


def test_last_needs_a_checkpoint(tmp_path, config, capsys):
    found = failing(tmp_path, capsys, config, "--ckpt_path", "last")
    assert "--ckpt_path last continues from" in found
    assert "does not exist; leave it out" in found


def test_a_full_disk_ends_with_one_line_and_keeps_the_checkpoint(tmp_path, config, capsys, monkeypatch):
    assert main(["fit", "-c", write(tmp_path, config)]) == 0
    before = (tmp_path / "run" / "last.ckpt").read_bytes()

    def full(self, path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", write(tmp_path, config)])
    assert end.value.code == 2
    assert "last.ckpt needs more room than its disk has left" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("average", [[], [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}]])
def test_a_run_that_ended_before_its_result_was_saved_saves_it(tmp_path, config, average):
    config["trainer"]["callbacks"] = average
    assert main(["fit", "-c", write(tmp_path, config)]) == 0
    saved = tmp_path / "tokenizer" / "diffusion_pytorch_model.safetensors"
    expected = saved.read_bytes()
    shutil.rmtree(saved.parent)
    assert main(["fit", "-c", write(tmp_path, config), "--ckpt_path", "last"]) == 0
    assert saved.read_bytes() == expected


def test_ctrl_c_ends_with_130_and_last_continues(tmp_path, config):
    config["trainer"]["max_steps"] = 100_000
    config["trainer"]["callbacks"] = [{"class_path": "GracefulInterrupt", "init_args": {"every": 2}}]
    command = [sys.executable, "-m", "smalti.cli.main", "fit", "-c", write(tmp_path, config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        saved = tmp_path / "run" / "last.ckpt"
        deadline = time.monotonic() + 120
        while process.poll() is None and not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    line = errors.strip().splitlines()[-1]
    step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"]
    assert line == f"interrupted at step {step}; the same command with --ckpt_path last continues"
    arguments = ["--ckpt_path", "last", "--trainer.max_steps", str(step + 2)]
    assert main([*command[3:], *arguments]) == 0
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == step + 2


def test_the_first_process_alone_speaks_of_ctrl_c(tmp_path, config, capsys, monkeypatch):
    def fit(trainer, *_, **__):
        trainer.state.status = TrainerStatus.INTERRUPTED
        raise SystemExit(1)

    monkeypatch.setattr(Trainer, "fit", fit)
    for first, said in ((True, "interrupted at step 0\n"), (False, "")):
        monkeypatch.setattr(Trainer, "is_global_zero", first)
        with pytest.raises(SystemExit) as end:
            main(["fit", "-c", write(tmp_path, config)])
        assert end.value.code == 130
        lines = [line for line in capsys.readouterr().err.splitlines(keepends=True) if "interrupted" in line]
        assert "".join(lines) == said


def test_a_process_that_is_killed_ends_the_run_with_one_line(tmp_path, config):
    config["trainer"] |= {"max_steps": 100_000, "devices": 2}
    config["trainer"]["callbacks"] = [{"class_path": "GracefulInterrupt", "init_args": {"every": 1}}]
    config["data"]["init_args"] |= {"batch_size": 1, "held_out": 0}
    command = [sys.executable, "-m", "smalti.cli.main", "fit", "-c", write(tmp_path, config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(other), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"]
    line = f"another process of this run ended; the same command with --ckpt_path last continues from step {step}"
    assert errors.strip().splitlines()[-1] == f"error: {line}"


def test_a_lost_process_without_a_checkpoint_promises_nothing(tmp_path, config, capsys, monkeypatch):
    def fit(*_, **__):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(Trainer, "fit", fit)
    with pytest.raises(RuntimeError, match="Connection closed"):  # of one process: a defect
        main(["fit", "-c", write(tmp_path, config)])
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", write(tmp_path, config)])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("error: another process of this run ended\n")


def test_processes_of_further_devices_are_started_with_the_same_arguments(tmp_path, config, monkeypatch):
    """Lightning starts what ``sys.argv`` says, while it fits."""
    seen, arguments = [], ["fit", "-c", write(tmp_path, config), "--trainer.max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["smalti", *arguments])
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: seen.append(list(sys.argv)))
    main(arguments)
    assert seen == [["smalti", *arguments]]
    assert sys.argv == ["smalti", *arguments]


def test_sharded_weights_do_not_go_on_from_whole_ones(tmp_path, config, capsys):
    main(["fit", "-c", write(tmp_path, config), "--trainer.max_steps", "1"])
    strategy = {
        "class_path": "ModelParallelStrategy",
        "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 1},
    }
    config["trainer"] |= {"strategy": strategy, "devices": 1}
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit", "-c", write(tmp_path, config), "--ckpt_path", "last"])
    assert "of whole weights, which are one file; go on with another strategy" in capsys.readouterr().err
