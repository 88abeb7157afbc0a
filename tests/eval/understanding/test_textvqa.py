"""TextVQA's file, and the OCR words of its prompts."""

import json

import pytest

from smalti.eval.understanding.textvqa import read_ocr, read_textvqa, with_ocr


@pytest.fixture
def path(tmp_path):
    path, answers = tmp_path / "TextVQA_0.5.1_val.json", ["nokia"] * 9 + ["a phone"]
    path.write_text(
        json.dumps({"data": [{"question_id": 7, "image_id": "ab", "question": "brand?", "answers": answers}]})
    )
    return path


def test_reading(path):
    (item,) = read_textvqa([path])
    assert (item.id, item.image, item.question, len(item.answers)) == ("7", "ab", "brand?", 10)


def test_ocr_words_follow_the_question(path, tmp_path):
    (item,), ocr = read_textvqa([path]), tmp_path / "ocr.json"
    ocr.write_text(json.dumps({"data": [{"image_id": "ab", "ocr_tokens": ["NOKIA", "5"]}]}))
    assert with_ocr(item, read_ocr(ocr)) == "brand?\nReference OCR token: NOKIA, 5"
    assert with_ocr(item, {}) == "brand?\nReference OCR token: "
    ocr.write_text(json.dumps({"data": [{"image_id": "ab", "ocr_tokens": "NOKIA"}]}))
    with pytest.raises(ValueError, match=r"a list of words as 'ocr_tokens' of entry 1 .*got str"):
        read_ocr(ocr)


def test_wrong_files(path):
    with pytest.raises(ValueError, match="TextVQA is read from one file, got 2"):
        read_textvqa([path, path])
    path.write_text(json.dumps({"data": [{"question_id": 7, "image_id": "ab", "question": "brand?"}]}))
    with pytest.raises(ValueError, match=r"annotators' answers of question 7 .*none, as for a test split"):
        read_textvqa([path])
