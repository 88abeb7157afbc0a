"""Classes, sentences and nothing as vectors."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.conditions import ClassEncoder, SentenceEncoder, condition_encoder
from smalti.lm.vocabulary import Vocabulary

WORDS = Vocabulary.train(["a red circle above a blue square"])


def sentences(**options) -> SentenceEncoder:
    return SentenceEncoder(WORDS, 8, heads=2, **options).eval()


def test_a_class_is_a_row_and_nothing_is_the_last_one():
    encoder = ClassEncoder(3, 4)
    assert torch.equal(encoder([2, None, 0]), encoder.table.weight[[2, 3, 0]])


@pytest.mark.parametrize("wanted", [3, -1, "3", "red"])
def test_what_is_no_class_is_an_error(wanted):
    with pytest.raises(ValueError, match=r"draws classes in \[0, 3\), got '?(-?\d|red)'?; pass a number of those"):
        ClassEncoder(3, 4)([0, wanted])


def test_what_a_text_asks_for():
    assert [ClassEncoder(3, 4).wanted(text) for text in ("2", None)] == [2, None]
    for wrong in ("3", "-1", "red"):
        with pytest.raises(ValueError, match=rf"this model draws classes in \[0, 3\), got '?{wrong}'?; pass a number"):
            ClassEncoder(3, 4).wanted(wrong)
    assert [sentences().wanted(text) for text in ("red", None)] == ["red", None]
    with pytest.raises(ValueError, match="zebra"):
        sentences().wanted("zebra")


def test_a_sentence_does_not_depend_on_its_neighbours():
    encoder = sentences()
    texts = ["a red circle above a blue square", "a circle", None, "a blue square"]
    together = encoder(texts)
    assert together.shape == (4, 8)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(encoder([text])[0], row)


def test_words_and_their_order_count():
    encoder = sentences()
    found = encoder(["a red circle above a blue square", "a blue circle above a red square", "a red circle"])
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_nothing_is_a_vector_that_is_learned():
    encoder = sentences()
    with torch.no_grad():
        encoder.nothing.copy_(torch.arange(8.0))
    for texts in ([None, None], [None, "a circle"]):
        assert torch.equal(encoder(texts)[0], torch.arange(8.0))
    encoder([None, "a circle"])[0].sum().backward()
    assert torch.equal(encoder.nothing.grad, torch.ones(8))
    assert not encoder.words.weight.grad.any()


def test_what_is_no_sentence_is_an_error():
    encoder = sentences(length=3)
    with pytest.raises(ValueError, match="this model draws what sentences say, got 4; describe the picture in words"):
        encoder(["a circle", 4])
    with pytest.raises(ValueError, match="a sentence must have 1 to 3 tokens, got 5; shorten it"):
        encoder(["a circle above a square"])
    with pytest.raises(ValueError, match="a sentence must have 1 to 3 tokens, got 0; shorten it"):
        encoder([""])
    with pytest.raises(ValueError, match="got 'cirkle'"):
        encoder(["a cirkle"])


def test_the_kind_follows_from_what_there_is():
    assert isinstance(condition_encoder(Vocabulary(), 5, 8), ClassEncoder)
    assert isinstance(condition_encoder(WORDS, 5, 8), ClassEncoder)
    found = condition_encoder(WORDS, 0, 9)
    assert isinstance(found, SentenceEncoder)
    assert found(["a circle"]).shape == (1, 9)  # of three heads


def test_neither_classes_nor_words_is_an_error():
    with pytest.raises(ValueError, match="draws for classes or for words, got 0 classes and no text; give one"):
        condition_encoder(Vocabulary(), 0, 8)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="width of a sentence encoder must be a multiple of its heads, got 8 and 3"):
        SentenceEncoder(WORDS, 8, heads=3)


def test_a_batch_of_nothing_learns_with_all_weights():
    """Other processes may have sentences, and all must reduce the same gradients."""
    encoder = sentences()
    found = encoder([None, None])
    with torch.no_grad():
        assert torch.equal(found, encoder([None, None]))
    found.sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert torch.equal(gradients.pop("nothing"), torch.full((8,), 2.0))
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
