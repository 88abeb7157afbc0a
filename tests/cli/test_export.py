"""``smalti export``: a folder that transformers reads alone, or one sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from smalti.cli.main import main
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec


@pytest.fixture
def plain(tmp_path):
    spec = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("pixel", 7),))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone, words = {"model_type": "llama", **sizes}, Vocabulary.train(["a red circle"])
    model = SharedLM.build(backbone, words, spec, "f00d", embedding={"places": False})
    model.save_pretrained(tmp_path / "model" / "lm")
    return tmp_path / "model"


@pytest.mark.parametrize("part", ["", "lm"])
def test_a_folder_that_transformers_reads(plain, tmp_path, capsys, part):
    assert main(["export", str(plain / part), "--out", str(tmp_path / "out")]) == 0
    model = SharedLM.from_pretrained(plain / "lm")
    assert f"LlamaForCausalLM with {model.vocabulary.size} ids" in capsys.readouterr().out
    ids = torch.arange(model.vocabulary.size)[None]
    states = model.backbone.base_model(inputs_embeds=model.inputs.embed(ids)).last_hidden_state
    expected = model.outputs.logits(states, range(model.vocabulary.size))
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, expected)


def test_what_a_plain_model_cannot_do_is_said(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", str(model), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "learned vectors for the places of codes; train with embedding places false" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "should hold a language model but lacks config.json" in capsys.readouterr().err
