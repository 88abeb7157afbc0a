"""``smalti eval reconstruction`` with decoders beside the tokenizer's own: scores, sheet, other commands, refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from PIL import Image
from transformers import ViTConfig, ViTModel

from smalti.eval.protocol import read_result
from smalti.generation.diffusion import DecoderSampling, DiffusionDecoder
from smalti.tokenizers.base import VisualTokenizer
from smalti.tokenizers.qformer import QFormer
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.seed import SeedTokenizer
from smalti.tokenizers.vision import VisionTower

SIDE = 16


def diffusion(tokenizer, steps=2):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16}
    shape = {"in_channels": 3, "out_channels": 3, "sample_size": SIDE, "patch_size": 4}
    denoiser = PixArtTransformer2DModel(**sizes, **shape, norm_num_groups=1)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return DiffusionDecoder.build(tokenizer, denoiser, scheduler, sampling=DecoderSampling(steps)).eval()


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
    """Folders of a decoder, of a vision model, and of a tokenizer without pixels with a decoder of its own."""
    folder = tmp_path_factory.mktemp("parts")
    diffusion(VisualTokenizer.from_pretrained(model / "tokenizer")).save_pretrained(folder / "decoder")
    torch.manual_seed(0)
    tower = VisionTower(SIDE, patch_size=4, width=16, layers=2, heads=2)
    bare = SeedTokenizer(tower, QFormer(6, 16, 2, 2, 32, 16, reading="attention"), VectorQuantizer(4, 16)).eval()
    bare.save_pretrained(folder / "seed")
    diffusion(bare).save_pretrained(folder / "seed-decoder")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **sizes)).save_pretrained(folder / "vit")
    return folder


def command(*options):
    return ("eval", "reconstruction", "scenes:small", "--limit", 10, "--device", "cpu", *options)


def test_decoders_stand_beside_the_tokenizers_own(model, parts, tmp_path, answers):
    networks = ("--extractor", parts / "vit", "--teacher", parts / "vit", "--perceptual", parts / "vit")
    decoders = ("--decoder", parts / "decoder", "--decoder", f"again={parts / 'decoder'}")
    options = (*networks, *decoders, "--tokenizer", model, "--sheet", tmp_path / "s.png")
    lines = answers(*command(*options, "--batch", 4, "--out", tmp_path / "a.json"))
    result = read_result(tmp_path / "a.json")
    found = result.scores["decoders"]
    assert list(found) == ["pixel", "decoder", "again"]
    assert found["decoder"] == found["again"]
    for scores in found.values():
        assert {"psnr", "ssim", "l1", "rfid", "perceptual", "agreement", "agreement_chance"} <= set(scores)
    assert result.scores["tokens"] == 16
    assert result.protocol.sampler["decoder"]["class"] == "DiffusionDecoder"
    assert result.protocol.sampler["decoder"]["sampling"] == {"steps": 2, "guidance": 1.0}
    assert result.model["decoder again"].startswith("DiffusionDecoder ")
    assert any(line.split()[:1] == ["decoders.decoder.agreement"] for line in lines)
    assert f"wrote {tmp_path / 's.png'}: 8 pictures, and what 3 decoders make of them" in lines
    assert Image.open(tmp_path / "s.png").width > 8 * 96
    answers(*command(*options, "--batch", 10, "--out", tmp_path / "b.json"))
    table = answers("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert any("decoders.decoder.psnr" in line for line in table)
    answers("report", tmp_path / "a.json", "--out", tmp_path / "report.html")
    assert "decoders.decoder.agreement" in (tmp_path / "report.html").read_text()


def test_a_tokenizer_without_pixels_is_scored_by_its_decoder_alone(parts, tmp_path, answers):
    options = ("--tokenizer", parts / "seed", "--decoder", f"flow={parts / 'seed-decoder'}")
    lines = answers(*command(*options, "--out", tmp_path / "a.json"))
    assert list(read_result(tmp_path / "a.json").scores["decoders"]) == ["flow"]
    assert "  this SeedTokenizer has no pixel decoder: the scores are those of --decoder alone" in lines


def test_wrong_decoders_are_told_in_one_line(model, parts, fails):
    own = ("--decoder", parts / "decoder")
    assert "decoders must have different names, got 'decoder' twice" in fails(*command(*own, *own))
    assert "--decoder must be a decoder's folder, got 'nowhere', which is none" in fails(
        *command("--decoder", "a=nowhere")
    )
    line = fails(*command("--tokenizer", parts / "seed", *own))
    assert "this decoder was trained for the codes of tokenizer" in line
    assert "got SeedTokenizer" in line
    assert "should hold a decoder but lacks decoder.json" in fails(*command("--decoder", parts / "vit"))
    line = fails(*command("--tokenizer", model, "--decoder", f"pixel={parts / 'decoder'}"))
    assert "must be called otherwise than 'pixel'" in line
    assert "a decoder, got a SeedTokenizer without one" in fails(*command("--tokenizer", parts / "seed"))
    assert "--sheet must end in .png" in fails(*command("--sheet", "s.jpg"))
