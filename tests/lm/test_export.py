"""A shared model as a plain causal language model: equal logits, tokens of one id, and what cannot be exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from smalti.lm.adapters import Lora, train_part
from smalti.lm.export import export_llama
from smalti.lm.model import SharedLM
from smalti.lm.pretrained import from_backbone
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 2)), (Codebook("semantic", 5), Codebook("pixel", 12)))
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **WIDTHS, "max_position_embeddings": 64}
BACKBONES = {
    "llama": LLAMA,
    "qwen2": {"model_type": "qwen2", **WIDTHS, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
PLAIN = {"head": {"kind": "flat"}, "embedding": {"places": False}}
ROWS = 280  # of the embedding, 266 of them with a piece


def byte_pairs() -> PreTrainedTokenizerFast:
    """Writes every text; 266 pieces and an end token."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=265, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(["a red circle", "a blue square"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|endoftext|>")


def pretrained(folder: Path, kind: str = "llama", **options) -> SharedLM:
    sizes = {"vocab_size": ROWS, "bos_token_id": None, "eos_token_id": 265}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**BACKBONES[kind], **sizes)).save_pretrained(folder)
    byte_pairs().save_pretrained(folder)
    lm = from_backbone(folder, None, SPEC, "f00d", start="random", **PLAIN, **options)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return lm


def scratch(**options) -> SharedLM:
    vocabulary = Vocabulary.train(["a red circle", "a blue square"])
    return SharedLM.build(LLAMA, vocabulary, SPEC, "f00d", **{**PLAIN, **options}).eval()


def check_logits(lm: SharedLM, folder: Path):
    """That plain logits of a sentence with a picture are those of the model; returns the plain model."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = lm.layout.collate(
        [lm.layout.text_to_image("a red circle", torch.tensor([[0, 11], [4, 3], [2, 7], [1, 0]]))]
    )
    with torch.no_grad():
        expected = lm.outputs.logits(lm.hidden(found), range(lm.vocabulary.size))
        torch.testing.assert_close(plain(found.tokens[..., 0]).logits, expected)
    assert expected.std() > 0.01
    return plain


@pytest.mark.parametrize("rows", ["apart", "joined"])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_a_plain_model_gives_equal_logits(tmp_path, kind, rows):
    lm = pretrained(tmp_path / "base", kind, rows=rows)
    export_llama(lm, tmp_path / "plain")
    plain = check_logits(lm, tmp_path / "plain")
    assert type(plain) is type(lm.backbone)
    assert plain.config.vocab_size == lm.vocabulary.size == ROWS + 8 + 5 + 12
    assert plain.config.tie_word_embeddings == (kind != "llama" and rows == "joined")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a small model with a Hugging Face tokenizer, and the model."""
    folder = tmp_path_factory.mktemp("exported")
    lm = pretrained(folder / "base")
    export_llama(lm, folder / "plain")
    return folder / "plain", lm


def test_every_special_and_code_is_one_id(exported):
    folder, lm = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for i, name in enumerate(lm.vocabulary.tokens(), lm.vocabulary.text_size):
        assert tokenizer.encode(name, add_special_tokens=False) == [i]
        assert tokenizer.encode(f"a{name}red", add_special_tokens=False)[1] == i
        assert tokenizer.decode([i]) == name
    assert len(tokenizer) == lm.vocabulary.size


def test_a_prompt_in_words_is_the_prompt_of_the_model(exported):
    folder, lm = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("<bos>a red circle<image>", add_special_tokens=False)
    assert ids == lm.layout.prompt("a red circle").rows[:, 0].tolist()


def test_codes_are_part_of_an_answer_and_specials_are_not(exported):
    folder, lm = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [*lm.vocabulary.encode("a red circle"), lm.vocabulary.special("<image>"), lm.vocabulary.block("pixel")[7]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle<pixel_07>"


def test_settings_name_the_special_tokens(exported):
    folder, lm = exported
    expected = [lm.vocabulary.special(f"<{name}>") for name in ("bos", "eos", "pad")]
    settings, tokenizer = GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for found in (settings, tokenizer, AutoConfig.from_pretrained(folder)):
        assert [found.bos_token_id, found.eos_token_id, found.pad_token_id] == expected


def test_the_vocabulary_is_there_too(exported):
    folder, lm = exported
    loaded = Vocabulary.from_pretrained(str(folder))
    assert (list(loaded.tokens()), loaded.size) == (list(lm.vocabulary.tokens()), lm.vocabulary.size)


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    lm = pretrained(tmp_path / "base").train()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    export_llama(lm, tmp_path / "plain")
    assert all(torch.equal(before[name], value) for name, value in lm.state_dict().items())
    assert all(module.training for module in lm.modules())
    assert lm.backbone.config.vocab_size == ROWS
    assert len(lm.vocabulary.pieces.tokenizer) == 266


def test_a_model_from_scratch_has_its_pieces_beside_it(tmp_path):
    lm = scratch()
    export_llama(lm, tmp_path)
    check_logits(lm, tmp_path)
    assert "tokenizer.json" not in {file.name for file in tmp_path.iterdir()}
    assert Vocabulary.from_pretrained(str(tmp_path)).model == lm.vocabulary.model


def test_codes_alone_can_be_exported(tmp_path):
    lm = SharedLM.build(LLAMA, Vocabulary(None), SPEC, "f00d", **PLAIN).eval()
    export_llama(lm, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config.vocab_size == 17
    assert plain.generation_config.eos_token_id is None


def test_adapters_are_merged_in_the_file_alone(tmp_path):
    lm = pretrained(tmp_path / "base")
    train_part(lm, Lora(rank=2))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    export_llama(lm, tmp_path / "plain")
    plain = check_logits(lm, tmp_path / "plain")
    assert not any("lora" in name for name in plain.state_dict())
    assert any("lora" in name for name in lm.state_dict())


def test_bfloat16_stays(tmp_path):
    export_llama(scratch().to(torch.bfloat16), tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": {"kind": "depth", "heads": 2}}, "a depth head; train with head kind flat"),
        ({"head": {"kind": "parallel"}}, "a parallel head; train with head kind flat"),
        ({"embedding": {}}, "learned vectors for the places of codes; train with embedding places false"),
        ({"rotary": "axial"}, "axial places; train with rotary sequence"),
        ({"vectors": {"dim": 3}}, "vectors as conditions; train on captions, without vectors"),
    ],
)
def test_what_a_plain_model_cannot_do_is_an_error(tmp_path, options, reason):
    with pytest.raises(ValueError, match=f"^a plain language model reads and writes one id a step, got {reason}$"):
        export_llama(scratch(**options), tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_other_conditions_and_embeddings_are_an_error(tmp_path):
    classes = SharedLM.build(LLAMA, Vocabulary(None), SPEC, "f00d", classes=3, **PLAIN)
    with pytest.raises(ValueError, match="3 classes as conditions; train on captions, with classes 0"):
        export_llama(classes, tmp_path / "plain")
    lm = scratch()
    lm.config.embedding = {"kind": "concat", "places": False}
    with pytest.raises(ValueError, match="codes that enter by concat; train with embedding kind sum"):
        export_llama(lm, tmp_path / "plain")


def test_logits_that_differ_are_an_error_and_leave_no_folder(tmp_path):
    fields = {**LLAMA, "model_type": "gemma2", "head_dim": 8, "num_key_value_heads": 1}  # which scales what it reads
    lm = SharedLM.build(fields, Vocabulary.train(["a red circle"]), SPEC, "f00d", **PLAIN)
    with pytest.raises(
        ValueError, match=r"the one it was made of, got a gemma2 whose logits differ by .*; use another"
    ):
        export_llama(lm, tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_has_such_a_token_is_an_error(tmp_path):
    lm = pretrained(tmp_path / "base")
    lm.vocabulary.pieces.tokenizer.add_tokens(["<unused_267>"])
    with pytest.raises(
        ValueError, match=r"must write <pad> as the id 280, got \[279\]; use a text tokenizer whose ids"
    ):
        export_llama(lm, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
