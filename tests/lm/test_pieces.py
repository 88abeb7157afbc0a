"""Text to ids and back through both kinds of pieces, and what neither takes."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from smalti.lm.pieces import MODEL_FILE, TOKENIZER_FOLDER, HubPieces, SentencePieces
from smalti.lm.vocabulary import Vocabulary

TEXTS = ("a red circle", "a blue square", "how many squares ?")
WORDS = {"[UNK]": 0, "[CLS]": 1, "a": 2, "red": 3, "circle": 7}


def words() -> PreTrainedTokenizerFast:
    """Ids with a gap; puts [CLS] before a text unless it is told not to."""
    model = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", cls_token="[CLS]")


def byte_pairs() -> PreTrainedTokenizerFast:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options = {"special_tokens": ["<|end|>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    model.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=280, show_progress=False, **options))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>")


def sentences() -> SentencePieces:
    return SentencePieces(Vocabulary.train(TEXTS).model)


def test_a_sentencepiece_model_names_its_pieces():
    found = sentences()
    assert (found.size, found.unknown) == (10, 0)
    assert found.names()[0] == "<unk>"
    assert {name.lstrip("\u2581") for name in found.names()[1:]} == {word for text in TEXTS for word in text.split()}
    assert [found.names()[i] for i in found.encode("red ?")] == ["\u2581red", "\u2581?"]
    assert found.decode(found.encode("how many red squares")) == "how many red squares"


def test_a_sentencepiece_model_is_saved_as_it_was_given(tmp_path):
    found = sentences()
    assert found.save(tmp_path) == [MODEL_FILE]
    assert (tmp_path / MODEL_FILE).read_bytes() == found.model
    assert SentencePieces.from_file(tmp_path / MODEL_FILE).names() == found.names()


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_bytes_that_are_no_sentencepiece_model(tmp_path, content):
    message = f"sentencepiece model was expected, got {len(content)} bytes that are none; give the content of a .model"
    with pytest.raises(ValueError, match=message):
        SentencePieces(content)
    (tmp_path / "own.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SentencePieces.from_file(tmp_path / "own.model")


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected at .*/own.model, got no such file; give the path of a .model"
    ):
        SentencePieces.from_file(tmp_path / "own.model")


def test_a_tokenizer_keeps_its_ids_and_adds_nothing():
    found = HubPieces(words())
    assert (found.size, found.unknown) == (8, 0)  # up to the highest id
    assert found.encode("a red circle") == [2, 3, 7]
    assert found.encode("a blue circle") == [2, 0, 7]
    assert found.encode("") == []
    assert found.names() == ["[UNK]", "[CLS]", "a", "red", "", "", "", "circle"]


def test_decoding_leaves_out_special_tokens_and_empty_rows():
    found = HubPieces(words(), 20)
    assert found.decode([1, 2, 4, 3, 7, 19]) == "a red circle"
    assert found.decode([]) == ""


def test_bytes_write_every_text():
    found = HubPieces(byte_pairs(), 512)
    assert (found.size, found.unknown) == (512, None)
    for text in ("a red circle", "  zw\u00f6lf \u2603\n<|image|>", "\U0001f9e9"):
        ids = found.encode(text)
        assert max(ids) < 280
        assert found.decode(ids) == text
    assert found.decode([0, *found.encode("a"), 0]) == "a"


def test_a_tokenizer_in_plain_python_is_taken_too(tmp_path):
    found = HubPieces(ByT5Tokenizer(), 500)  # a byte b is 3 + b; 259 to 383 are special
    assert found.encode("red") == [3 + ord(letter) for letter in "red"]
    assert found.decode([1, *found.encode("red"), 383, 384, 450]) == "red"
    assert f"{TOKENIZER_FOLDER}/tokenizer_config.json" in found.save(tmp_path)
    assert HubPieces.from_folder(tmp_path / TOKENIZER_FOLDER, 500).names() == found.names()


@pytest.mark.parametrize("rows", [0, 7])
def test_rows_for_less_than_the_tokenizer_are_an_error(rows):
    message = f"rows must be at least 8, one more than the highest id of the tokenizer, got {rows}; give the number of"
    with pytest.raises(ValueError, match=message):
        HubPieces(words(), rows)


def test_tokens_added_too_late_are_an_error():
    tokenizer = byte_pairs()
    found, wider = HubPieces(tokenizer), HubPieces(tokenizer, 281)
    tokenizer.add_tokens(["zebra"])
    assert found.decode(found.encode("a red")) == "a red"
    assert wider.encode("zebra") == [280]
    message = "must write ids below its 280 rows, got 280 in 'a zebra'; make the vocabulary after the last token"
    with pytest.raises(ValueError, match=message):
        found.encode("a zebra")


@pytest.mark.parametrize(
    ("vocabulary", "named"), [({}, "none"), ({"[UNK]": 0, "[PAD]": 1}, r"\[PAD\], \[UNK\]")], ids=["empty", "special"]
)
def test_a_tokenizer_of_special_tokens_alone_is_an_error(vocabulary, named):
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    options = {} if not vocabulary else {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    message = rf"with pieces was expected, got a \w+ that has special tokens alone \({named}\); load it from a folder"
    with pytest.raises(ValueError, match=message):
        HubPieces(PreTrainedTokenizerFast(tokenizer_object=model, **options))


def test_a_model_folder_without_its_tokenizer_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"got a GPT2\w+ that has special tokens alone \(<\|endoftext\|>\); load it"):
        HubPieces.from_folder(tmp_path)


@pytest.mark.parametrize("make", [words, byte_pairs])
def test_a_tokenizer_saved_and_loaded_is_the_same(tmp_path, make):
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("later", normalized=False)])
    found = HubPieces(tokenizer, 300)
    files = found.save(tmp_path)
    assert files == [f"{TOKENIZER_FOLDER}/tokenizer.json", f"{TOKENIZER_FOLDER}/tokenizer_config.json"]
    loaded = HubPieces.from_folder(tmp_path / TOKENIZER_FOLDER, 300)
    assert (loaded.names(), loaded.unknown) == (found.names(), found.unknown)
    assert loaded.encode("a red later") == found.encode("a red later")
    assert loaded.fingerprint() == found.fingerprint()


def test_fingerprints_tell_pieces_apart():
    same, rows, other = HubPieces(words()), HubPieces(words(), 9), HubPieces(byte_pairs())
    assert HubPieces(words()).fingerprint() == same.fingerprint()
    assert len({pieces.fingerprint() for pieces in (same, rows, other, sentences())}) == 4


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0", "added_tokens": [], "model": {"type": "Foo"}}'])
def test_a_folder_that_holds_no_tokenizer_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    message = r"does not hold a readable Hugging Face tokenizer \(.+\); save one there with save_pretrained"
    with pytest.raises(ValueError, match=message):
        HubPieces.from_folder(tmp_path)


def test_nothing_is_downloaded(tmp_path):
    message = r"tokenizer was expected in the folder .*/gpt2, got no such folder; save one there with save_pretrained"
    with pytest.raises(FileNotFoundError, match=message):
        HubPieces.from_folder(tmp_path / "gpt2")
