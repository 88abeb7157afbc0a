"""One list of ids: text, specials, blocks of codes; and what is said of words that are not in it."""

from __future__ import annotations

import json

import pytest

from smalti.lm.vocabulary import LAYOUT_FILE, MODEL_FILE, SPECIALS, Vocabulary
from smalti.tokenizers.codes import Codebook

TEXTS = ("a red circle", "a blue square", "how many squares ?")
WORDS = {word for text in TEXTS for word in text.split()}
BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))


def vocabulary() -> Vocabulary:
    return Vocabulary.train(TEXTS).with_codebooks(BOOKS)


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


def test_specials_are_no_text():
    with pytest.raises(ValueError, match="got '<eos>'"):
        vocabulary().encode("a red <eos>")


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


@pytest.mark.parametrize("change", [{"text": 13}, {"specials": ["<pad>"]}])
def test_files_that_disagree_are_an_error(tmp_path, change):
    vocabulary().save_pretrained(tmp_path)
    layout = json.loads((tmp_path / LAYOUT_FILE).read_text())
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(layout | change))
    with pytest.raises(ValueError, match=r"should have 10 text pieces and specials .* train it again"):
        Vocabulary.from_pretrained(str(tmp_path))
