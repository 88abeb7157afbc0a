"""MMBench's TSV, its rotations, and circular accuracy."""

import base64

import pytest

from smalti.eval.understanding.blind import blind_answers
from smalti.eval.understanding.mmbench import read_mmbench, score_mmbench

PICTURE = base64.b64encode(bytes(range(96))).decode()
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
ROWS = [
    ("5", "what is it", "look well", "dog", "cat", "cow", "", "C", "nature", PICTURE),
    ("6", "how many", "nan", "one", "two", "nan", "", "A", "count", "5"),
]


@pytest.fixture
def tsv(tmp_path):
    def write(rows, columns=COLUMNS):
        path = tmp_path / "mmbench_dev.tsv"
        path.write_text("\n".join("\t".join(row) for row in (columns, *rows)) + "\n")
        return [path]

    return write


def test_every_rotation_is_asked(tsv):
    items = read_mmbench(tsv(ROWS))
    assert [item.id for item in items] == ["5", "1000005", "2000005", "6", "1000006"]
    assert [item.choices[0] for item in items] == ["dog", "cat", "cow", "one", "two"]
    assert [item.answers[0] for item in items] == ["C", "B", "A", "A", "B"]
    assert all(item.choices["ABC".index(item.answers[0])] in ("cow", "one") for item in items)
    assert (items[0].question, items[3].question) == ("look well\nwhat is it", "how many")
    assert {item.image for item in items} == {"5"}
    assert all(item.data == bytes(range(96)) for item in items)


FILED = [  # the rotations as rows, one before its question, pictures named by the question that holds them
    ("1000005", "what is it", "", "cat", "cow", "dog", "", "B", "nature", "5"),
    ("5", "what is it", "", "dog", "cat", "cow", "", "C", "nature", PICTURE),
    ("2000005", "what is it", "", "cow", "dog", "cat", "", "A", "nature", "5"),
    ("6", "how many", "nan", "one", "two", "nan", "", "A", "count", PICTURE),
    ("1000006", "how many", "nan", "two", "one", "nan", "", "B", "count", PICTURE),
]


def test_rotations_of_the_file_are_not_rotated_again(tsv):
    items = read_mmbench(tsv(FILED))
    assert [item.id for item in items] == ["1000005", "5", "2000005", "6", "1000006"]
    assert [(item.origin, item.image) for item in items] == [("5", "5")] * 3 + [("6", "6")] * 2
    assert [item.answers[0] for item in items] == ["B", "C", "A", "A", "B"]
    assert items[0].choices == ("cat", "cow", "dog")
    assert all(item.data == bytes(range(96)) for item in items)
    scores = score_mmbench(items, ["A", "C", "A", "A", "B"], "official")
    assert (scores["circular"], scores["single"]) == (0.5, 1)
    with pytest.raises(ValueError, match=r"question 5 beside its rotation 1000005 .*got none"):
        read_mmbench(tsv([(*FILED[0][:9], PICTURE), *FILED[3:]]))


def test_a_question_is_right_only_in_every_rotation(tsv):
    items = read_mmbench(tsv(ROWS))
    right = [item.answers[0] for item in items]
    assert score_mmbench(items, right, "official")["circular"] == 1
    assert score_mmbench(items, [*right[:2], "B", *right[3:]], "official") == {
        "circular": 0.5,
        "groups": {"count": 1, "nature": 0},
        "single": 1,
        "unparsed": 0,
    }
    assert score_mmbench(items, ["A"] * 5, "official") | {"groups": {}} == {
        "circular": 0,
        "groups": {},
        "single": 0.5,
        "unparsed": 0,
    }


def test_a_blind_guesser_goes_by_the_texts_of_choices(tsv):
    rows = [
        (str(n), "how many", "", *(("one", "two") if n % 2 else ("two", "one")), "", "", "BA"[n % 2], "count", PICTURE)
        for n in range(8)
    ]
    items = read_mmbench(tsv(rows))
    assert score_mmbench(items, blind_answers(items), "official")["circular"] == 1


def test_wrong_files(tsv):
    with pytest.raises(ValueError, match="MMBench is read from one file, got 2"):
        read_mmbench(tsv(ROWS) * 2)
    with pytest.raises(ValueError, match=r"a column 'answer' of tab-separated values .*got none"):
        read_mmbench(tsv([row[:7] for row in ROWS], COLUMNS[:7]))
    with pytest.raises(ValueError, match=r"the letter of a choice as answer of question 5 .*got 'D'"):
        read_mmbench(tsv([(*ROWS[0][:7], "D", *ROWS[0][8:])]))
    for index in ("five", "", "-1", "\u00b2"):
        with pytest.raises(ValueError, match=rf"a whole number as 'index' of row 1 .*got '{index}'"):
            read_mmbench(tsv([(index, *ROWS[0][1:])]))
    with pytest.raises(ValueError, match=r"a picture in base64 for question 5 .*got something else"):
        read_mmbench(tsv([ROWS[0][:9]]))
    with pytest.raises(ValueError, match=r"a picture in base64 for question 6 .*got something else"):
        read_mmbench(tsv(ROWS[1:]))
