"""Commands that share their work: what one process writes, two write bit for bit; one speaks, and fails for both."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from smalti.cli.main import main
from smalti.cli.models import choose_device
from smalti.data.processes import joined
from smalti.data.scene_prompts import prompts
from smalti.data.scene_world import World
from smalti.data.scenes import Scenes
from smalti.eval import ceilings, picture_scores, suite
from smalti.eval.suite import SuiteSettings, score_scenes
from smalti.eval.understanding.scenes import export_scenes
from smalti.generation.enat import ENATPipeline
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.enat import ENAT
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer
from smalti.training.encode import texts_of

WORLD = World.named("small")
BACKBONE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def twice(folder, *arguments, before=lambda rank: None, run=main):
    """Run a command by two processes: the exit code of each, and what each said on both streams."""
    port, children = str(free_port()), []
    for rank in range(2):
        child = os.fork()
        if not child:
            code = 70
            try:
                os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                before(rank)
                with (
                    (folder / f"{rank}.out").open("w") as out,
                    (folder / f"{rank}.err").open("w") as err,
                    redirect_stdout(out),
                    redirect_stderr(err),
                ):
                    code = run([str(argument) for argument in arguments])
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, *([(folder / f"{rank}.{stream}").read_text() for rank in range(2)] for stream in ("out", "err"))


@pytest.fixture
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture
def alike(logs, tmp_path, capsys):
    """Run a command by one process and by two into folders of their own; both must say and write the same."""

    def run(*arguments, options=("--out", "result.json")):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        os.chdir(tmp_path / "one")
        assert main([str(argument) for argument in (*arguments, *options)]) == 0
        said = capsys.readouterr().out
        os.chdir(tmp_path / "two")
        codes, out, err = twice(logs, *arguments, *options)
        assert codes == [0, 0], err
        assert out == [said, ""]
        assert err[1] == ""
        return tmp_path / "one", tmp_path / "two"

    back = os.getcwd()  # noqa: PTH109
    yield run
    os.chdir(back)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer of the small world with a model that draws and one that also answers; a vision model."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    codes = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 16), ConvDecoder(**parts), WORLD.size).eval()
    texts = [*(entry["prompt"] for entry in prompts(WORLD)), *texts_of(Scenes("small", "validation", 20))]
    vocabulary = Vocabulary.train(texts)
    sizes = {"width": 8, "heads": 1, "encoder_blocks": 1, "decoder_blocks": 1, "sampling": {"steps": 2}}
    ENATPipeline(codes, ENAT.build(codes.spec, codes.fingerprint(), vocabulary, **sizes)).save_pretrained(
        folder / "enat"
    )
    lm = SharedLM.build(
        BACKBONE | {"num_attention_heads": 2, "num_key_value_heads": 2}, vocabulary, codes.spec, codes.fingerprint()
    )
    TextToImagePipeline(codes, lm).save_pretrained(folder / "lm")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder / "vit")
    return folder


@pytest.fixture
def few(monkeypatch):
    """Some prompts of every task."""
    for module in (picture_scores, ceilings):
        monkeypatch.setattr(module, "prompts", lambda world, seed=0: prompts(world, seed)[::5])


@pytest.mark.usefixtures("few")
def test_scene_eval_is_the_same(models, alike, monkeypatch):
    drawn, real = [], suite.draw_prompts

    def draw(*arguments):
        drawn.append(real(*arguments))
        np.save(f"drawn-{len(drawn)}", drawn[-1])
        return drawn[-1]

    monkeypatch.setattr(picture_scores, "draw_prompts", draw)
    monkeypatch.setattr(picture_scores.time, "perf_counter", lambda: float(len(drawn)))
    command = ("eval", "scenes", "--model", models / "enat", "--world", "small", "--per-prompt", 2, "--batch", 7)
    one, two = (files(folder) for folder in alike(*command, "--training", 20))
    assert set(one) == {"result.json", "result.samples.png", "drawn-1.npy", "drawn-2.npy"}
    scores = [json.loads(each.pop("result.json")) for each in (one, two)]
    for each in scores:
        assert each.pop("images_per_second") == 38
    assert scores[0] == scores[1]
    two = {name.replace("drawn-3", "drawn-1").replace("drawn-4", "drawn-2"): data for name, data in two.items()}
    assert one == two  # the pictures of the model and of the untrained one, and the sheet


def test_everything_about_a_model_is_the_same(models, logs, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "prompts", lambda world, seed=0: prompts(world, seed)[::24])
    settings = SuiteSettings("small", pictures=5, per_prompt=1, training_pictures=20, batch_size=2)
    pipeline = TextToImagePipeline.from_pretrained(models / "lm")

    def run(_arguments=()):
        with joined() as processes:
            found = score_scenes(pipeline, tmp_path / str(processes.world), settings, processes=processes)
        found.save(tmp_path / f"{processes.world}-{processes.rank}")  # each knows everything
        return 0

    run()
    assert twice(logs, run=run)[0] == [0, 0]
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert set(files(tmp_path / "1")) == {"scores.json", "evidence.json", "evidence.safetensors"}
    assert files(tmp_path / "1-0") == files(tmp_path / "2-0") == files(tmp_path / "2-1")


@pytest.mark.usefixtures("few")
def test_a_ceiling_is_the_same(models, alike):
    command = ("eval", "scenes", "--tokenizer", models / "enat", "--world", "small", "--per-prompt", 1, "--batch", 8)
    one, two = (files(folder) for folder in alike(*command))
    assert one == two


def test_reconstruction_is_the_same(models, alike):
    networks = [part for name in ("extractor", "teacher", "perceptual") for part in (f"--{name}", models / "vit")]
    places = ("--sheet", "sheet.png", "--export-folder", "rebuilt", "--export-originals", "originals.npz")
    flags = ("--kid", "--compatibility", "--limit", 23, "--batch", 4, "--tokenizer", models / "enat", *networks)
    one, two = (files(folder) for folder in alike("eval", "reconstruction", "scenes:small", *flags, *places))
    assert {"rfid", "kid", "agreement", "perceptual", "psnr_pooled"} <= set(json.loads(one["result.json"]))
    assert len(one) == 26
    assert one == two


def test_generation_and_statistics_are_the_same(models, alike, tmp_path):
    for name, seed in (("drawn", 0), ("true", 1)):
        (tmp_path / name).mkdir()
        for index in range(9):
            noise = np.random.default_rng([seed, index]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{index}.png")
    flags = (
        "--reference",
        tmp_path / "true",
        "--extractor",
        models / "vit",
        "--kid",
        "--precision-recall",
        "--batch",
        2,
    )
    one, two = (files(folder) for folder in alike("eval", "generation", tmp_path / "drawn", *flags))
    assert one == two
    for name in ("one", "two"):
        (tmp_path / name / "result.json").unlink()
        (tmp_path / name).rmdir()
    command = ("eval", "statistics", tmp_path / "true", "--split", "test", "--extractor", models / "vit", "--batch", 4)
    one, two = (files(folder) for folder in alike(*command, options=("--out", "s.safetensors")))
    assert one == two


def test_answers_and_codes_are_the_same(models, alike, tmp_path):
    export_scenes(tmp_path / "scenes", "small", 9, 0, "validation")
    questions = sorted((tmp_path / "scenes").glob("*pope*"))
    images = next(path for path in (tmp_path / "scenes").iterdir() if path.is_dir())
    flags = ("--images", images, "--model", models / "lm", "--batch", 4, "--save-answers", "answers.jsonl")
    one, two = (files(folder) for folder in alike("eval", "understanding", "pope", *questions, *flags))
    assert one == two
    assert len(one["answers.jsonl"].splitlines()) > 9
    for name in ("one", "two"):
        for path in (tmp_path / name).iterdir():
            path.unlink()
        (tmp_path / name).rmdir()
    command = ("eval", "tokens", "scenes:small", "--limit", 21, "--batch", 4, "--tokenizer", models / "enat")
    one, two = (files(folder) for folder in alike(*command, "--grammar", 2000))
    assert one == two


@pytest.mark.parametrize("out", ["out/", "sheet.png"])
def test_samples_are_the_same(model, alike, out):
    command = ("sample", "a red circle", "a blue square", "--count", 3, "--model", model, "--batch", 2)
    one, two = (files(folder) for folder in alike(*command, options=("--out", out)))
    assert len(one) == (6 if out == "out/" else 1)
    assert one == two


def test_killed_samplers_go_on(model, alike, logs, tmp_path, monkeypatch):
    """Rank 1 is killed at its second picture: the other says so, and what both drew is not drawn again."""
    command = ("sample", "a red circle", "a blue square", "--count", 3, "--model", model)
    real, placed = os.replace, []

    def replace(source, target):
        if len(placed) == 1 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        placed.append(target)
        real(source, target)

    out = tmp_path / "two" / "out"
    codes, said, err = twice(
        logs, *command, "--out", f"{out}/", before=lambda rank: monkeypatch.setattr(os, "replace", replace)
    )
    assert codes == [2, -signal.SIGKILL]
    assert said == ["", ""]
    assert err[0].startswith("error: all 2 processes must go on to the end, got one that was lost")
    assert err[0].count("\n") == 1
    (left,) = [path for path in out.parent.iterdir() if path.is_dir()]
    assert 2 <= len(list(left.iterdir())) <= 4
    monkeypatch.undo()
    for path in out.parent.iterdir():
        path.rename(tmp_path / path.name)
    out.parent.rmdir()
    drawn = {path.name for path in (tmp_path / left.name).iterdir()}
    (tmp_path / "kept").mkdir()
    (tmp_path / left.name).rename(tmp_path / "kept" / left.name)
    codes, said, err = twice(logs, *command, "--out", f"{tmp_path / 'kept' / 'out'}/")
    assert codes == [0, 0]
    one, _ = alike(*command, options=("--out", "out/"))
    assert files(tmp_path / "kept" / "out") == files(one / "out")
    assert drawn < set(files(one / "out"))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_is_one_line(model, logs, tmp_path, rank):
    def refuse(mine):
        if mine == rank:

            def save(self, path, **options):
                raise PermissionError(13, "Permission denied", "there")

            Image.Image.save = save

    command = ("sample", "a red circle", "--count", 4, "--model", model, "--out", f"{tmp_path}/out/")
    codes, out, err = twice(logs, *command, before=refuse)
    assert codes == [2, 2]
    assert out == ["", ""]
    assert err[rank].startswith("error: Permission denied: there")
    assert err[rank].count("\n") == 1
    assert err[1 - rank] == ""


def test_wrong_requests_are_one_line(model, logs, tmp_path):
    for arguments, line in (
        (("sample", "--model", model), "error: at least one prompt is needed"),
        (
            ("eval", "presets"),
            "error: smalti eval presets is the work of one process, got WORLD_SIZE 2; start it without",
        ),
        (("compare", "a.json"), "error: smalti compare is the work of one process"),
    ):
        codes, out, err = twice(logs, *arguments)
        assert codes == [2, 2]
        assert out == ["", ""]
        assert err[0].startswith(line)
        assert (err[0].count("\n"), err[1]) == (1, "")
    codes, out, err = twice(logs, "sample", "--help")
    assert codes == [0, 0]
    assert (out[0].startswith("usage: smalti sample"), out[1], err) == (True, "", ["", ""])


def test_prompts_of_geneval_are_written_by_one(logs, tmp_path):
    codes, out, _ = twice(logs, "eval", "geneval", "prompts", "--out", tmp_path / "geneval")
    assert codes == [0, 0]
    assert (out[0].startswith("wrote "), out[1]) == (True, "")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    for local, device in (("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert choose_device("auto") == device
    assert choose_device("cpu") == "cpu"
