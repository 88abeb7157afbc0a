"""Detectors without masks against transformers' own outputs, and class names against COCO's."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedTokenizerFast,
    ResNetConfig,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.utils import is_timm_available

from smalti.eval.detection import mask2former
from smalti.eval.detection.box_detectors import GAPS, RENAMED, DetrDetector, Owlv2Detector, coco_labels, corners
from smalti.eval.detection.mask2former import normalised, resized
from smalti.eval.geneval_prompts import COCO_NAMES
from smalti.eval.protocol import state_hash

COCO = [next((own for own, other in RENAMED.items() if other == name), name) for name in COCO_NAMES]
NAMES = ["N/A", *COCO[:46], "street sign", *COCO[46:]]  # ids from 1, with a hole


def detr_config(names=NAMES, **more):
    widths = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    return DetrConfig(
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=40,
        id2label=dict(enumerate(names)),
        label2id={name: at for at, name in enumerate(names)},
        **widths,
        **more,
    )


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    path = tmp_path_factory.mktemp("detr")
    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    torch.manual_seed(3)
    DetrForObjectDetection(detr_config(backbone_config=backbone, init_std=1.0)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    path = tmp_path_factory.mktemp("owlv2")
    words = [
        "!",
        "[BOS]",
        "[UNK]",
        *sorted({word for name in COCO_NAMES for word in name.split()} | {"a", "photo", "of"}),
    ]
    words.append("[EOS]")  # the highest id is where the text is pooled
    pieces = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[BOS]", 1), ("[EOS]", len(words) - 1)]
    pieces.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="!", unk_token="[UNK]").save_pretrained(path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": len(words) - 1}
    torch.manual_seed(3)
    vision = {"image_size": 16, "patch_size": 4}
    Owlv2ForObjectDetection(
        Owlv2Config(text_config=sizes | text | {"pad_token_id": 0}, vision_config=sizes | vision, projection_dim=8)
    ).save_pretrained(path)
    return path


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_ids_are_mapped_by_name():
    labels = coco_labels(dict(enumerate(NAMES)))
    assert labels.tolist() == [-1, *range(46), -1, *range(46, 80)]
    assert coco_labels(dict(enumerate(COCO_NAMES))).tolist() == list(range(80))
    assert COCO_NAMES[labels[NAMES.index("keyboard")]] == "computer keyboard"
    assert not GAPS & set(COCO_NAMES)


def test_names_that_are_not_coco_s_are_listed():
    names = [*NAMES[:-2], "hair dryer", "brush"]
    with pytest.raises(
        ValueError, match=r"expected a detector of the 80 COCO classes, got unknown hair dryer, brush; "
    ):
        coco_labels(dict(enumerate(names)))
    with pytest.raises(ValueError, match=r"80 COCO classes, got no hair drier, toothbrush; use one trained on COCO"):
        coco_labels(dict(enumerate(NAMES[:-2])))


def test_corners_by_hand():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.9, 0.1, 0.4, 0.4]])
    expected = [[2, 6, 6, 10], [5.6, 0, 8, 4.8]]
    assert torch.allclose(corners(boxes, 8, 16, Image.new("L", (8, 16))), torch.tensor(expected))


def test_detr_equals_transformers(detr, monkeypatch):
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 64)
    image, model = picture(16, 12), DetrForObjectDetection.from_pretrained(detr).eval()
    found = DetrDetector(detr).detect(image)
    with torch.no_grad():
        output = model(normalised(resized(image))[None])
    theirs = DetrImageProcessorPil().post_process_object_detection(output, threshold=0.0, target_sizes=[(12, 16)])[0]
    names = [NAMES[label] for label in theirs["labels"].tolist()]
    kept = [row for row, name in enumerate(names) if name not in GAPS]
    assert 0 < len(kept) < len(names)  # both kinds were tried
    assert torch.allclose(found.scores, theirs["scores"][kept])
    assert [COCO_NAMES[label] for label in found.labels.tolist()] == [
        RENAMED.get(names[row], names[row]) for row in kept
    ]
    limits = torch.tensor([16.0, 12, 16, 12])
    assert torch.allclose(found.boxes, theirs["boxes"][kept].clamp(min=torch.zeros(4), max=limits), atol=1e-4)
    assert found.masks is None


def test_detr_of_other_classes_is_refused(detr, tmp_path):
    model = DetrForObjectDetection.from_pretrained(detr)
    model.config.id2label[3] = "rickshaw"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got unknown rickshaw"):
        DetrDetector(tmp_path)


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_a_backbone_of_timm_is_refused_without_timm(tmp_path):
    detr_config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ImportError, match=r"the detr model in .* needs a package that is not installed: .*timm"):
        DetrDetector(tmp_path)


@pytest.mark.parametrize("size", [(16, 16), (20, 10), (7, 9)])
def test_owlv2_equals_transformers(owlv2, size):
    detector, model = Owlv2Detector(owlv2), Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    image = picture(*size)
    found = detector.detect(image)
    tokens = PreTrainedTokenizerFast.from_pretrained(owlv2)(
        [f"a photo of a {name}" for name in COCO_NAMES], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(tokens["input_ids"], detector._input(image), tokens["attention_mask"])
    scores, labels = output.logits[0].sigmoid().max(-1)
    assert torch.allclose(found.scores, scores, atol=1e-6)
    assert torch.equal(found.labels, labels)
    center, half = output.pred_boxes[0, :, :2], output.pred_boxes[0, :, 2:] / 2
    boxes = torch.cat([center - half, center + half], 1) * max(size)
    assert torch.allclose(found.boxes, boxes.clamp(torch.zeros(4), torch.tensor([*size, *size]).float()), atol=1e-4)
    assert found.masks is None


def test_owlv2_sees_a_square(owlv2):
    detector = Owlv2Detector(owlv2)
    image = picture(16, 8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    seen = detector._input(image)[0] * std + mean
    assert torch.allclose(seen[:, :8], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, atol=1e-6)
    assert torch.allclose(seen[:, 8:], torch.tensor(0.5), atol=1e-6)


def test_thresholds_are_arguments(detr, owlv2):
    for detector in (DetrDetector(detr, threshold=0.5), Owlv2Detector(owlv2, threshold=0.5)):
        assert (detector.threshold, detector.counting_threshold, detector.official) == (0.5, 0.9, False)
    assert DetrDetector(detr).weights_hash == state_hash(DetrForObjectDetection.from_pretrained(detr).state_dict())


def test_detr_s_labels_are_part_of_what_it_is(detr, tmp_path):
    model = DetrForObjectDetection.from_pretrained(detr)
    names = model.config.id2label
    names[1], names[2] = names[2], names[1]
    model.save_pretrained(tmp_path)
    first, second = DetrDetector(detr), DetrDetector(tmp_path)
    assert first.weights_hash == second.weights_hash
    assert first.describe() == DetrDetector(detr).describe()
    assert first.describe()["labels_hash"] != second.describe()["labels_hash"]
    assert json.loads(json.dumps(first.describe())) == first.describe()


def test_owlv2_s_preparation_and_tokenizer_are_part_of_what_it_is(owlv2, tmp_path):
    shutil.copytree(owlv2, tmp_path / "bright")
    shutil.copytree(owlv2, tmp_path / "words")
    stated = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "bright" / "preprocessor_config.json").write_text(json.dumps(stated))
    text = (tmp_path / "words" / "tokenizer.json").read_text()
    text = text.replace('"dog"', '"x"').replace('"cat"', '"dog"').replace('"x"', '"cat"')
    (tmp_path / "words" / "tokenizer.json").write_text(text)
    plain, bright, words = (Owlv2Detector(path) for path in (owlv2, tmp_path / "bright", tmp_path / "words"))
    assert plain.weights_hash == bright.weights_hash == words.weights_hash
    assert plain.describe() == Owlv2Detector(owlv2).describe()
    assert bright.describe() == {**plain.describe(), "mean": [0.0] * 3, "std": [1.0] * 3}
    assert words.describe()["tokens_hash"] != plain.describe()["tokens_hash"]
    assert json.loads(json.dumps(plain.describe())) == plain.describe()


def test_weights_that_are_not_numbers_are_not_silence(detr, owlv2, monkeypatch):
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 64)
    first, second = DetrDetector(detr), Owlv2Detector(owlv2)
    for detector, head in ((first, first._net.class_labels_classifier), (second, second._net.box_head.dense2)):
        head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"expected finite boxes and scores, got NaN or infinity in .*; check the"):
            detector.detect(picture(16, 12))
