"""Decoders side by side: numbers of the parts, rows for what is there, files that hold them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from smalti.data.scenes import Scenes
from smalti.data.sources import ImageFolder
from smalti.data.transforms import from_uint8, to_uint8
from smalti.eval.decoder_report import write_decoders
from smalti.eval.decoders import DecoderData, decoder_protocol, decoder_references, score_decoders
from smalti.eval.images.decoded import picture_generators
from smalti.eval.images.decoder_scores import Judges
from smalti.eval.images.extractors import VisionExtractor
from smalti.eval.images.frechet import frechet_distance
from smalti.eval.images.metrics import psnr
from smalti.eval.objects import object_accuracy
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.perceptual import BackboneLoss
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

SIDE, COUNT = 30, 14


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(8, 16), ConvDecoder(**parts), SIDE).eval()


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder)
    network = VisionExtractor(folder)
    return Judges(network, network, perceptual=BackboneLoss(folder))


@pytest.fixture(scope="module")
def data():
    return DecoderData(Scenes("small", "validation", COUNT), (SIDE, SIDE), batch_size=5)


def originals(data):
    return torch.from_numpy(np.stack([data.pictures.pixels(at) for at in range(COUNT)])).permute(0, 3, 1, 2)


def test_numbers_are_those_of_the_parts(tokenizer, judges, data, brush):
    decoder = brush(tokenizer)
    rows = score_decoders("vq", tokenizer, decoder, data, judges, shown=3)
    assert [row.kind for row in rows] == ["pixel", "trained", "untrained"]
    assert decoder.batches == [5, 5, 4]
    images = from_uint8(originals(data))
    with torch.inference_mode():
        codes = tokenizer.encode(images)
        expected = {
            "pixel": tokenizer.decode(codes),
            "trained": decoder.decode(codes, picture_generators(0, 0, COUNT)),
            "untrained": brush(tokenizer, 5.0).decode(codes, picture_generators(0, 0, COUNT)),
        }
    scenes = [data.pictures.scene(at) for at in range(COUNT)]
    for row in rows:
        levels = to_uint8(expected[row.kind])
        assert row.scores["psnr"] == pytest.approx(float(psnr(from_uint8(levels), images).mean()), rel=1e-4)
        before, after = judges.extractor(originals(data)), judges.extractor(levels)
        assert row.scores["rfid"] == pytest.approx(frechet_distance(after, before), rel=1e-2, abs=1e-6)
        cosines = torch.nn.functional.cosine_similarity(before, after)
        assert row.scores["agreement"] == pytest.approx(float(cosines.mean()), rel=1e-4)
        distance = judges.perceptual.distances(from_uint8(levels), images).mean()
        assert row.scores["perceptual"] == pytest.approx(float(distance), rel=1e-2)
        pictures = levels.permute(0, 2, 3, 1).contiguous().numpy()
        assert row.scores["objects"] == object_accuracy(pictures, scenes, data.world).to_dict()
        assert row.scores["images_per_second"] > 0
        assert (row.pictures.int() - levels[:3].int()).abs().max() <= 1
    assert rows[0].scores["parameters"] == sum(weight.numel() for weight in tokenizer.parameters())
    assert rows[1].scores["parameters"] == 1
    assert rows[1].about == f"Brush {decoder.fingerprint()}"
    assert rows[1].scores["psnr"] > rows[2].scores["psnr"]


def test_the_batch_moves_nothing(tokenizer, judges, data, brush):
    other = DecoderData(data.pictures, data.size, batch_size=14)
    one, two = (score_decoders("vq", tokenizer, brush(tokenizer), each, judges) for each in (data, other))
    for first, second in zip(one, two, strict=True):
        for name in ("psnr", "ssim", "l1", "agreement", "agreement_chance", "perceptual"):
            assert first.scores[name] == pytest.approx(second.scores[name], rel=1e-3, abs=1e-5), name


def test_references_are_the_ends_of_the_scale(judges, data):
    found = decoder_references(data, judges, shown=4)
    same, gray = found.rows
    assert (same.kind, same.scores["objects"]["right"]) == ("originals", 1.0)
    assert (gray.kind, gray.scores["objects"]["right"]) == ("gray", 0.0)
    assert gray.scores["psnr"] > 5
    assert torch.equal(found.originals, originals(data)[:4])
    again = decoder_references(DecoderData(data.pictures, data.size, batch_size=3), judges)
    assert again.pictures_hash == found.pictures_hash


def test_what_a_family_or_a_decoder_lacks_has_no_row(judges, data, brush, monkeypatch):
    lasting = type("Lasting", (brush,), {"untrained": None})
    tower = VisionTower(SIDE, patch_size=10, width=16, layers=2, heads=2)
    qformer = QFormer(6, 16, 2, 2, 32, 16, reading="attention", dropout=0.0)
    bare = SeedTokenizer(tower, qformer, VectorQuantizer(4, 16)).eval()
    monkeypatch.setattr(bare, "decode", lambda codes: torch.zeros(len(codes), 3, SIDE, SIDE))  # for the brush
    assert [row.kind for row in score_decoders("seed", bare, lasting(bare), data, judges)] == ["trained"]


def test_other_pictures_have_no_objects(tokenizer, judges, brush, tmp_path):
    scenes = Scenes("small", "validation", 3)
    for at in range(3):
        scenes.picture(at).save(tmp_path / f"{at}.png")
    data = DecoderData(ImageFolder(tmp_path), (SIDE, SIDE))
    rows = score_decoders("vq", tokenizer, brush(tokenizer), data, judges)
    references = decoder_references(data, judges)
    assert all("objects" not in row.scores for row in (*rows, *references.rows))
    assert [row.kind for row in references.rows] == ["gray"]
    assert "objects" not in decoder_protocol(data, judges, references, {"vq": brush(tokenizer)}).extra


def test_what_does_not_fit_is_refused(tokenizer, judges, data, brush):
    with pytest.raises(ValueError, match=r"got scenes of 30x30 pixels for decoders of 16x16; set the size"):
        DecoderData(data.pictures, (16, 16))
    other = DecoderData(Scenes("small", "validation", 3, size=24), (24, 24))
    with pytest.raises(ValueError, match=r"pictures of one size, got vq for \(30, 30\) beside \(24, 24\)"):
        score_decoders("vq", tokenizer, brush(tokenizer), other, judges)
    stranger = VQTokenizer(
        ConvEncoder(8, 8, (1, 1), 1), VectorQuantizer(8, 16), ConvDecoder(8, 8, (1, 1), 1), SIDE
    ).eval()
    with pytest.raises(ValueError, match="this decoder was trained for the codes of tokenizer"):
        score_decoders("vq", stranger, brush(tokenizer), data, judges)


def test_files_hold_the_table(tokenizer, judges, data, brush, tmp_path):
    decoder = brush(tokenizer)
    rows, references = score_decoders("vq", tokenizer, decoder, data, judges), decoder_references(data, judges)
    protocol = decoder_protocol(data, judges, references, {"vq": decoder})
    table = write_decoders(tmp_path, "Decoders", rows, references, protocol, {"vq-decoder": 61.0})
    lines = table.splitlines()
    assert lines[0].startswith("| tokenizer | decoder | scenes right (95 %) | objects found | chance | PSNR dB |")
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| vq", "its own"],
        ["| vq", "trained beside it"],
        ["| vq", "the same, untrained"],
        ["| none", "originals"],
        ["| none", "plain gray"],
    ]
    content = json.loads((tmp_path / "decoders.json").read_text())
    assert content["vq"]["trained"]["psnr"] == rows[1].scores["psnr"]
    assert content["references"]["originals"]["objects"]["right"] == 1
    assert content["model"]["vq.trained"] == f"Brush {decoder.fingerprint()}"
    assert content["protocol"]["sampler"] == {"vq": {"class": "Brush", "bristles": 3}}
    assert content["protocol"]["extra"]["objects"]["threshold"] == 0.75
    assert content["protocol"]["weights_hash"] == judges.extractor.weights_hash
    page = (tmp_path / "decoders.html").read_text()
    assert "trained beside it" in page
    assert page.count("data:image/png") == 1
    assert (tmp_path / "decoders.png").stat().st_size > 0
