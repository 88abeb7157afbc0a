"""``smalti eval understanding``: scenes exported, asked, and scored beside blind guessing; given answers likewise."""

from __future__ import annotations

import json

import pytest

from smalti.cli import eval_understanding
from smalti.eval.protocol import read_result, require_alike
from smalti.eval.understanding.benchmarks import BENCHMARKS
from smalti.generation.pipeline import TextToImagePipeline

KIND = ("eval", "understanding")
QUESTIONS = ("is there a red circle", "is there a blue square")


@pytest.fixture
def scenes(answers, tmp_path):
    lines = answers(*KIND, "export", tmp_path / "scenes", "--world", "small", "--count", 6)
    assert lines[0].startswith(f"wrote {tmp_path / 'scenes'}: 6 pictures, questions: 6 existence, ")
    return tmp_path / "scenes"


@pytest.fixture
def pope(scenes):
    """Questions of the tiny model's own words."""
    path = scenes / "pope_random.json"
    entries = (
        {
            "question_id": at,
            "image": f"scenes_validation_{at // 2:012d}.png",
            "text": QUESTIONS[at % 2],
            "label": ("yes", "no")[at // 2 % 2],
        }
        for at in range(8)
    )
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_names_are_those_of_the_benchmarks():
    assert tuple(BENCHMARKS) == eval_understanding._NAMES


@pytest.mark.parametrize("way", ["words", "likelihood"])
def test_a_model_is_asked(answers, model, pope, scenes, tmp_path, way):
    out, said = tmp_path / "pope.json", tmp_path / "said.jsonl"
    images = ("--images", scenes / "images", "--model", model)
    lines = answers(*KIND, "pope", pope, *images, "--by", way, "--out", out, "--save-answers", said, "--batch", 3)
    assert lines[0].split() == ["POPE", "score", "blind"]
    assert lines[-2:] == [f"wrote {said}: 8 answers", f"wrote {out}"]
    given = [json.loads(line)["text"] for line in said.read_text().splitlines()]
    assert len(given) == 8
    assert way == "words" or set(given) <= {"yes", "no"}
    result = read_result(out)
    assert set(result.scores) == {"pope", "blind"}
    assert (result.protocol.count, result.protocol.dtype, result.protocol.rewritten) == (8, "float32", False)
    assert result.protocol.extra["max_new_tokens"] == 8
    assert result.protocol.extra["suffix"] == ""
    assert result.model["model"] == "tiny"
    again = tmp_path / "again.json"
    answers(*KIND, "pope", pope, "--answers", said, "--out", again)
    assert read_result(again).scores == result.scores


def test_answers_are_those_of_the_pipeline(answers, model, pope, scenes, tmp_path):
    import torch
    from PIL import Image

    from smalti.data.transforms import Crop, to_tensor

    said, suffix = tmp_path / "said.jsonl", " above"
    given = ("--images", scenes / "images", "--model", model, "--suffix", suffix)
    answers(*KIND, "pope", pope, *given, "--save-answers", said, "--max-new-tokens", 3)
    pictures = [Image.open(scenes / "images" / f"scenes_validation_{at // 2:012d}.png") for at in range(8)]
    images = torch.stack([to_tensor(Crop(16)(picture)) for picture in pictures])
    from smalti.generation.text import TextSampling

    pipeline = TextToImagePipeline.from_pretrained(model)
    expected = pipeline.ask(images, [QUESTIONS[at % 2] + suffix for at in range(8)], TextSampling(limit=3))
    assert [json.loads(line)["text"] for line in said.read_text().splitlines()] == expected


def test_captions_of_a_model(answers, model, scenes, tmp_path):
    out = tmp_path / "captions.json"
    lines = answers(
        *KIND, "captions", scenes / "captions.json", "--images", scenes / "images", "--model", model, "--out", out
    )
    assert lines[1].split()[0] == "cider_d"
    assert read_result(out).protocol.extra["max_new_tokens"] == 32


def test_right_answers_beside_blind_ones(answers, scenes, tmp_path):
    asked = json.loads((scenes / "gqa_questions.json").read_text())
    given = tmp_path / "answers.json"
    given.write_text(json.dumps([{"questionId": name, "prediction": q["answer"]} for name, q in asked.items()]))
    out = tmp_path / "gqa.json"
    lines = answers(*KIND, "gqa", scenes / "gqa_questions.json", "--answers", given, "--out", out)
    assert lines[1].split()[:2] == ["accuracy", "1.000"]
    result = read_result(out)
    assert result.scores["gqa"]["accuracy"] == 1 > result.scores["blind"]["accuracy"]
    assert result.protocol.extra["normalisation"] == "official"
    assert result.model["answers"] == "answers.json"


def test_a_file_of_answers_for_each_split(answers, fails, scenes, pope, tmp_path):
    other = scenes / "pope_popular.json"
    other.write_text(pope.read_text())
    files = [
        write(tmp_path / f"{word}.jsonl", [{"question_id": at, "text": word} for at in range(8)])
        for word in ("yes", "no")
    ]
    out, turned = tmp_path / "pope.json", tmp_path / "turned.json"
    answers(*KIND, "pope", pope, other, "--answers", *files, "--out", out)
    splits = read_result(out).scores["pope"]["splits"]
    assert (splits["random"]["yes_ratio"], splits["popular"]["yes_ratio"]) == (1, 0)
    answers(*KIND, "pope", other, pope, "--answers", *files[::-1], "--out", turned)
    assert read_result(turned).scores == read_result(out).scores
    require_alike(read_result(turned).protocol, read_result(out).protocol)
    assert read_result(out).protocol.dataset == "POPE: random, popular"
    line = fails(*KIND, "pope", pope, other, "--answers", files[0])
    assert "expected a 'group' in every entry, or one answers file for each split" in line
    assert "one answers file for each of 1 splits, got 2" in fails(*KIND, "pope", pope, "--answers", *files)
    files[0].rename(tmp_path / "said_popular.jsonl")
    line = fails(*KIND, "pope", pope, "--answers", tmp_path / "said_popular.jsonl")
    assert "expected answers to split 'random', got said_popular.jsonl, named after popular" in line
    assert "expected answers in" in fails(*KIND, "pope", pope, "--answers", pope)


def test_saved_answers_to_several_splits_are_read_again(answers, model, pope, scenes, tmp_path):
    other = scenes / "pope_popular.json"
    entries = [json.loads(line) for line in pope.read_text().splitlines()]
    write(other, [entry | {"text": "how many squares"} for entry in entries])
    said, one, again = (tmp_path / name for name in ("said.jsonl", "one.json", "again.json"))
    images = ("--images", scenes / "images", "--model", model)
    answers(*KIND, "pope", other, pope, *images, "--save-answers", said, "--out", one)
    answers(*KIND, "pope", pope, other, "--answers", said, "--out", again)
    assert set(read_result(one).scores["pope"]["splits"]) == {"random", "popular"}
    assert read_result(again).scores == read_result(one).scores


def test_files_of_one_set_are_one_data_set_in_any_order(answers, scenes, tmp_path):
    asked = json.loads((scenes / "gqa_questions.json").read_text())
    given = write(tmp_path / "said.jsonl", [{"id": name, "text": q["answer"]} for name, q in asked.items()])
    files = [scenes / "vqa_questions.json", scenes / "vqa_annotations.json"]
    found = []
    for order in (files, files[::-1]):
        answers(*KIND, "vqav2", *order, "--answers", given, "--out", tmp_path / "o.json")
        found.append(read_result(tmp_path / "o.json").protocol)
    require_alike(*found)
    assert found[0].dataset == "VQAv2"


def test_textvqa_says_whether_words_were_read(answers, tmp_path):
    data = [
        {"question_id": at, "image_id": f"p{at}", "question": "brand", "answers": ["nokia"] * 10} for at in range(2)
    ]
    (tmp_path / "val.json").write_text(json.dumps({"data": data}))
    (tmp_path / "ocr.json").write_text(json.dumps({"data": [{"image_id": "p0", "ocr_tokens": ["a"]}]}))
    given, out = (
        write(tmp_path / "said.jsonl", [{"question_id": at, "text": "Nokia"} for at in range(2)]),
        tmp_path / "o.json",
    )
    common = (*KIND, "textvqa", tmp_path / "val.json", "--answers", given, "--out", out)
    assert answers(*common)[1].split() == ["accuracy", "0.000", "1.000"]
    extra = read_result(out).protocol.extra
    assert (extra["ocr_tokens_in_prompt"], extra["suffix"], extra["max_new_tokens"]) == (None, None, None)
    answers(*common, "--suffix", "", "--max-new-tokens", 9)
    extra = read_result(out).protocol.extra
    assert (extra["suffix"], extra["max_new_tokens"]) == ("", 9)
    assert answers(*common, "--normalisation", "always", "--ocr", tmp_path / "ocr.json")[1].split()[1] == "1.000"
    assert read_result(out).protocol.extra["ocr_tokens_in_prompt"] is True


def test_one_picture_has_no_blind_baseline(answers, tmp_path):
    entry = {"question_id": 1, "image": "a.png", "text": "is there a ring", "label": "yes"}
    path, given = write(tmp_path / "pope_random.json", [entry]), write(tmp_path / "a.jsonl", [{"id": 1, "text": "yes"}])
    lines = answers(*KIND, "pope", path, "--answers", given)
    assert lines[-1] == "blind: needs questions about two pictures, these are about one"


def test_wrong_input(fails, model, pope, scenes, tmp_path):
    images = ("--images", scenes / "images", "--model", model)
    line = fails(*KIND, "pope", scenes / "pope_existence.json", *images)
    assert "questions have words that the model cannot read, first question" in line
    assert "every word must be in the vocabulary" in line
    assert "got no folder; pass --images" in fails(*KIND, "pope", pope, "--model", model)
    line = fails(*KIND, "pope", pope, "--images", tmp_path, "--model", model)
    assert "4 are not there, the first is scenes_validation_000000000000.png; give the folder of" in line
    given = write(tmp_path / "said.jsonl", [{"question_id": 0, "text": "yes"}])
    assert "an answer to each of 8 questions" in fails(*KIND, "pope", pope, "--answers", given)
    line = fails(*KIND, "pope", pope, "--answers", given, "--model", model)
    assert "--answers are scored as they are, got --model, which a model needs; drop either" in line
    assert "got --by, which" in fails(*KIND, "pope", pope, "--answers", given, "--by", "likelihood")
    captions = (*KIND, "captions", scenes / "captions.json")
    assert "--suffix follows a question, got captions" in fails(*captions, *images, "--suffix", " please")
    assert "--normalisation tokenised belongs to captions, got pope; drop it" in fails(
        *KIND, "pope", pope, "--answers", given, "--normalisation", "tokenised"
    )
    assert "--seed belongs to export, got pope; drop it" in fails(*KIND, "pope", pope, *images, "--seed", 0)
    assert "--ocr belongs to textvqa, got pope; drop it" in fails(*KIND, "pope", pope, "--ocr", given)
    assert "must be one file for gqa, got 2" in fails(*KIND, "gqa", pope, "--answers", given, given)
    assert "--out must end in .json" in fails(*KIND, "pope", pope, "--answers", given, "--out", "a.txt")
    line = fails(*KIND, "captions", scenes / "captions.json", *images, "--by", "likelihood")
    assert "the likeliest of given answers needs choices, got none with question 0; let the model write" in line
    for option, value in (("--out", "o.json"), ("--answers", given), ("--model", model), ("--save-answers", "s.jsonl")):
        line = fails(*KIND, "export", tmp_path / "new", option, value)
        assert f"{option} belongs to scores, got export; drop it" in line
    assert not (tmp_path / "new").exists()
    assert "export takes one folder, got 2; name one" in fails(*KIND, "export", tmp_path / "a", tmp_path / "b")
    assert "a new or empty folder is needed for scenes" in fails(*KIND, "export", scenes)
