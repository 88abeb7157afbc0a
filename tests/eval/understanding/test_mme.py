"""MME's folder, parser and points."""

import pytest

from smalti.eval.understanding.items import Item
from smalti.eval.understanding.mme import COGNITION, PERCEPTION, mme_yes_or_no, read_mme, score_mme


def write(folder, subtask, name, nested=False, answers=("Yes", "No")):
    texts = folder / subtask / ("questions_answers_YN" if nested else "")
    pictures = folder / subtask / ("images" if nested else "")
    for place in (texts, pictures):
        place.mkdir(parents=True, exist_ok=True)
    (pictures / f"{name}.png").write_bytes(b"")
    (texts / f"{name}.txt").write_text("".join(f"Is it {answer}?\t{answer}\n" for answer in answers))


def test_both_layouts(tmp_path):
    write(tmp_path, "count", "1")
    write(tmp_path, "OCR", "2", nested=True)
    items = read_mme([tmp_path])
    assert [item.id for item in items] == ["OCR/2.png/1", "OCR/2.png/2", "count/1.png/1", "count/1.png/2"]
    assert [item.image for item in items[::2]] == ["OCR/images/2.png", "count/1.png"]
    assert (items[0].question, items[0].answers, items[1].answers) == ("Is it Yes?", ("yes",), ("no",))


@pytest.mark.parametrize(
    ("answer", "read"), [("Yes, it is", "yes"), ("no.", "no"), ("It is no", "other"), ("not", "no"), ("", "other")]
)
def test_the_official_parser_reads_four_characters(answer, read):
    assert mme_yes_or_no(answer) == read


def pairs(subtask, count=2):
    return [
        Item(f"{subtask}/{n}/{i}", f"{subtask}/{n}", "q", (answer,), subtask, subtask, origin=f"{subtask}/{n}")
        for n in range(count)
        for i, answer in enumerate(("yes", "no"))
    ]


def test_points_by_hand():
    """Three of four questions, one of two pictures."""
    scores = score_mme(pairs("count"), ["yes", "no", "yes", "yes"], "official")
    assert scores == {"total": 125, "subtasks": {"count": {"score": 125, "accuracy": 0.75, "accuracy_plus": 0.5}}}
    late = ["yes", "no", "The answer is yes", "I think no"]
    assert score_mme(pairs("count"), late, "official")["total"] == 100
    assert score_mme(pairs("count"), late, "always")["total"] == 200


def test_the_most_points():
    items = [item for subtask in PERCEPTION + COGNITION for item in pairs(subtask)]
    scores = score_mme(items, [item.answers[0] for item in items], "official")
    assert (scores["perception"], scores["cognition"], scores["total"]) == (2000, 800, 2800)


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MME is read from its one folder, got .*none; give the folder"):
        read_mme([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"folders named as MME's subtasks .*got no folder"):
        read_mme([tmp_path])
    write(tmp_path / "a", "colour", "1")
    with pytest.raises(ValueError, match=r"folders named as MME's subtasks .*got colour"):
        read_mme([tmp_path / "a"])
    (tmp_path / "b" / "color").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"text files of questions .*got none"):
        read_mme([tmp_path / "b"])
    write(tmp_path / "c", "color", "1", answers=("Yes", "Maybe"))
    with pytest.raises(ValueError, match="two lines of a question, a tab, and Yes or No"):
        read_mme([tmp_path / "c"])
    (tmp_path / "c" / "color" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"a picture for 1.txt .*got none"):
        read_mme([tmp_path / "c"])
