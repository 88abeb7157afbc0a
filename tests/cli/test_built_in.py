"""The model that comes with the package: small, whole, and it draws, describes and answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.cli.models import BUILT_IN
from smalti.data.scene_prompts import prompts
from smalti.data.scene_world import World
from smalti.data.scenes import Scenes
from smalti.data.transforms import from_uint8, to_uint8
from smalti.eval.protocol import read_result
from smalti.eval.qa import score_answers
from smalti.eval.scene_captions import score_captions
from smalti.eval.scene_eval import score_images
from smalti.generation.pipeline import TextToImagePipeline

WORLD = World.full()


@pytest.fixture(scope="module")
def built_in():
    return TextToImagePipeline.from_pretrained(BUILT_IN)


def test_it_stays_small():
    assert sum(file.stat().st_size for file in BUILT_IN.rglob("*.safetensors")) <= 20_000_000


def test_its_scores_are_those_of_its_weights(built_in):
    model = read_result(BUILT_IN / "scores.json").model
    assert model["tokenizer_fingerprint"] == built_in.tokenizer.fingerprint()


def test_commands_need_no_model(answers, tmp_path):
    answers("sample", "a red circle", "--seed", 7, "--scale", 1, "--out", tmp_path / "circle.png")
    with Image.open(tmp_path / "circle.png") as picture:
        assert picture.size == (64, 64)
    assert answers("ask", tmp_path / "circle.png", "what color is the circle") == ["red"]
    assert answers("caption", tmp_path / "circle.png")[0].startswith("a red ")


def test_it_draws_what_it_is_asked_for(built_in):
    wanted = [entry for entry in prompts(WORLD) if entry["tag"] == "colors" and entry["seen"]][:12]
    pixels = built_in.generate([entry["prompt"] for entry in wanted], 0, progress=False)
    images = to_uint8(pixels).permute(0, 2, 3, 1).numpy()
    assert score_images(images, wanted, WORLD).tasks["colors"] >= 0.5


def test_it_describes_and_answers_about_what_it_sees(built_in):
    scenes = Scenes("full", "validation", 48)
    images = np.stack([scenes.pixels(index) for index in range(48)])
    pixels = from_uint8(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert score_captions(built_in.caption(pixels), images, WORLD).true >= 0.5
    codes = built_in.encode(pixels).ids
    asked = [(index, question) for index in range(48) for question in scenes.questions(index)]
    given = built_in.answer_ids(codes[[index for index, _ in asked]], [question.question for _, question in asked])
    assert score_answers([question for _, question in asked], given).kinds["color"] >= 0.5  # a guesser has a tenth
