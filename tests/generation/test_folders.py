"""Folders of every kind are loaded as what they hold; others are refused."""

from __future__ import annotations

import json

import pytest
import torch

from smalti.generation.enat import ENATPipeline
from smalti.generation.folders import load_pictures
from smalti.generation.pipeline import TextToImagePipeline
from smalti.lm.enat import ENAT
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder
from smalti.tokenizers.quantizers import VectorQuantizer
from smalti.tokenizers.vq import VQTokenizer

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}


def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    parts = {"dim": 8, "width": 8, "multipliers": (1, 1), "blocks": 1}
    return VQTokenizer(ConvEncoder(**parts), VectorQuantizer(4, 16), ConvDecoder(**parts), 8).eval()


@pytest.mark.parametrize("kind", [TextToImagePipeline, ENATPipeline])
def test_a_folder_is_loaded_as_what_it_holds(tmp_path, kind):
    codes, vocabulary = tokenizer(), Vocabulary.train(["a red circle"])
    if kind is ENATPipeline:
        sizes = {"width": 8, "heads": 1, "encoder_blocks": 1, "decoder_blocks": 1}
        made = ENATPipeline(codes, ENAT.build(codes.spec, codes.fingerprint(), vocabulary, **sizes))
    else:
        backbone = {**LLAMA, "num_attention_heads": 2}
        made = TextToImagePipeline(codes, SharedLM.build(backbone, vocabulary, codes.spec, codes.fingerprint()))
    made.save_pretrained(tmp_path / "model")
    found = load_pictures(tmp_path / "model")
    assert type(found) is kind
    assert torch.equal(found.generate("a red circle", progress=False), made.generate("a red circle", progress=False))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"draws pictures but lacks model_index.json; check the path"):
        load_pictures(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match=r"one of TextToImagePipeline, .* got a StableDiffusionPipeline; load it with"):
        load_pictures(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is damaged .*; save the model again"):
        load_pictures(tmp_path)
