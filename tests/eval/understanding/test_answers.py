"""Files of answers in the formats of the benchmarks."""

import json

import pytest

from smalti.eval.understanding.answers import read_answers
from smalti.eval.understanding.items import Item

ITEMS = [Item(name, "1.jpg", f"q{name}", ("yes",), "all", "all", origin="count/1.jpg") for name in ("1", "2")]


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.mark.parametrize(
    "text",
    [
        lines({"question_id": 2, "text": "no"}, {"question_id": 1, "text": "yes"}),
        json.dumps([{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "no"}]),
        json.dumps([{"questionId": "1", "prediction": "yes"}, {"questionId": "2", "prediction": "no"}]),
        json.dumps([{"image_id": 1, "caption": "yes"}, {"image_id": 2, "caption": "no"}], indent=1),
        json.dumps({"1": "yes", "2": "no"}, indent=1),
        json.dumps({"1": "yes", "2": "no"}),
        lines({"question": "q1", "answer": "yes"}, {"question": "q2", "answer": "no"}),
    ],
)
def test_formats(tmp_path, text):
    path = tmp_path / "answers.json"
    path.write_text(text)
    assert read_answers(path, ITEMS) == ["yes", "no"]


def test_one_line_is_an_entry_too(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(lines({"question_id": "1", "text": "yes"}))
    assert read_answers(path, ITEMS[:1]) == ["yes"]


def test_mme_results(tmp_path):
    (tmp_path / "count.txt").write_text("1.jpg\tq1\tYes\tyes it is\n1.jpg\tq2\tNo\tno\n")
    assert read_answers(tmp_path, ITEMS) == ["yes it is", "no"]
    (tmp_path / "count.txt").write_text("1.jpg\tq3\tYes\tyes\n")
    with pytest.raises(ValueError, match=r"got one to 'count/1.jpg: q3', which it does not ask"):
        read_answers(tmp_path, ITEMS)
    (tmp_path / "count.txt").write_text("1.jpg q1\n")
    with pytest.raises(ValueError, match=r"picture, question, truth and answer with tabs in line 1 .*got '1.jpg q1'"):
        read_answers(tmp_path, ITEMS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"question_id": 1, "text": "yes"}],
            "expected an answer to each of 2 questions in .*got 1, none to '2'; answer",
        ),
        ([{"question_id": n, "text": "yes"} for n in (1, 2, 3)], "got one to '3', which it does not ask; give the"),
        ([{"question_id": 1, "text": "yes"}] * 2, "one answer to every question .*got two to question '1'"),
        ([{"number": 1, "text": "yes"}], "one of the fields question_id, .*got none in entry 1"),
        ([{"question_id": 1, "said": "yes"}], "one of the fields answer, text, .*got none in entry 1"),
        ([{"question_id": 1, "text": None}], "text as 'text' of entry 1 .*got NoneType"),
        ([{"question": "q1", "answer": "yes"}], "2 answers in the order of the questions .*got 1"),
        ([{"question": "q1", "answer": "yes"}, {"question": "q3", "answer": "no"}], "question 2 as entry 2 .*got 'q3'"),
    ],
)
def test_wrong_answers(tmp_path, entries, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(lines(*entries))
    with pytest.raises(ValueError, match=message):
        read_answers(path, ITEMS)


def test_repeated_ids_need_a_file_for_each_split(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(lines({"question_id": 1, "text": "yes"}))
    with pytest.raises(ValueError, match="ids that differ in all splits, got 1 that repeat; give one answers file for"):
        read_answers(path, ITEMS[:1] * 2)
