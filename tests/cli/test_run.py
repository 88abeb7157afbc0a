"""``smalti run`` on the quickstart in small: what it leaves behind, skips, continues, and refuses before it starts."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from PIL import Image

from smalti.cli import run as command
from smalti.cli.main import main
from smalti.cli.progress import Bar
from smalti.eval import scene_report, suite
from smalti.eval.protocol import read_result
from smalti.generation.pipeline import TextToImagePipeline
from smalti.tokenizers.base import VisualTokenizer
from smalti.training.lm import LanguageModelTraining
from smalti.training.recipe import MARK
from smalti.training.teacher import TeacherTraining
from smalti.training.tokenizer import TokenizerTraining

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "quickstart.yaml"
STAGES = ["vocabulary", "teacher", "tokenizer", "codes", "lm", "scores", "report"]
PART = {"dim": 8, "width": 8, "multipliers": [1], "blocks": 1}
TINY = {
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
}
KEYS = [
    "reconstruction.psnr",
    "qa.accuracy",
    "qa.blind",
    *(f"scene_eval.{name}" for name in ("overall", "strict", "ceiling", "oracle", "chance")),
    "baselines.untrained.scene_eval.overall",
]


@pytest.fixture(scope="session")
def recipe(shrunk) -> dict:
    return shrunk(QUICKSTART)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, recipe) -> Path:
    """A folder with ``recipe.yaml`` and the uninterrupted ``run``."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert carry_out(folder, recipe) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture(autouse=True)
def ctrl_c():
    """Put back what a Ctrl-C does, which Lightning leaves ignored after one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def carry_out(folder: Path, recipe: dict, *arguments: str) -> int:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return main(["run", str(file), "--folder", str(folder / "run"), *arguments])


def states(folder: Path, recipe: dict, capsys) -> dict[str, str]:
    """What ``--list`` says about every stage."""
    capsys.readouterr()
    assert carry_out(folder, recipe, "--list") == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def marks(folder: Path) -> dict[str, str]:
    return {name: (folder / "run" / name / MARK).read_text() for name in STAGES}


def weights(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in (folder / "run").rglob("*.safetensors") if "model" in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_whole_chain_leaves_scores_pictures_and_a_report(finished, recipe):
    run = finished / "run"
    scores = read_result(run / "scores.json").scores
    for key in KEYS:
        value = scores
        for part in key.split("."):
            value = value[part]
        assert isinstance(value, float), key
    assert scores["scene_eval"]["oracle"] == 1
    assert scores["scene_eval"]["seen_tasks"].keys() | scores["scene_eval"]["unseen_tasks"].keys() == set(
        scores["scene_eval"]["tasks"]
    )
    record = json.loads((run / "scores.json").read_text())
    assert record["protocol"]["count"] == recipe["stages"]["scores"]["with"]["settings"]["pictures"]
    for name in ("samples.png", "reconstructions.png"):
        with Image.open(run / name) as sheet:
            assert min(sheet.size) > 100
    page = (run / "report.html").read_text()
    assert recipe["stages"]["report"]["with"]["title"] in page
    assert page.count('class="band"') == len(scores["scene_eval"]["tasks"])
    for name in STAGES[:-1]:
        assert name in page


def test_a_second_call_does_nothing(finished, recipe, capsys, monkeypatch):
    before = marks(finished)
    assert set(states(finished, recipe, capsys).values()) == {"finished, is skipped"}
    for name in command.ACTIONS:
        monkeypatch.setitem(command.ACTIONS, name, None)
    assert carry_out(finished, recipe) == 0
    lines = capsys.readouterr().err.splitlines()
    skipped = [f"[{at}/{len(STAGES)}] {name}: finished before, skipped" for at, name in enumerate(STAGES, 1)]
    assert lines == [*skipped, f"finished: {finished / 'run'}"]
    assert marks(finished) == before


def test_a_changed_stage_runs_anew_with_what_depends_on_it(copied, recipe, capsys):
    before, stages = marks(copied), recipe["stages"]
    codes = {"codes": {**stages["codes"], "with": {**stages["codes"]["with"], "validation": None}}}
    found = states(copied, {**recipe, "stages": stages | codes}, capsys)
    again = {name for name, state in found.items() if state == "changed, runs anew"}
    assert again == {"codes", "lm", "scores", "report"}
    titled = {"report": {**stages["report"], "with": {**stages["report"]["with"], "title": "another title"}}}
    assert carry_out(copied, {**recipe, "stages": stages | titled}) == 0
    assert {name for name, mark in marks(copied).items() if mark != before[name]} == {"report"}
    assert "another title" in (copied / "run" / "report.html").read_text()


class Once:
    """Press Ctrl-C the first time that a method gets to a point, then behave."""

    def __init__(self, owner: type, name: str, reached, press) -> None:
        self.pressed = False
        original = getattr(owner, name)

        def method(*arguments, **options):
            if not self.pressed and reached(*arguments):
                self.pressed = True
                press()
            return original(*arguments, **options)

        self.method = method


def now() -> None:
    raise KeyboardInterrupt


def from_the_terminal() -> None:
    signal.raise_signal(signal.SIGINT)


def always(*arguments) -> bool:
    return True


def at_step(module: type):
    """(owner, method, point, how): a signal in the second of three steps."""
    return module, "training_loss", lambda self, batch: self.global_step == 1, from_the_terminal


def at_bar(total: int):
    """The same halfway through a bar of ``total``."""
    return Bar, "update", lambda self, done, of: of == total and done >= total // 2, now


def interruptions(recipe: dict) -> list[tuple]:
    """A point in the middle of every stage, and one in the middle of saving each trained model."""
    stages = recipe["stages"]
    return [
        at_bar(stages["vocabulary"]["with"]["source"]["init_args"]["count"]),
        at_step(TeacherTraining),
        at_step(TokenizerTraining),
        (VisualTokenizer, "save_pretrained", always, now),
        at_bar(stages["codes"]["with"]["train"]["init_args"]["count"]),
        at_step(LanguageModelTraining),
        (TextToImagePipeline, "save_pretrained", always, now),
        (suite, "_untrained", always, now),
        (scene_report, "write_report", always, now),
    ]


def test_ctrl_c_anywhere_changes_nothing_in_the_end(finished, recipe, tmp_path, monkeypatch, capsys):
    for owner, name, reached, press in interruptions(recipe):
        once = Once(owner, name, reached, press)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, once.method)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with pytest.raises(SystemExit) as end:
                carry_out(tmp_path, recipe)
        assert once.pressed
        assert end.value.code == 130
        assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command continues"
        assert "interrupted, continues" in states(tmp_path, recipe, capsys).values()
    assert carry_out(tmp_path, recipe) == 0
    for name in ("scores.json", "samples.png", "reconstructions.png"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / "run" / name).read_bytes()
    assert weights(tmp_path) == weights(finished)
    assert len(weights(finished)) == 4  # teacher, tokenizer, and both in the pipeline


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("vocabulary.source.class_path", "Scens", "source needs a class of kind ImageSource, got the unknown name"),
        ("vocabulary.siz", 10, "vocabulary has no option 'siz'; did you mean size?"),
        ("lm.model.init_args.optimizer.learningrate", 1, "has no option 'learningrate'; did you mean learning_rate"),
        ("lm.data.class_path", "TokenDta", "data needs a class of kind LightningDataModule, got the unknown name"),
        ("lm.trainer", [1], "trainer must be a mapping of options, got list; correct it"),
        ("lm.trainer.max_step", 1, "trainer (Trainer) has no option 'max_step'; did you mean"),
        ("codes.train.init_args.split", "trian", "train.split must be one of 'train', 'validation', 'heldout', got"),
        ("scores.settings.picturs", 3, "settings (SuiteSettings) has no option 'picturs'; did you mean pictures?"),
        ("scores.settings.pictures", "many", "settings.pictures must be int, got 'many'; correct it"),
        ("scores.settings.sampling", {"top_p": 2.0}, "sampling needs temperature >= 0"),
        ("scores.modle", "x", "score has no option 'modle'; did you mean model?"),
        ("report.titel", "x", "report has no option 'titel'; did you mean title?"),
    ],
)
def test_all_arguments_are_checked_before_the_first_stage(recipe, tmp_path, fails, path, value, line):
    name, *keys, last = path.split(".")
    changed = yaml.safe_load(yaml.safe_dump(recipe, sort_keys=False))
    node = changed["stages"][name]["with"]
    for key in keys:
        node = node[key]
    node[last] = value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    found = fails("run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run", *(["--list"] if keys else []))
    assert found.startswith(f"error: stage {name!r}: ")
    assert line in found
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "a recipe file was expected at"),
        ("folder: [", "recipe.yaml must be YAML, got while parsing"),
        ("folder: runs/a", "must be a mapping with folder and stages alone, got keys folder; correct it"),
        ("folder: runs/a\nstages: {}", "must have at least one stage, got none; add one"),
        ("folder: runs/a\nstages: {a: {run: fti}}", "stage 'a' must run a known action, got 'fti'; did you mean 'fit'"),
    ],
)
def test_what_is_no_recipe_is_one_line(tmp_path, monkeypatch, fails, text, line):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    assert line in fails("run", "recipe.yaml")
    assert not (tmp_path / "runs").exists()


def test_list_before_the_first_run_writes_nothing(recipe, tmp_path, capsys):
    assert states(tmp_path, recipe, capsys) == dict.fromkeys(STAGES, "new, runs")
    assert not (tmp_path / "run").exists()


def test_a_stage_alone(recipe, tmp_path, fails, capsys):
    assert carry_out(tmp_path, recipe, "--only", "vocabulary") == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["vocabulary"]
    assert states(tmp_path, recipe, capsys)["vocabulary"] == "finished, is skipped"
    line = fails("run", str(tmp_path / "recipe.yaml"), "--folder", str(tmp_path / "run"), "--only", "encode")
    assert line.startswith("error: only stages of the recipe can run, got encode; there are vocabulary, ")


def test_a_full_disk_is_one_line_and_keeps_the_scores_that_were_there(copied, recipe, monkeypatch, capsys):
    before = (copied / "run" / "scores.json").read_bytes()
    write = Path.write_text

    def full(path, text, *arguments, **options):
        if "scores.json" in path.name:
            write(path, text[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, text, *arguments, **options)

    changed = json.loads(json.dumps(recipe))
    changed["stages"]["scores"]["with"]["settings"]["pictures"] = 4
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as end:
        carry_out(copied, changed)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "scores.json needs more room than its disk has left, so nothing was written; free some space" in line
    assert (copied / "run" / "scores.json").read_bytes() == before
    assert not (copied / "run" / "scores").exists()


def test_a_stage_that_is_refused_leaves_nothing(tmp_path, capsys):
    folder = {"class_path": "ImageFolder", "init_args": {"path": str(tmp_path / "nowhere")}}
    data = {"class_path": "ImageData", "init_args": {"train": folder, "size": 16}}
    model = {"class_path": "TokenizerTraining", "init_args": TINY}
    for stage in (
        {"run": "vocabulary", "with": {"source": folder}},
        {"run": "encode", "with": {"tokenizer": str(tmp_path / "none"), "train": {"class_path": "Scenes"}}},
        {"run": "fit", "with": {"model": model, "data": data}},
    ):
        with pytest.raises(SystemExit) as end:
            carry_out(tmp_path, {"folder": "unused", "stages": {"one": stage}})
        assert end.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(("error: expected a folder of pictures", "error: a tokenizer was expected in"))
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
