"""Boxes read as GenEval's rules read them, by hand."""

import pytest
import torch

from smalti.eval.detection.detected import Detected
from smalti.eval.geneval import Detection, judge
from smalti.eval.geneval_prompts import COCO_NAMES

DOG, CAT = COCO_NAMES.index("dog"), COCO_NAMES.index("cat")


def found():
    return Detected(
        boxes=torch.tensor([[0.0, 0, 4, 4], [10, 0, 14, 4], [0, 0, 4, 4], [5, 5, 6, 6]]),
        scores=torch.tensor([0.25, 0.5, 0.75, 0.75]),
        labels=torch.tensor([DOG, DOG, CAT, DOG]),
    )


def test_detections_stand_under_their_class_best_first():
    assert dict(found()) == {
        "dog": [
            Detection((5.0, 5.0, 6.0, 6.0), 0.75),
            Detection((10.0, 0.0, 14.0, 4.0), 0.5),
            Detection((0.0, 0.0, 4.0, 4.0), 0.25),
        ],
        "cat": [Detection((0.0, 0.0, 4.0, 4.0), 0.75)],
    }
    assert len(found()) == 2
    assert found().get("person") is None


def test_nothing_found_is_an_empty_mapping():
    assert dict(Detected(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))) == {}


def test_the_rules_read_it():
    entry = {"tag": "two_object", "include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 1}]}
    assert judge(entry, found()).correct
    assert judge(entry, found(), threshold=0.5).reason == "expected dog>=2, found 1"


def test_equal_boxes_are_told_apart():
    twins = Detected(torch.zeros(2, 4), torch.tensor([0.5, 0.5]), torch.tensor([DOG, DOG]))
    first, second = twins["dog"]
    assert first == second
    assert (twins.index("dog", first), twins.index("dog", second)) == (0, 1)


def test_rows_belong_to_the_picture():
    picture = found()
    assert [picture.index("dog", item) for item in picture["dog"]] == [3, 1, 0]
    with pytest.raises(ValueError, match=r"expected a detection of 'dog' in this picture, got Detection.*read from it"):
        picture.index("dog", found()["dog"][0])
    with pytest.raises(ValueError, match="expected a detection of 'person' in this picture"):
        picture.index("person", picture["dog"][0])


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "masks"),
    [(3, 2, 2, None), (2, 3, 2, None), (2, 2, 3, None), (2, 2, 2, 3)],
)
def test_every_box_needs_one_of_each(boxes, scores, labels, masks):
    mask = None if masks is None else torch.zeros(masks, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected boxes \(n, 4\), scores \(n,\).*give each box one of each"):
        Detected(torch.zeros(boxes, 4), torch.zeros(scores), torch.zeros(labels, dtype=torch.int64), mask)


@pytest.mark.parametrize("label", [-1, 80])
def test_labels_are_classes_of_coco(label):
    with pytest.raises(ValueError, match=rf"expected labels in \[0, 80\), got {label} to {label}; map the detector's"):
        Detected(torch.zeros(1, 4), torch.zeros(1), torch.tensor([label]))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(number):
    boxes, scores, labels = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    scores[1] = number
    told = (
        "expected finite boxes and scores, got NaN or infinity in {} of 3; check the detector's weights and the pictu"
    )
    with pytest.raises(ValueError, match=told.format(1)):
        Detected(boxes, scores, labels)
    boxes[2, 3] = number
    with pytest.raises(ValueError, match=told.format(2)):
        Detected(boxes, scores, labels)
    with pytest.raises(ValueError, match=told.format(1)):
        Detected(boxes, torch.zeros(3), labels)
