"""POPE's files, its parser, and its scores by hand."""

import json

import pytest

from smalti.eval.understanding.items import Item
from smalti.eval.understanding.pope import plain_yes_or_no, read_pope, score_pope, yes_or_no

LABELS = ("yes", "no", "yes", "no")


def ask(number, label, split="random"):
    return Item(str(number), f"{number}.jpg", f"is there a {number}", (label,), split, split, ("yes", "no"))


def write(path, labels=LABELS):
    entries = (
        {"question_id": number, "image": f"{number}.jpg", "text": f"Is there a {number}?", "label": label}
        for number, label in enumerate(labels, 1)
    )
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    ("answer", "official", "plain"),
    [
        ("No", "no", "no"),
        ("No, there is not", "no", "no"),
        ("there is not one", "no", "no"),
        ("Yes. There is no doubt", "yes", "no"),
        ("NO", "yes", "no"),
        ("no!", "yes", "no"),
        ("", "yes", None),
        ("Yes, no", "no", "no"),
        ("a dog", "yes", None),
        ("Yes!", "yes", "yes"),
        ("nothing", "yes", None),
    ],
)
def test_parsers(answer, official, plain):
    assert yes_or_no(answer) == official
    assert plain_yes_or_no(answer) == plain


def test_scores_by_hand():
    items = [ask(number, label) for number, label in enumerate(("yes", "yes", "yes", "no", "no"))]
    scores = score_pope(items, ["yes", "Yes.", "no", "yes", "no"], "official")
    assert scores == pytest.approx(
        {"f1": 2 / 3, "accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "yes_ratio": 0.6, "unparsed": 0}
    )


def test_what_is_not_parsed_lowers_recall_and_is_no_yes():
    items = [ask(1, "yes"), ask(2, "yes"), ask(3, "no")]
    scores = score_pope(items, ["yes", "a dog", "a cat"], "always")
    assert (scores["recall"], scores["precision"]) == (0.5, 1)
    assert (scores["accuracy"], scores["yes_ratio"], scores["unparsed"]) == pytest.approx((1 / 3, 1 / 3, 2 / 3))


def test_always_no_has_no_f1():
    assert score_pope([ask(1, "yes"), ask(2, "no")], ["no", "no"], "official")["f1"] == 0


def test_the_overall_score_is_the_mean_over_splits():
    items = [ask(1, "yes"), ask(2, "no", "popular"), ask(3, "yes", "popular")]
    scores = score_pope(items, ["yes", "yes", "yes"], "official")
    assert scores["splits"]["popular"]["f1"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["yes_ratio"] == 1  # of the predictions


def test_reading(tmp_path):
    files = [write(tmp_path / f"coco_pope_{split}.json") for split in ("random", "popular")]
    items = read_pope(files)
    assert items == read_pope(files[::-1])  # hence one blind score, too
    assert [item.group for item in items] == ["random"] * 4 + ["popular"] * 4
    assert items[0] == Item("1", "1.jpg", "Is there a 1?", ("yes",), "random", "random", ("yes", "no"))


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match=r"yes or no as 'label' of entry 2 in .*got 'maybe'; use the benchmark's"):
        read_pope([write(tmp_path / "a_random.json", ("yes", "maybe"))])
    path = write(tmp_path / "b_random.json")
    with pytest.raises(ValueError, match=r"a split of its own .*'random' twice"):
        read_pope([path, path])
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(ValueError, match=r"every question once .*got question 1 twice"):
        read_pope([path])
    path.write_text('{"question_id": 1}\nnothing\n')
    with pytest.raises(ValueError, match=r"one JSON object a line .*got something else in line 2"):
        read_pope([path])
    path.write_text("")
    with pytest.raises(ValueError, match=r"expected a list of entries in .*got none"):
        read_pope([path])
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"an object for every entry .*something else as entry 1"):
        read_pope([path])
    path.write_text('{"question_id": true, "image": "a", "text": "b", "label": "yes"}')
    with pytest.raises(ValueError, match=r"text as 'question_id' of entry 1 .*got bool"):
        read_pope([path])
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"UTF-8 text .*got other bytes"):
        read_pope([path])
