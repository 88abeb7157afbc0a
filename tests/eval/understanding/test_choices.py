"""Letters, prompts that list choices, and SEED-Bench's file."""

import json

import pytest

from smalti.eval.understanding.benchmarks import prompt_of
from smalti.eval.understanding.choices import letter_of, score_choices
from smalti.eval.understanding.seed_bench import read_seed_bench

CHOICES = ("a dog", "a cat", "Two", "none of them")


@pytest.mark.parametrize(
    ("answer", "official", "always"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("B. a cat", "B", "B"),
        ("C: Two", "C", "C"),
        ("b", None, "B"),
        ("a cat.", None, "B"),
        ("The answer is D", None, "D"),
        ("A dog", None, "A"),
        ("A zebra", None, None),
        ("E", None, None),
        ("", None, None),
    ],
)
def test_letters(answer, official, always):
    assert letter_of(answer, CHOICES, "official") == official
    assert letter_of(answer, CHOICES, "always") == always


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "SEED-Bench.json"
    entries = [
        {
            "question_id": str(number),
            "data_id": f"d{number}",
            "data_type": kind,
            "question": "what is it",
            "question_type_id": number,
            "answer": "B",
            **{f"choice_{letter}": text for letter, text in zip("abcd", CHOICES, strict=True)},
        }
        for number, kind in ((1, "image"), (2, "image"), (10, "video"))
    ]
    path.write_text(json.dumps({"questions": entries, "question_type": {"Scene Understanding": 1, "Identity": 2}}))
    return path


def test_seed_bench_is_read_without_videos(path):
    items = read_seed_bench([path])
    assert [(item.id, item.image, item.group) for item in items] == [
        ("1", "d1", "Scene Understanding"),
        ("2", "d2", "Identity"),
    ]
    assert prompt_of(items[0], " Answer.") == "what is it\nA. a dog\nB. a cat\nC. Two\nD. none of them Answer."
    assert prompt_of(items[0], "", with_choices=False) == "what is it"
    assert score_choices(items, ["B", "a cat"], "official") == {
        "accuracy": 0.5,
        "groups": {"Identity": 0, "Scene Understanding": 1},
        "unparsed": 0.5,
    }


def test_wrong_files(path):
    with pytest.raises(ValueError, match="SEED-Bench is read from one file, got 2"):
        read_seed_bench([path, path])
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"questions": content["questions"][2:]}))
    with pytest.raises(ValueError, match=r"questions whose 'data_type' is 'image' .*got none"):
        read_seed_bench([path])
    path.write_text(json.dumps(content | {"question_type": ["Scene Understanding"]}))
    with pytest.raises(ValueError, match=r"an object of numbers by type as 'question_type' .*got list"):
        read_seed_bench([path])
    path.write_text(json.dumps(content | {"questions": [content["questions"][0] | {"answer": "E"}]}))
    with pytest.raises(ValueError, match=r"A, B, C or D as 'answer' of question 1 .*got 'E'"):
        read_seed_bench([path])
