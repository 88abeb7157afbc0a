"""Detectors by name, and colours that are looked at only where a rule asks for them."""

import pytest
import torch
from PIL import Image

from smalti.eval.detection.detected import Detected
from smalti.eval.detection.detectors import DETECTORS, colors_in, load_detector
from smalti.eval.geneval import judge
from smalti.eval.geneval_prompts import COCO_NAMES

DOG, CAT = COCO_NAMES.index("dog"), COCO_NAMES.index("cat")
IMAGE = Image.new("RGB", (8, 6))


class Recorder:
    """Calls everything by the colours it was given, and remembers what it was asked."""

    def __init__(self, *colors):
        self.colors, self.asked = list(colors), []

    def classify(self, name, image, boxes, masks=None):
        self.asked.append((name, image.size, boxes.tolist(), None if masks is None else masks.sum((1, 2)).tolist()))
        return [self.colors.pop(0) for _ in boxes]


def two_dogs(masks=True):
    inside = torch.zeros(3, 6, 8, dtype=torch.bool)
    inside[0, 0, :2] = inside[1, :3, :3] = inside[2, 5] = True
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 3, 3], [0, 5, 8, 6]])
    labels = torch.tensor([DOG, DOG, CAT])
    return Detected(boxes, torch.tensor([0.5, 0.8, 0.6]), labels, inside if masks else None)


def entry(color, count=1):
    return {"tag": "colors", "include": [{"class": "dog", "count": count, "color": color}]}


def test_only_boxes_that_count_are_looked_at():
    recorder, detected = Recorder("pink"), two_dogs()
    assert judge(entry("pink"), detected, color=colors_in(IMAGE, detected, recorder)).correct
    assert recorder.asked == [("dog", (8, 6), [[0, 0, 3, 3]], [9])]


def test_each_box_is_looked_at_once():
    recorder, detected = Recorder("pink", "red"), two_dogs()
    color = colors_in(IMAGE, detected, recorder)
    assert judge(entry("red", 2), detected, color=color).reason == "expected red dog>=2, found 1 red; and 1 red, 1 pink"
    assert judge(entry("pink"), detected, color=color).correct
    assert [boxes for _, _, boxes, _ in recorder.asked] == [[[0, 0, 3, 3]], [[0, 0, 2, 1]]]


def test_prompts_without_colours_need_no_classifier():
    recorder, detected = Recorder(), two_dogs()
    single = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    assert judge(single, detected, color=colors_in(IMAGE, detected, recorder)).correct
    assert recorder.asked == []


def test_detectors_without_masks_show_the_whole_box():
    recorder, detected = Recorder("blue"), two_dogs(masks=False)
    assert judge(entry("blue"), detected, color=colors_in(IMAGE, detected, recorder)).correct
    assert recorder.asked[0][3] is None


def test_a_spec_names_a_kind_and_a_folder(tmp_path):
    for kind in DETECTORS:
        with pytest.raises(FileNotFoundError, match=f"expected a {kind} model in {tmp_path}, found no config.json"):
            load_detector(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("spec", ["yolo:/models/yolo", "mask2former", "detr:", ""])
def test_other_specs_are_refused(spec):
    with pytest.raises(ValueError, match=f"as KIND:FOLDER, KIND one of mask2former, detr, owlv2, got '{spec}'; name"):
        load_detector(spec)
