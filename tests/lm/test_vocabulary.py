"""One list of ids: text, specials, blocks of codes; and what is said of words that are not in it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import sentencepiece
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import smalti
from smalti.lm.pieces import TOKENIZER_FOLDER, HubPieces
from smalti.lm.vocabulary import LAYOUT_FILE, MODEL_FILE, SPECIALS, Vocabulary, missing_files
from smalti.tokenizers.codes import Codebook

TEXTS = ("a red circle", "a blue square", "how many squares ?")
WORDS = {word for text in TEXTS for word in text.split()}
BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))


HUB_FILES = [f"{TOKENIZER_FOLDER}/tokenizer.json", f"{TOKENIZER_FOLDER}/tokenizer_config.json"]


def vocabulary() -> Vocabulary:
    return Vocabulary.train(TEXTS).with_codebooks(BOOKS)


def words(*names: str) -> PreTrainedTokenizerFast:
    """One id per word, 0 for the unknown."""
    model = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["[UNK]", *names])}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


def hub() -> Vocabulary:
    """6 pieces in 10 rows."""
    return Vocabulary.from_tokenizer(words("a", "red", "circle", "blue", "square"), 10).with_codebooks(BOOKS)


def byte_pairs() -> PreTrainedTokenizerFast:
    """Writes every text: no unknown."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model)


def rewrite(folder: Path, **fields) -> None:
    """Change fields of the saved layout."""
    layout = json.loads((folder / LAYOUT_FILE).read_text())
    (folder / LAYOUT_FILE).write_text(json.dumps(layout | fields))


def test_every_id_means_one_thing():
    found = vocabulary()
    assert found.text_size == 1 + len(WORDS)  # and the unknown piece
    assert [found.special(token) for token in SPECIALS] == list(range(10, 18))
    assert found.block("semantic") == range(18, 23)
    assert found.block("pixel") == range(23, 30)  # two columns share one block
    assert found.size == 30


def test_without_codebooks_only_text_and_specials():
    assert Vocabulary.train(TEXTS).size == 10 + len(SPECIALS)


def test_words_are_one_id_each_and_come_back():
    found = vocabulary()
    ids = found.encode("how many red squares ?")
    assert len(ids) == len(set(ids)) == 5
    assert all(0 < i < found.text_size for i in ids)
    assert found.decode(ids) == "how many red squares ?"
    assert found.encode("") == []


def test_decode_leaves_out_what_is_no_text():
    found = vocabulary()
    framed = [found.special("<bos>"), *found.encode("a red circle"), found.special("<eos>"), found.block("pixel")[3]]
    assert found.decode(framed) == "a red circle"


def test_order_and_repetition_of_texts_do_not_matter():
    assert Vocabulary.train(reversed(TEXTS * 2)).model == Vocabulary.train(TEXTS).model


def test_size_limits_the_pieces():
    assert Vocabulary.train([*TEXTS, "a a a a"], size=4).text_size == 4


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_other_models_split_unknown_words(kind):
    found = Vocabulary.train([*TEXTS, "a circle is a square is a triangle"] * 3, size=40, model_type=kind)
    assert found.decode(found.encode("a scale")) == "a scale"


def test_unknown_words_are_named_with_near_ones():
    message = r"vocabulary of 10 pieces, got 'rde' \(near: red\), 'cirkle' \(near: circle\); reword"
    with pytest.raises(ValueError, match=message):
        vocabulary().encode("a rde cirkle")


def test_unknown_word_without_a_near_one():
    with pytest.raises(ValueError, match=r"got 'xyzzy' \(near: nothing\)"):
        vocabulary().encode("a xyzzy")


@pytest.mark.parametrize("make", [vocabulary, hub])
@pytest.mark.parametrize("token", [*SPECIALS, "<semantic_4>", "<pixel_0>"])
def test_names_of_other_tokens_are_no_text(make, token):
    message = f"must not hold the name of a token .* split into pieces, got '{token}'; remove it from 'a {token}circle'"
    with pytest.raises(ValueError, match=message):
        make().encode(f"a {token}circle")


def test_what_only_looks_like_another_token_is_text():
    found = Vocabulary.from_tokenizer(byte_pairs()).with_codebooks(BOOKS)
    text = "<Image> < pad> <pixel_00> <pixel_> <depth_0> <|image|>"
    assert found.decode(found.encode(text)) == text


def test_training_needs_text():
    with pytest.raises(ValueError, match="trained on captions or questions, got none; name a column"):
        Vocabulary.train(["", "  "])


def test_unknown_special_and_codebook_are_named():
    with pytest.raises(ValueError, match=r"special tokens are <pad>, .*, got '<end>'"):
        vocabulary().special("<end>")
    with pytest.raises(ValueError, match=r"blocks for \['semantic', 'pixel'\], got 'depth'; add it"):
        vocabulary().block("depth")


def test_saved_and_loaded_is_the_same(tmp_path):
    found = vocabulary()
    found.save_pretrained(tmp_path)
    loaded = Vocabulary.from_pretrained(str(tmp_path))
    assert (loaded.model, loaded.codebooks, loaded.size) == (found.model, BOOKS, found.size)
    assert loaded.encode("a blue circle") == found.encode("a blue circle")
    assert sorted(file.name for file in tmp_path.iterdir()) == [LAYOUT_FILE, MODEL_FILE]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"which lacks vocabulary.model, vocabulary.json; save or train"):
        Vocabulary.from_pretrained(str(tmp_path))
    vocabulary().save_pretrained(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"which lacks vocabulary.model; save or train"):
        Vocabulary.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(("name", "content"), [(LAYOUT_FILE, "{"), (LAYOUT_FILE, "{}"), (MODEL_FILE, "no model")])
def test_damaged_files_are_an_error(tmp_path, name, content):
    vocabulary().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"does not hold a readable vocabulary .*; save it again"):
        Vocabulary.from_pretrained(str(tmp_path))


def test_the_files_of_a_sentencepiece_vocabulary_stay_as_they_were(tmp_path):
    built_in = Path(smalti.__file__).parent / "pretrained" / "scenes" / "lm"
    loaded = Vocabulary.from_pretrained(str(built_in))
    loaded.save_pretrained(tmp_path)
    for name in (LAYOUT_FILE, MODEL_FILE):
        assert (tmp_path / name).read_bytes() == (built_in / name).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(built_in / MODEL_FILE))
    assert loaded.encode("a red circle above a blue square") == processor.encode("a red circle above a blue square")
    assert loaded.size == 51 + 8 + 64 + 32 + 1024


@pytest.mark.parametrize("make", [vocabulary, hub])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specials": [s for s in SPECIALS if s not in ("<eos>", "<image>")]}, "its file lacks <eos>, <image>; train"),
        ({"specials": [*SPECIALS[::-1]]}, r"the special tokens \['<pad>', .*, its file says \['<answer>', "),
        ({"specials": [*SPECIALS, "<video>"]}, "its file says .*, '<video>'"),
        ({"specials": 8}, "does not hold a readable vocabulary"),
        ({"codebooks": [["pixel", 7, 2], ["pixel", 5, 1]]}, r"distinct names, got \['pixel', 'pixel'\]; rename one"),
        ({"codebooks": [["pixel", 0, 2]]}, "does not hold a readable vocabulary .*needs size >= 1"),
    ],
)
def test_files_that_disagree_are_an_error(tmp_path, make, change, message):
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("text", [9, 13])
def test_another_number_of_sentencepieces_is_an_error(tmp_path, text):
    vocabulary().save_pretrained(tmp_path)
    rewrite(tmp_path, text=text)
    with pytest.raises(ValueError, match=f"should have 10 text pieces, its file says {text}; train or save it again"):
        Vocabulary.from_pretrained(str(tmp_path))


# --- Hugging Face tokenizers --------------------------------------------------------------------------------------


def test_a_pretrained_embedding_keeps_its_rows():
    found = hub()
    assert found.encode("a blue circle") == [1, 4, 3]
    assert found.text_size == 10  # 6 pieces
    assert [found.special(token) for token in SPECIALS] == list(range(10, 18))
    assert (found.block("semantic"), found.block("pixel"), found.size) == (range(18, 23), range(23, 30), 30)
    assert found.decode([10, 1, 9, 4, 3, 12, 25]) == "a blue circle"
    assert found.padded(["a red circle", "a"], 4).tolist() == [[1, 2, 3, 10], [1, 10, 10, 10]]
    assert found.model is None


def test_unknown_words_of_a_tokenizer_are_named_where_it_has_an_unknown():
    message = r"vocabulary of 10 pieces, got 'rde' \(near: red\), 'xyzzy' \(near: nothing\); reword"
    with pytest.raises(ValueError, match=message):
        hub().encode("a rde xyzzy circle")
    found = Vocabulary.from_tokenizer(byte_pairs())
    assert found.decode(found.encode("a rde xyzzy \u00e9")) == "a rde xyzzy \u00e9"


def test_unknown_only_between_words_names_the_text():
    model = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "red": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    found = Vocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"got 'a red' \(near: red\)"):
        found.encode("a red")


@pytest.mark.parametrize("tokenizer", [words("a", "red", "circle"), byte_pairs()], ids=["words", "bytes"])
def test_a_tokenizer_saved_and_loaded_is_the_same(tmp_path, tokenizer):
    found = Vocabulary.from_tokenizer(tokenizer, 300).with_codebooks(BOOKS)
    found.save_pretrained(tmp_path)
    assert missing_files(tmp_path) == []
    loaded = Vocabulary.from_pretrained(str(tmp_path))
    assert (loaded.size, loaded.text_size, loaded.codebooks) == (320, 300, BOOKS)
    assert loaded.encode("a red circle") == found.encode("a red circle")
    assert list(loaded.tokens()) == list(found.tokens())
    assert sorted(file.name for file in tmp_path.iterdir()) == [TOKENIZER_FOLDER, LAYOUT_FILE]
    loaded.save_pretrained(tmp_path)  # over its own files
    assert Vocabulary.from_pretrained(str(tmp_path)).encode("a red circle") == found.encode("a red circle")


@pytest.mark.parametrize("name", [*HUB_FILES, LAYOUT_FILE])
def test_a_missing_file_of_a_tokenizer_is_named(tmp_path, name):
    hub().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    assert missing_files(tmp_path) == [name]
    with pytest.raises(FileNotFoundError, match=f"which lacks {name}; save or train"):
        Vocabulary.from_pretrained(str(tmp_path))


def test_a_missing_tokenizer_folder_is_named(tmp_path):
    hub().save_pretrained(tmp_path)
    rmtree(tmp_path / TOKENIZER_FOLDER)
    assert missing_files(tmp_path) == HUB_FILES
    assert missing_files(tmp_path / "nowhere") == [MODEL_FILE, LAYOUT_FILE]


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}'])
def test_a_damaged_layout_does_not_hide_a_missing_file(tmp_path, content):
    vocabulary().save_pretrained(tmp_path)
    (tmp_path / LAYOUT_FILE).write_text(content)
    assert missing_files(tmp_path) == []
    (tmp_path / MODEL_FILE).unlink()
    assert missing_files(tmp_path) == [MODEL_FILE]
    (tmp_path / TOKENIZER_FOLDER).mkdir()
    assert missing_files(tmp_path) == []


def test_damaged_tokenizer_files_are_an_error(tmp_path):
    hub().save_pretrained(tmp_path)
    (tmp_path / HUB_FILES[0]).write_text("{")
    message = f"readable vocabulary .*{TOKENIZER_FOLDER} does not hold a readable Hugging Face tokenizer"
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 5}, "rows must be at least 6, .* got 5"),
        ({"text": "many"}, "does not hold a readable vocabulary"),
        ({"text": 11}, r"should have 30 ids, its text, .* blocks \(semantic 5, pixel 7\) make 31; train or save"),
        ({"codebooks": [["pixel", 9, 2]]}, r"should have 30 ids, its text, .* blocks \(pixel 9\) make 27"),
        ({"codebooks": []}, r"blocks \(no codebook\) make 18"),
        ({"pieces": None}, "must have the special tokens"),
    ],
)
def test_a_changed_layout_of_a_tokenizer_is_an_error(tmp_path, change, message):
    hub().save_pretrained(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_pretrained(str(tmp_path))


def test_another_tokenizer_in_the_folder_is_an_error(tmp_path):
    hub().save_pretrained(tmp_path / "one")
    other = Vocabulary(HubPieces(words("a", "blue", "circle", "red", "square"), 10), BOOKS)
    other.save_pretrained(tmp_path / "two")
    rmtree(tmp_path / "one" / TOKENIZER_FOLDER)
    copytree(tmp_path / "two" / TOKENIZER_FOLDER, tmp_path / "one" / TOKENIZER_FOLDER)
    with pytest.raises(ValueError, match=f"was saved with other text pieces than {TOKENIZER_FOLDER} holds; train"):
        Vocabulary.from_pretrained(str(tmp_path / "one"))


# --- codes alone --------------------------------------------------------------------------------------------------


def test_codes_alone_have_blocks_and_nothing_else(tmp_path):
    found = Vocabulary(None).with_codebooks(BOOKS)
    assert (found.text_size, found.specials, found.size) == (0, (), 12)
    assert (found.block("semantic"), found.block("pixel")) == (range(5), range(5, 12))
    assert found.decode([0, 5, 11]) == ""
    found.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [LAYOUT_FILE]
    assert missing_files(tmp_path) == []
    loaded = Vocabulary.from_pretrained(str(tmp_path))
    assert (loaded.pieces, loaded.codebooks, loaded.size) == (None, BOOKS, 12)


@pytest.mark.parametrize(
    "use",
    [lambda v: v.encode(""), lambda v: v.special("<pad>"), lambda v: v.padded([], 3), lambda v: v.padded(["a"], 3)],
)
def test_codes_alone_write_no_text(use):
    message = "^a vocabulary of codes alone has no text and no special tokens, .*; make one with pieces$"
    with pytest.raises(ValueError, match=message):
        use(Vocabulary(None, BOOKS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specials": ["<pad>"]}, r"special tokens \[\], its file says \['<pad>'\]"),
        ({"text": 4}, "should have 0 text pieces, its file says 4"),
        ({"codebooks": [["pixel", 7, 2]]}, "should have 12 ids, .* make 7"),
    ],
)
def test_a_changed_layout_of_codes_alone_is_an_error(tmp_path, change, message):
    Vocabulary(None, BOOKS).save_pretrained(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_pretrained(str(tmp_path))


# --- names, constructors, copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vocabulary, hub, lambda: Vocabulary(None, BOOKS)])
def test_tokens_name_every_id_beyond_the_text(make):
    found = make().with_codebooks((*BOOKS, Codebook("pixel.1", 11)))
    names = list(found.tokens())
    assert len(set(names)) == len(names) == found.size - found.text_size
    named = {token: found.special(token) for token in found.specials}
    named |= {"<semantic_0>": found.block("semantic")[0], "<pixel_6>": found.block("pixel")[6]}
    named |= {"<pixel.1_00>": found.block("pixel.1")[0], "<pixel.1_10>": found.block("pixel.1")[10]}
    assert {name: found.text_size + names.index(name) for name in named} == named


@pytest.mark.parametrize(("size", "last"), [(1, "<pixel_0>"), (10, "<pixel_9>"), (16384, "<pixel_16383>")])
def test_code_names_are_as_wide_as_the_last(size, last):
    names = list(Vocabulary(None, [Codebook("pixel", size)]).tokens())
    assert names[0] == f"<pixel_{'0' * len(str(size - 1))}>"
    assert names[-1] == last


def test_each_name_becomes_one_id_in_a_tokenizer_that_takes_them_over():
    found = Vocabulary.from_tokenizer(byte_pairs()).with_codebooks(BOOKS)
    export = byte_pairs()
    export.add_tokens(list(found.tokens()), special_tokens=True)
    assert [export.encode(name) for name in found.tokens()] == [[i] for i in range(found.text_size, found.size)]


@pytest.mark.parametrize("names", [("<eos>", "<pixel_3>"), ("<pad>",)])
def test_names_that_are_text_pieces_too_are_an_error(names):
    found = Vocabulary.from_tokenizer(words("a", *names)).with_codebooks(BOOKS)
    with pytest.raises(ValueError, match=f"a name of its own, got {', '.join(names)} among the text pieces too; use"):
        found.tokens()


def test_a_given_model_file_is_taken(tmp_path):
    (tmp_path / "own.model").write_bytes(Vocabulary.train(TEXTS).model)
    found = Vocabulary.from_file(str(tmp_path / "own.model"))
    assert (found.size, found.encode("a red circle")) == (18, Vocabulary.train(TEXTS).encode("a red circle"))


def test_a_folder_of_a_tokenizer_is_taken(tmp_path):
    words("a", "red").save_pretrained(tmp_path)
    assert Vocabulary.from_tokenizer(str(tmp_path)).encode("red a") == [2, 1]
    assert Vocabulary.from_tokenizer(str(tmp_path), 5).size == 5 + len(SPECIALS)


def test_every_constructor_can_be_named_in_a_configuration(tmp_path):
    vocabulary().save_pretrained(tmp_path / "saved")
    words("a", "red").save_pretrained(tmp_path / "hub")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Vocabulary, "vocabulary")

    def built(constructor: str, **arguments) -> Vocabulary:
        chosen = {"class_path": f"smalti.lm.vocabulary.Vocabulary{constructor}", "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"vocabulary": chosen})).vocabulary

    assert built(".from_pretrained", folder=str(tmp_path / "saved")).size == 30
    assert built(".from_file", path=str(tmp_path / "saved" / MODEL_FILE)).size == 18
    assert built(".from_tokenizer", tokenizer=str(tmp_path / "hub"), rows=12).size == 20
    assert built("").size == 0


@pytest.mark.parametrize("make", [vocabulary, hub, lambda: Vocabulary(None, BOOKS)])
def test_a_copy_for_another_process_is_the_same(make):
    found = make()
    copy = pickle.loads(pickle.dumps(found))
    assert (copy.size, list(copy.tokens())) == (found.size, list(found.tokens()))
    if found.text_size:
        assert copy.encode("a red circle") == found.encode("a red circle")
        with pytest.raises(ValueError, match="got '<image>'"):
            copy.encode("<image>")


def test_codebooks_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"must have distinct names, got \['pixel', 'pixel'\]; rename one"):
        Vocabulary(None, [Codebook("pixel", 2), Codebook("pixel", 3)])
