"""Tokenizers side by side: numbers by hand where they can be, and files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from smalti.data.scene_world import World
from smalti.data.scenes import Scenes
from smalti.eval.ceilings import tokenizer_ceiling
from smalti.eval.comparison import ComparisonData, compare_tokenizer, comparison_protocol, originals
from smalti.eval.comparison_report import write_comparison
from smalti.eval.images.frechet import frechet_distance
from smalti.eval.images.metrics import psnr
from smalti.eval.images.teacher import TeacherFeatures, zero_shot
from smalti.eval.speed import measure, measured
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.dual import DualTokenizer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vision import VisionTower
from smalti.tokenizers.vq import VQTokenizer

SIDE = 16


@pytest.fixture(scope="module")
def data() -> ComparisonData:
    def scenes(split, count):
        return Scenes("small", split, count, size=SIDE, weights={"colors": 1.0})

    return ComparisonData(scenes("validation", 20), scenes("train", 30), scenes("validation", 12), SIDE, batch_size=8)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory, data) -> TeacherFeatures:
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = Vocabulary.train([data.probe_train.caption(index) for index in range(30)] + ["an a"])
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": vocabulary.special("<pad>") + 1, "max_position_embeddings": 6, "projection_size": 16}
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": vocabulary.special("<pad>")}
    torch.manual_seed(0)
    vision = size | {"image_size": SIDE, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder / "model")
    vocabulary.save_pretrained(folder)
    return TeacherFeatures(str(folder / "model"), Vocabulary.from_pretrained(str(folder)))


def plain() -> VQTokenizer:
    torch.manual_seed(1)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(8, 16), ConvDecoder(**parts), SIDE).eval()


def dual() -> DualTokenizer:
    torch.manual_seed(1)
    tower, decoder = VisionTower(SIDE, 8, 16, 2, 2), ConvDecoder(16, 8, (1, 1, 1, 2), 1)
    return DualTokenizer(tower, VectorQuantizer(8, 16), VectorQuantizer(8, 12, depth=2), decoder, 1, 0).eval()


@pytest.fixture
def rows(tmp_path, data, extractor):
    found = []
    for name, tokenizer in (("plain", plain()), ("dual", dual())):
        tokenizer.save_pretrained(tmp_path / name)
        found.append(compare_tokenizer(name, tmp_path / name, data, extractor, shown=3))
    return found


def test_a_world_adds_the_ceiling(tmp_path, data, extractor):
    torch.manual_seed(1)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    VQTokenizer(ConvEncoder(**parts), VectorQuantizer(8, 16), ConvDecoder(**parts), 30).save_pretrained(tmp_path)
    scenes = replace(data, size=30, world="small")
    row = compare_tokenizer("plain", tmp_path, scenes, extractor)
    expected = tokenizer_ceiling(VisualTokenizer.from_pretrained(tmp_path).eval(), World.named("small"))
    assert row.scores["ceiling"] == expected.scene.overall
    assert row.scores["ceiling_tasks"].keys() == expected.scene.tasks.keys()
    assert "small world" in comparison_protocol(scenes, extractor, ["plain"]).extra["ceiling"]
    assert "ceiling" not in comparison_protocol(data, extractor, ["plain"]).extra


def test_numbers_are_those_of_the_parts(rows, data, extractor):
    images = originals(data, 20)
    for row, tokenizer in zip(rows, (plain(), dual()), strict=True):
        with torch.inference_mode():
            codes = tokenizer.encode(images)
            rebuilt = tokenizer.decode(codes)
        assert row.scores["psnr"] == pytest.approx(float(psnr(rebuilt, images).mean()), rel=1e-5)
        distance = frechet_distance(extractor.images(rebuilt), extractor.images(images))
        assert row.scores["rfid"] == pytest.approx(distance, rel=1e-3, abs=1e-6)
        assert torch.allclose(row.pictures, rebuilt[:3], atol=1e-5)
        assert row.scores["parameters"] == sum(p.numel() for p in tokenizer.parameters())
        assert row.fingerprint == tokenizer.fingerprint()
        for name, columns in tokenizer.spec.slices().items():
            drawn = codes.ids[..., columns].flatten()
            assert row.scores["usage"][name] == pytest.approx(len(drawn.unique()) / dict(sizes(tokenizer))[name])
    first, second = rows[0].scores, rows[1].scores
    assert (first["tokens"], first["bits"]) == (16, 16 * 4)
    assert (second["tokens"], second["bits"]) == (4 * 3, pytest.approx(4 * (4 + 2 * math.log2(12))))
    assert min(first["encode_per_second"], first["decode_per_second"]) > 0
    assert 0 <= first["probe"] <= 1
    assert "zero_shot" not in first
    assert 0 <= second["zero_shot"] <= 1


def sizes(tokenizer):
    return [(book.name, book.size) for book in tokenizer.spec.codebooks]


def test_zero_shot_takes_the_nearest_class():
    classes = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert zero_shot(torch.tensor([[9.0, 1.0], [0.1, 0.2]]), classes).tolist() == [0, 1]


def test_features_do_not_depend_on_the_batch_and_fit_other_sizes(data, extractor):
    images = originals(data, 4)
    assert torch.allclose(extractor.images(images)[1:2], extractor.images(images[1:2]), atol=1e-5)
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    assert extractor.images(large).shape == (4, extractor.dim)
    assert len(extractor.hash) == 64
    with pytest.raises(ValueError, match="at most 6 pieces"):
        extractor.texts(["a red circle a red circle a red circle"])


def test_files_hold_the_table(rows, data, extractor, tmp_path):
    protocol = comparison_protocol(data, extractor, ["plain", "dual"])
    table = write_comparison(tmp_path, "Both", rows, protocol, originals(data, 3), {"plain": 61.0})
    lines = table.splitlines()
    assert lines[0].startswith("| tokenizer | usage | perplexity | PSNR dB |")
    assert lines[2].startswith("| plain |")
    assert lines[2].endswith("| 1 min 01 s |")
    content = json.loads((tmp_path / "tokenizers.json").read_text())
    assert content["plain"]["psnr"] == rows[0].scores["psnr"]
    assert content["model"]["dual"].startswith("DualTokenizer ")
    assert content["protocol"]["weights_hash"] == extractor.hash
    page = (tmp_path / "tokenizers.html").read_text()
    assert "zero-shot" in page
    assert page.count("data:image/png") == 1
    assert (tmp_path / "tokenizers.png").stat().st_size > 0


def test_speed_is_measured_on_the_saved_tokenizer(tmp_path):
    plain().save_pretrained(tmp_path / "plain")
    speed = measure(str(tmp_path / "plain"), 4, 2, "cpu")
    assert (speed.batch, speed.device) == (4, "cpu")
    assert speed.encode > 0


def test_memory_is_that_of_the_tokenizer_however_large_the_process_that_asks(tmp_path):
    plain().save_pretrained(tmp_path / "plain")
    ballast = bytearray(b"1" * (800 << 20))  # more than torch itself takes
    speed = measured(str(tmp_path / "plain"), batch=512, repeats=1)
    assert ballast
    assert 512 * 3 * SIDE * SIDE * 4 / 2**20 < speed.memory < 400


def test_a_teacher_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a SigLIP was expected in .*nowhere"):
        TeacherFeatures(str(tmp_path / "nowhere"), Vocabulary.train(["a"]))
