"""Pipelines with a decoder of their own: one folder, the same seeds, and another decoder by one argument."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

from smalti.generation.diffusion import DecoderSampling, DiffusionDecoder
from smalti.generation.enat import ENATPipeline
from smalti.generation.folders import load_pictures
from smalti.generation.pictures import seeded
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.enat import ENAT
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
PROMPTS = ["a red circle", "a blue square"]


def tokenizer(seed=0):
    torch.manual_seed(seed)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(dim=4, codebook_size=16), ConvDecoder(**parts), 8).eval()


def decoder(coded, seed=1):
    torch.manual_seed(seed)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16}
    shape = {"in_channels": 3, "out_channels": 3, "sample_size": 8, "patch_size": 4, "norm_num_groups": 1}
    denoiser = PixArtTransformer2DModel(**sizes, **shape)
    return DiffusionDecoder.build(coded, denoiser, FlowMatchEulerDiscreteScheduler(), sampling=DecoderSampling(2))


def language(coded, painter=None):
    torch.manual_seed(2)
    lm = SharedLM.build(LLAMA, Vocabulary.train(["a red circle", "a blue square"]), coded.spec, coded.fingerprint())
    return TextToImagePipeline(coded, lm, painter)


def masked(coded, painter=None):
    torch.manual_seed(2)
    sizes = {"width": 16, "encoder_blocks": 1, "decoder_blocks": 1, "heads": 2, "sampling": {"steps": 2}}
    vocabulary = Vocabulary.train(["a red circle", "a blue square"])
    return ENATPipeline(coded, ENAT.build(coded.spec, coded.fingerprint(), vocabulary, **sizes), painter)


@pytest.mark.parametrize("build", [language, masked])
def test_one_folder_holds_tokenizer_model_decoder_and_scheduler(build, tmp_path):
    coded = tokenizer()
    pipeline = build(coded, decoder(coded))
    pictures = pipeline.generate(PROMPTS, 3, progress=False)
    pipeline.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["decoder"][1] == "DiffusionDecoder"
    assert (tmp_path / "model" / "decoder" / "scheduler" / "scheduler_config.json").is_file()
    read = load_pictures(tmp_path / "model")
    assert type(read) is type(pipeline)
    assert isinstance(read.decoder, DiffusionDecoder)
    assert torch.equal(read.generate(PROMPTS, 3, progress=False), pictures)
    torch.testing.assert_close(read.generate(PROMPTS[1], 3, progress=False)[0], pictures[1], atol=1e-4, rtol=1e-4)
    read.save_pretrained(tmp_path / "again")
    assert torch.equal(load_pictures(tmp_path / "again").generate(PROMPTS, 3, progress=False), pictures)


def test_a_decoder_is_exchanged_by_one_argument(tmp_path):
    coded = tokenizer()
    pipeline, other = language(coded, decoder(coded)), decoder(coded, seed=7)
    pipeline.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "other")
    found = {
        name: TextToImagePipeline.from_pretrained(tmp_path / "model", decoder=given)
        for name, given in {"own": None, "loaded": other, "folder": tmp_path / "other", "pixels": "pixels"}.items()
    }
    drawn = {name: each.generate(PROMPTS, 3, progress=False) for name, each in found.items()}
    assert torch.equal(drawn["own"], pipeline.generate(PROMPTS, 3, progress=False))
    assert torch.equal(drawn["loaded"], drawn["folder"])
    assert not torch.allclose(drawn["own"], drawn["loaded"])
    assert found["pixels"].decoder is None
    assert torch.equal(drawn["pixels"], language(coded).generate(PROMPTS, 3, progress=False))
    assert torch.equal(pipeline.with_decoder(None).generate(PROMPTS, 3, progress=False), drawn["pixels"])


def test_everything_that_shows_pictures_uses_the_decoder():
    coded = tokenizer()
    pipeline, images = language(coded, decoder(coded)), torch.rand(2, 3, 8, 8) * 2 - 1
    painter = pipeline.decoder
    assert painter is not None
    codes = coded.encode(images)
    assert torch.equal(pipeline.rebuild(images), painter.decode(codes, seeded(0, 2)))
    told = []
    pipeline.generate(PROMPTS, 3, progress=told.append)
    assert pipeline.preview(told[-1]).shape == (2, 3, 8, 8)
    written = [part for part in pipeline.write(["a red circle"], open_image=True) if not isinstance(part, str)]
    plain = [part for part in language(coded).write(["a red circle"], open_image=True) if not isinstance(part, str)]
    assert written[0].shape == plain[0].shape
    assert not torch.equal(written[0], plain[0])
    assert pipeline.untrained().decoder is painter


def test_a_decoder_of_another_tokenizer_is_refused(tmp_path):
    coded, other = tokenizer(), tokenizer(5)
    said = "this decoder was trained for the codes of tokenizer .*, got VQTokenizer .*; take the tokenizer it was"
    with pytest.raises(ValueError, match=said):
        language(coded, decoder(other))
    decoder(other).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=said):
        language(coded).with_decoder(tmp_path / "other")


def test_a_folder_that_lost_its_decoder_is_refused(tmp_path):
    coded = tokenizer()
    language(coded, decoder(coded)).save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "decoder")
    with pytest.raises(FileNotFoundError, match=r"decoder should hold a decoder but lacks decoder\.json"):
        TextToImagePipeline.from_pretrained(tmp_path / "model")
    assert TextToImagePipeline.from_pretrained(tmp_path / "model", decoder="pixels").decoder is None
