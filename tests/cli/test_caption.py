"""``smalti caption`` and ``smalti ask``: the pipeline's words, one line each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.transforms import Crop, to_tensor
from smalti.generation.pipeline import TextToImagePipeline
from smalti.generation.text import TextSampling


@pytest.fixture
def pictures(tmp_path):
    """Five pictures of noise and of other sizes than the model's."""
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    generator = np.random.default_rng(0)
    for index, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (20 + 7 * index, 40, 3), dtype=np.uint8)).save(path)
    return paths


def tensors(paths) -> torch.Tensor:
    return torch.stack([to_tensor(Crop(16)(Image.open(path))) for path in paths])


def test_one_caption_is_the_caption_alone(model, pipeline, pictures, answers):
    assert answers("caption", pictures[0], "--model", model) == pipeline.caption(tensors(pictures[:1]))


def test_several_captions_are_named(model, pipeline, pictures, answers):
    expected = [f"{path}: {text}" for path, text in zip(pictures, pipeline.caption(tensors(pictures)), strict=True)]
    assert answers("caption", *pictures, "--model", model) == expected
    assert answers("caption", pictures[0].parent, "--model", model) == expected


def test_beams(model, pictures, answers, fails, tmp_path):
    lively = TextToImagePipeline.from_pretrained(model)
    with torch.no_grad():
        for parameter in lively.lm.parameters():
            parameter.normal_(std=0.2)
    lively.save_pretrained(tmp_path / "lively")
    expected = lively.caption(tensors(pictures[:2]), TextSampling(beams=4))
    lines = [f"{path}: {text}" for path, text in zip(pictures, expected, strict=False)]
    assert answers("caption", *pictures[:2], "--beams", 4, "--model", tmp_path / "lively") == lines
    assert expected != lively.caption(tensors(pictures[:2]))
    assert "--beams must be a whole number, at least 1, got '0'" in fails("caption", "a.png", "--beams", 0)


def test_answers(model, pipeline, pictures, answers):
    questions = ["is there a red circle", "how many squares"]
    expected = pipeline.ask(tensors([pictures[0]] * 2), questions)
    assert answers("ask", pictures[0], questions[0], "--model", model) == expected[:1]
    lines = [f"{question} {answer}" for question, answer in zip(questions, expected, strict=True)]
    assert answers("ask", pictures[0], *questions, "--model", model) == lines


def test_answers_out_of_given_ones(model, pipeline, pictures, answers):
    questions, choices = ["is there a red circle", "how many squares"], ["yes", "no", "two squares"]
    expected = pipeline.choose(tensors([pictures[0]] * 2), questions, [choices] * 2)
    assert set(expected) <= set(choices)
    given = ("--choices", " yes,no , two squares", "--model", model)
    assert answers("ask", pictures[0], questions[0], *given) == expected[:1]
    lines = [f"{question} {answer}" for question, answer in zip(questions, expected, strict=True)]
    assert answers("ask", pictures[0], *questions, *given) == lines


@pytest.mark.parametrize("wrong", ["yes", "yes,,no", "yes,", ""])
def test_choices_without_words(pictures, fails, wrong):
    line = fails("ask", pictures[0], "how many squares", "--choices", wrong)
    assert f"--choices must be two answers or more with commas between them, got {wrong!r}; write some as in" in line


def test_wrong_pictures(model, tmp_path, pictures, fails):
    (tmp_path / "text.png").write_text("no picture")
    wanted = {"none.png": "no such file", "text.png": "(not a known picture format); repair the file or leave it out"}
    for name, reason in wanted.items():
        for line in (
            fails("caption", pictures[0], tmp_path / name, "--model", model),
            fails("ask", tmp_path / name, "how many squares", "--model", model),
        ):
            assert name in line
            assert reason in line
    (tmp_path / "empty").mkdir()
    assert "expected pictures" in fails("caption", tmp_path / "empty", "--model", model)


def test_wrong_questions(model, pictures, fails):
    assert "got 'tringles'" in fails("ask", pictures[0], "how many tringles", "--model", model)
    assert "got 'ten'" in fails("ask", pictures[0], "how many squares", "--choices", "two,ten", "--model", model)
    line = fails("ask", pictures[0], "how many " * 1100, "--model", model)
    assert "must have at most 2048 tokens in this model, got 2221 and 8; shorten the question" in line
    assert "every question must have words, got ['how many squares', ' ']; ask something" in fails(
        "ask", pictures[0], "how many squares", " ", "--model", model
    )
