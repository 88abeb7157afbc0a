"""``smalti eval``: its table of kinds, and ``scenes`` from a model or tokenizer to a result file."""

import pytest
import torch
from PIL import Image

from smalti.cli import eval_scenes
from smalti.cli.main import main
from smalti.data.scene_prompts import prompts
from smalti.data.scene_world import World
from smalti.eval import ceilings, picture_scores
from smalti.eval.protocol import read_result
from smalti.generation.enat import ENATPipeline
from smalti.lm.enat import ENAT
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

WORLD = World.named("small")


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    """A model of the small world that nobody trained."""
    folder = tmp_path_factory.mktemp("drawer") / "model"
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    codes = VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 16), ConvDecoder(**parts), WORLD.size).eval()
    vocabulary = Vocabulary.train(entry["prompt"] for entry in prompts(WORLD))
    sizes = {"width": 8, "heads": 1, "encoder_blocks": 1, "decoder_blocks": 1, "sampling": {"steps": 2}}
    ENATPipeline(codes, ENAT.build(codes.spec, codes.fingerprint(), vocabulary, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Some prompts of every task."""
    for module in (picture_scores, ceilings):
        monkeypatch.setattr(module, "prompts", lambda world, seed=0: prompts(world, seed)[::5])


def test_a_model_stands_beside_every_baseline(drawer, tmp_path, capsys):
    out = tmp_path / "s.json"
    command = ["eval", "scenes", "--model", str(drawer), "--world", "small", "--per-prompt", "1", "--out", str(out)]
    assert main([*command, "--training", "50"]) == 0
    said = capsys.readouterr().out
    assert "copies of 50 training pictures: 0" in said
    assert read_result(out).scores["memory"]["training_pictures"] == 50
    assert said.startswith("SceneEval (GenEval rules), 19 pictures")
    for name in ("this model", "oracle      1.000", "ceiling", "chance", "near-miss   0.000", "untrained", "strict"):
        assert name in said
    result = read_result(out)
    assert result.protocol.count == result.scores["scene_eval"]["images"] == 19
    with Image.open(tmp_path / "s.samples.png") as sheet:
        assert sheet.width > 4 * WORLD.size


def test_a_tokenizer_has_a_ceiling(drawer, tmp_path, capsys):
    out = tmp_path / "c.json"
    command = ["eval", "scenes", "--tokenizer", str(drawer), "--world", "small", "--per-prompt", "1", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("VQTokenizer on 19 renders of the small world")
    scores = read_result(out).scores
    assert f"ceiling  {scores['ceiling']:.3f}" in said
    assert f"PSNR     {scores['psnr']:.2f} dB" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["scenes", "--preset", "scenes-v1", "--world", "small"],
            "the preset scenes-v1 needs count to be 1328, got 76",
        ),
        (["scenes", "--preset", "scenes"], "'scenes' is no preset; did you mean scenes-v1"),
        (["scenes", "--world", "full"], "every word must be in the vocabulary of 24 pieces"),
        (["scenes", "--out", "x.txt"], "--out must end in .json, got 'x.txt'"),
        (["scene"], "smalti eval cannot score 'scene'; did you mean scenes?"),
        (["xyz"], "smalti eval cannot score 'xyz'; known are reconstruction, generation"),
    ],
)
def test_bad_input_is_one_line(drawer, arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_scenes, "model_folder", lambda given: drawer)
    with pytest.raises(SystemExit) as stop:
        main(["eval", *arguments])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert sentence in said
    assert not list(tmp_path.iterdir())


def test_a_preset_of_models_is_not_for_tokenizers(drawer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "scenes", "--tokenizer", str(drawer), "--preset", "scenes-v1"])
    assert "--preset scenes-v1 is of models that draw, got a tokenizer" in capsys.readouterr().err


def test_help_lists_every_kind(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for kind in ("reconstruction", "generation", "scenes", "geneval", "understanding", "tokens", "statistics"):
        assert f"  {kind}" in said
