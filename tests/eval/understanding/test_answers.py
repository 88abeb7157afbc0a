"""Files of answers in the formats of the benchmarks."""

import json
from dataclasses import replace

import pytest

from smalti.eval.understanding.answers import read_answers, read_split_answers
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
    (tmp_path / "count.txt").write_text("1.jpg\tq1\tYes\tyes\n" * 2)
    with pytest.raises(ValueError, match=r"one answer to every question .*got two to question '1'"):
        read_answers(tmp_path, ITEMS)
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
        ([{"question_id": 1, "text": "yes", "prompt": "q2"}], "'q1' as 'prompt' of question 1 in entry 1 .*got 'q2'"),
        ([{"question_id": 1, "answer": "yes", "question": "q"}], "'q1' as 'question' of question 1 .*got 'q'"),
        ([{"question_id": 1, "text": "q1", "image": "a", "label": "yes"}], "expected answers .*its 'label' as entry 1"),
        ([{"question_id": 1, "image": "a", "text": "q1"}], "expected answers .*got a question with its 'image'"),
        ([{"question": "q1", "answer": "yes"}, {"id": 2, "answer": "no"}], "text as 'question' of entry 2 .*no such"),
        ([{"question": "q1", "answer": "yes"}], "2 answers in the order of the questions .*got 1"),
        ([{"question": "q1", "answer": "yes"}, {"question": "q3", "answer": "no"}], "question 2 as entry 2 .*got 'q3'"),
    ],
)
def test_wrong_answers(tmp_path, entries, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(lines(*entries))
    with pytest.raises(ValueError, match=message):
        read_answers(path, ITEMS)


def test_what_was_asked_may_go_on_behind_the_question(tmp_path):
    path = tmp_path / "answers.jsonl"
    said = [{"question_id": 1, "prompt": "q1 Answer with one word.", "text": "yes"}]
    path.write_text(lines(*said, {"question_id": 2, "prompt": [{"role": "user"}], "question": None, "text": "no"}))
    assert read_answers(path, ITEMS) == ["yes", "no"]
    hinted = [replace(ITEMS[0], question="look well\nq1")]  # a benchmark's hint stands above it
    path.write_text(lines({"question_id": 1, "question": "q1", "answer": "yes"}))
    assert read_answers(path, hinted) == ["yes"]


SPLIT = [replace(ITEMS[0], group=group, question=f"is it {group}") for group in ("random", "popular")]


def test_repeated_ids_are_told_apart_by_their_split(tmp_path):
    path = tmp_path / "answers.jsonl"
    entries = [{"question_id": 1, "group": group, "text": group} for group in ("popular", "random")]
    path.write_text(lines(*entries))
    assert read_answers(path, SPLIT) == ["random", "popular"]
    path.write_text(lines(entries[0], entries[0]))
    with pytest.raises(ValueError, match=r"one answer to every question .*got two to question 'popular: 1'"):
        read_answers(path, SPLIT)
    message = r"expected a 'group' in every entry, or one answers file for each split, .*got {}; use"
    for text, got in (
        (lines({"question_id": 1, "text": "yes"}), "none in entry 1"),
        (json.dumps({"1": "yes"}), "answers by id"),
        (lines({"question": "is it random", "answer": "yes"}), "answers without ids"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message.format(got)):
            read_answers(path, SPLIT)


def test_one_file_for_each_split(tmp_path):
    def write(name, **entry):
        (tmp_path / name).write_text(lines({"question_id": 1} | entry))
        return tmp_path / name

    plain = [write("a.jsonl", text="yes"), write("b.jsonl", text="no")]
    assert read_split_answers(plain, ["random", "popular"], SPLIT) == ["yes", "no"]
    assert read_split_answers(plain, ["popular", "random"], SPLIT) == ["no", "yes"]
    with pytest.raises(ValueError, match=r"one answers file for each of 2 splits, got 1; give them in the order"):
        read_split_answers(plain[:1], ["random", "popular"], SPLIT)
    named = [write("llava_Random.jsonl", text="yes"), plain[1]]
    assert read_split_answers(named, ["random", "popular"], SPLIT) == ["yes", "no"]
    message = r"answers to split 'popular', got llava_Random.jsonl, named after random; give answers in the order of"
    with pytest.raises(ValueError, match=message):
        read_split_answers(named, ["popular", "random"], SPLIT)
    with pytest.raises(ValueError, match=message):
        read_split_answers(named[:1], ["popular"], SPLIT[1:], ["random", "adversarial"])
    asked = [write("c.jsonl", text="yes", prompt="is it popular"), plain[1]]
    with pytest.raises(ValueError, match=r"'is it random' as 'prompt' of question 1 .*got 'is it popular'"):
        read_split_answers(asked, ["random", "popular"], SPLIT)
