"""VQAv2's two files."""

import json

import pytest

from smalti.eval.understanding.vqa import read_vqa


def contents():
    header = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    questions = [
        {"image_id": 42, "question": "What color?", "question_id": 420},
        {"image_id": 42, "question": "Is it red?", "question_id": 421},
    ]
    annotations = [
        {
            "question_id": entry["question_id"],
            "image_id": 42,
            "question_type": "what color",
            "answer_type": kind,
            "multiple_choice_answer": "red",
            "answers": [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        }
        for entry, kind in zip(questions, ("other", "yes/no"), strict=True)
    ]
    return header | {"questions": questions}, header | {"annotations": annotations}


@pytest.fixture
def files(tmp_path):
    def write(questions, annotations):
        paths = tmp_path / "questions.json", tmp_path / "annotations.json"
        for path, content in zip(paths, (questions, annotations), strict=True):
            path.write_text(json.dumps(content))
        return list(paths)

    return write


def test_questions_meet_their_annotations_in_any_order(files):
    paths = files(*contents())
    items = read_vqa(paths)
    assert items == read_vqa(paths[::-1])
    assert [item.id for item in items] == ["420", "421"]
    assert items[0].image == "COCO_val2014_000000000042"
    assert items[0].answers == ("red",) * 10
    assert (items[0].kind, items[0].group, items[1].group) == ("what color", "other", "yes/no")


def test_other_pictures_than_cocos_keep_their_name(files):
    questions, annotations = contents()
    items = read_vqa(files(questions | {"data_type": "abstract_v002", "data_subtype": "val2015"}, annotations))
    assert items[0].image == "abstract_v002_val2015_000000000042"


def test_wrong_files(files, tmp_path):
    questions, annotations = contents()
    with pytest.raises(ValueError, match="read from its questions and its annotations, got 1 file; give both"):
        read_vqa(files(questions, annotations)[:1])
    with pytest.raises(ValueError, match=r"list called 'annotations' in .*annotations.json, got data_subtype"):
        read_vqa(files(questions, questions))
    with pytest.raises(ValueError, match=r"an annotation of every question of questions.json .* none of question 421"):
        read_vqa(files(questions, annotations | {"annotations": annotations["annotations"][:1]}))
    with pytest.raises(ValueError, match=r"every question of annotations.json .*got 1 of 2; use the"):
        read_vqa(files(questions | {"questions": questions["questions"][:1]}, annotations))
    with pytest.raises(ValueError, match=r"'question' of entry 1 .*got no such field"):
        read_vqa(files(questions | {"questions": [{"image_id": 1, "question_id": 420}]}, annotations))
    bare = [{"question_id": 420, "answer_type": "other"}, {"question_id": 421}]
    with pytest.raises(ValueError, match=r"annotators' answers of question 420 .*got none, as for a test split"):
        read_vqa(files(questions, annotations | {"annotations": bare}))
    odd = [entry | {"image_id": "abc"} for entry in questions["questions"]]
    with pytest.raises(ValueError, match=r"a whole number as 'image_id' of question 420 .*got 'abc'"):
        read_vqa(files(questions | {"questions": odd}, annotations))
    for pair in ((5, annotations), (questions, 5)):
        with pytest.raises(ValueError, match=r"a list called '(questions|annotations)' in .*got int"):
            read_vqa(files(*pair))
    (tmp_path / "broken.json").write_text('{"questions": [')
    with pytest.raises(ValueError, match=r"expected JSON in .*broken.json, got text that does not parse at line 1"):
        read_vqa([tmp_path / "broken.json", tmp_path / "annotations.json"])
    with pytest.raises(FileNotFoundError, match=r"a benchmark file at .*none.json, found none; check the path"):
        read_vqa([tmp_path / "none.json", tmp_path / "annotations.json"])
