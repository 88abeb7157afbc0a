"""mmdet's order of steps against slow loops, and the network against that of transformers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerConfig, SwinConfig
from transformers.models.mask2former import modeling_mask2former
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from smalti.eval.detection import mask2former
from smalti.eval.detection.mask2former import (
    Mask2FormerDetector,
    Mask2FormerNet,
    extents,
    instances,
    normalised,
    padded_input,
    resized,
)
from smalti.eval.geneval_prompts import COCO_NAMES
from smalti.eval.protocol import state_hash


def config(classes=80):
    stages = [f"stage{number}" for number in range(1, 5)]
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages)
    widths = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"), 32)
    return Mask2FormerConfig(
        backbone_config=swin,
        encoder_feedforward_dim=8,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=1,
        num_queries=6,
        num_labels=classes,
        **widths,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As other projects save them: with the training loss, whose constructor asks for scipy."""
    path = tmp_path_factory.mktemp("mask2former")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "requires_backends", lambda *_: None)
        torch.manual_seed(1)
        modeling_mask2former.Mask2FormerForUniversalSegmentation(config()).save_pretrained(path)
    return path


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rectangle(height, width, rows, columns, inside=2.0, outside=-1.0):
    logits = torch.full((height, width), outside)
    logits[rows, columns] = inside
    return logits


def test_a_rectangle_gives_its_box_and_score():
    classes = torch.full((2, 81), -50.0)
    classes[0, 16], classes[0, 80] = 0.0, 0.0  # a dog or nothing, one to one
    classes[1, 80] = 0.0
    masks = torch.stack([rectangle(8, 9, slice(2, 5), slice(1, 6)), rectangle(8, 9, slice(0, 0), slice(0, 0))])
    found = instances(classes, masks, most=1)
    assert found.boxes.tolist() == [[1, 2, 6, 5]]
    assert found.scores.tolist() == pytest.approx([0.5 / (1 + math.exp(-2.0))])
    assert COCO_NAMES[int(found.labels[0])] == "dog"
    assert found.masks is not None
    assert torch.equal(found.masks[0], masks[0] > 0)


def test_one_query_may_stand_for_two_classes():
    classes = torch.full((1, 81), -50.0)
    classes[0, 16], classes[0, 15] = 1.0, 1.0
    found = instances(classes, rectangle(4, 4, slice(0, 2), slice(0, 2))[None], most=2)
    assert sorted(found) == ["cat", "dog"]
    assert found["cat"] == found["dog"]


def test_empty_masks_are_left_out():
    found = instances(torch.randn(3, 81), torch.full((3, 4, 4), -1.0))
    assert len(found.scores) == 0


def test_scores_masks_and_boxes_equal_a_slow_loop():
    classes, masks = torch.randn(5, 81), torch.randn(5, 6, 7) - 1
    found = instances(classes, masks, most=40)
    expected = []
    for query in range(5):
        weights = [math.exp(value) for value in classes[query].tolist()]
        inside = [(y, x, masks[query, y, x].item()) for y in range(6) for x in range(7) if masks[query, y, x] > 0]
        mean = sum(1 / (1 + math.exp(-value)) for _, _, value in inside) / len(inside)
        xs, ys = [x for _, x, _ in inside], [y for y, _, _ in inside]
        box = [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
        expected += [(weights[label] / sum(weights), mean, label, box) for label in range(80)]
    expected.sort(key=lambda item: -item[0])
    for row, (probability, mean, label, box) in enumerate(expected[:40]):
        assert found.scores[row].item() == pytest.approx(probability * mean, rel=1e-4)
        assert (int(found.labels[row]), found.boxes[row].tolist()) == (label, box)


def test_scores_and_masks_equal_those_of_transformers():
    classes, masks = 3 * torch.randn(1, 6, 81), torch.randn(1, 6, 384, 384)
    found = instances(classes[0], masks[0], most=6)
    theirs = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks),
        threshold=0.0,
        return_binary_maps=True,
    )[0]
    by_score = sorted(zip(theirs["segments_info"], theirs["segmentation"], strict=True), key=lambda x: -x[0]["score"])
    order = found.scores.argsort(descending=True)
    assert [info["score"] for info, _ in by_score] == pytest.approx(found.scores[order].tolist(), abs=2e-6)
    assert [info["label_id"] for info, _ in by_score] == found.labels[order].tolist()
    assert found.masks is not None
    assert torch.equal(torch.stack([mask for _, mask in by_score]).bool(), found.masks[order])


def test_extents_by_hand():
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 3, 4] = True
    masks[1, 2, 1:4] = True
    masks[2] = True
    assert extents(masks).tolist() == [[0, 0, 5, 4], [1, 2, 4, 3], [0, 0, 5, 4]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (800, 800)), ((60, 30), (1333, 667)), ((30, 60), (667, 1333)), ((64, 48), (1067, 800))],
)
def test_the_longer_or_the_shorter_side_decides(size, expected):
    levels = resized(Image.new("L", size))
    assert (levels.shape[2], levels.shape[1]) == expected


@pytest.mark.parametrize("short", [5, 11])
def test_resizing_equals_a_slow_loop(monkeypatch, short):
    monkeypatch.setattr(mask2former, "SHORT_SIDE", short)
    image = picture(9, 7)
    levels = resized(image)
    source = np.asarray(image, dtype=np.float64)
    height, width = levels.shape[1:]
    assert (height, width) == (short, int(9 * short / 7 + 0.5))
    for y in range(height):
        for x in range(width):
            v, u = max((y + 0.5) * 7 / height - 0.5, 0), max((x + 0.5) * 9 / width - 0.5, 0)
            top, left = int(v), int(u)
            below, right = min(top + 1, 6), min(left + 1, 8)
            rows = [source[row, left] * (1 - u + left) + source[row, right] * (u - left) for row in (top, below)]
            exact = rows[0] * (1 - v + top) + rows[1] * (v - top)
            assert np.abs(levels[:, y, x].numpy() - exact).max() <= 0.5 + 1e-4
    assert torch.equal(levels, levels.round())


def test_normalisation_follows_padding():
    """mmdet pads with gray of level 128, so that the padding is not the mean colour."""
    levels = torch.tensor([123.675, 116.28 + 57.12, 0.0])[:, None, None].expand(3, 33, 64)
    padded = padded_input(levels)
    assert padded.shape == (3, 64, 64)
    assert torch.equal(padded[:, :33], levels)
    assert torch.equal(padded[:, 33:], torch.full((3, 31, 64), 128.0))
    pixels = normalised(padded)
    assert pixels[:, 0, 0].tolist() == pytest.approx([0, 1, -103.53 / 57.375])
    assert pixels[:, 33, 0].tolist() == pytest.approx([4.325 / 58.395, 11.72 / 57.12, 24.47 / 57.375])


def test_the_network_sees_gray_padding(folder, monkeypatch):
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 33)
    detector, seen = Mask2FormerDetector(folder), []

    class Net:
        device = torch.device("cpu")

        def __call__(self, pixels):
            seen.append(pixels[0])
            return torch.zeros(1, 1, 81), torch.zeros(1, 1, 16, 16)

    monkeypatch.setattr(detector, "_net", Net())
    detector.detect(Image.new("RGB", (33, 33), (0, 0, 0)))
    gray, black = normalised(
        torch.tensor([[128.0] * 3, [0.0] * 3])[..., None, None].transpose(0, 1).squeeze(-1)
    ).unbind(1)
    assert torch.allclose(seen[0][:, :33, :33], black[..., None].expand(3, 33, 33))
    assert torch.allclose(seen[0][:, 33:], gray[..., None].expand(3, 31, 64))


@pytest.mark.parametrize("broken", ["classes", "masks"])
def test_logits_that_are_not_finite_are_refused(broken):
    classes, masks = torch.randn(3, 81), torch.randn(3, 4, 4)
    (classes if broken == "classes" else masks).fill_(math.nan)
    with pytest.raises(
        ValueError, match="expected finite boxes and scores, got NaN or infinity in 40 of 40; check the"
    ):
        instances(classes, masks, most=40)


def test_the_network_is_that_of_transformers(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "requires_backends", lambda *_: None)
        theirs = modeling_mask2former.Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    detector, pixels = Mask2FormerDetector(folder), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(pixels)
        classes, masks = detector._net(pixels)
    assert torch.equal(classes, expected.class_queries_logits)
    assert torch.equal(masks, expected.masks_queries_logits)
    weights = {name: item for name, item in theirs.state_dict().items() if not name.startswith("criterion.")}
    assert detector.weights_hash == state_hash(weights)


def test_a_picture_is_detected_in_its_own_size(folder, monkeypatch):
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 64)
    found = Mask2FormerDetector(folder).detect(picture(20, 15).convert("P"))
    assert found.masks is not None
    assert found.masks.shape == (len(found.scores), 15, 20)
    assert len(found.scores) <= 100
    assert torch.equal(found.boxes, extents(found.masks))
    assert found.scores.min() > 0
    assert found.scores.max() < 1


def test_what_a_mask_covers_in_the_padding_does_not_count(folder, monkeypatch):
    detector = Mask2FormerDetector(folder)
    masks = torch.full((1, 1, 248, 200), -4.0)
    masks[:, :, 230:] = 4.0  # from pixel 920 of 976 of the resized picture, and the padding up to 992

    class Net:
        device = torch.device("cpu")

        def __call__(self, pixels):
            assert pixels.shape == (1, 3, 992, 800)
            return torch.eye(81)[None, :1] * 50, masks

    monkeypatch.setattr(detector, "_net", Net())
    found = detector.detect(picture(400, 488))
    assert found.boxes[0].tolist() == [0, 460, 400, 488]
    assert found.scores[0].item() == pytest.approx(1 / (1 + math.exp(-4)), abs=0.01)


def test_another_number_of_classes_is_refused(tmp_path):
    Mask2FormerNet(config(classes=79)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected a Mask2Former of the 80 COCO classes in .*, got one of 79; use one"
    ):
        Mask2FormerDetector(tmp_path)


def test_thresholds_are_those_of_geneval_unless_stated(folder):
    detector = Mask2FormerDetector(folder, threshold=0.4)
    assert (detector.threshold, detector.counting_threshold, detector.official) == (0.4, 0.9, False)


def test_preparation_is_described(folder):
    assert Mask2FormerDetector(folder).describe() == {
        "sides": [1333, 800],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "padding": 128,
    }
