"""GQA's file and its matches."""

import json

import pytest

from smalti.eval.understanding.gqa import read_gqa, score_gqa


@pytest.fixture
def path(tmp_path):
    path, types = tmp_path / "testdev_balanced_questions.json", {"structural": "query", "detailed": "material"}
    content = {
        "201": {"imageId": "n1", "question": "What is it?", "answer": "wood", "types": types},
        "202": {"imageId": "n1", "question": "Is it?", "answer": "yes", "types": {"structural": "verify"}},
    }
    path.write_text(json.dumps(content))
    return path


def test_reading(path):
    first, second = read_gqa([path])
    assert (first.id, first.image, first.question, first.answers) == ("201", "n1", "What is it?", ("wood",))
    assert (first.group, first.kind, second.group, second.kind) == ("query", "material", "verify", "verify")


def test_the_very_string_or_a_relaxed_one(path):
    items, answers = read_gqa([path]), ["Wood.", "yes"]
    assert score_gqa(items, answers, "official") == {"accuracy": 0.5, "groups": {"query": 0, "verify": 1}}
    assert score_gqa(items, answers, "always")["accuracy"] == 1
    assert score_gqa(items, ["woods", "yes it is"], "always")["accuracy"] == 0


def test_wrong_files(path):
    with pytest.raises(ValueError, match="GQA is read from one file, got 2; give testdev"):
        read_gqa([path, path])
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"questions by id .*got none"):
        read_gqa([path])
    path.write_text('{"1": "what"}')
    with pytest.raises(ValueError, match=r"an object of question 1 .*got str"):
        read_gqa([path])
    entry = {"imageId": "n1", "question": "what", "answer": "yes", "types": ["query"]}
    path.write_text(json.dumps({"1": entry}))
    with pytest.raises(ValueError, match=r"an object of 'types' of question 1 .*got list"):
        read_gqa([path])
    path.write_text('{"1": {"imageId": "n1", "question": "what"}}')
    with pytest.raises(ValueError, match=r"text as 'answer' of entry 1 .*got no such field"):
        read_gqa([path])
