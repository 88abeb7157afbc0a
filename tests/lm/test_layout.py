"""Sequences and labels, written out token by token."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.layout import NONE, TEXT, Example, SequenceLayout
from smalti.lm.vocabulary import SPECIALS, Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

BOOKS = (Codebook("semantic", 5), Codebook("pixel", 7, 2))
SPEC = CodeSpec(CodeLayout("grid", (1, 2)), BOOKS)
VOCABULARY = Vocabulary.train(["a red circle", "how many ? two what color"]).with_codebooks(BOOKS)
LAYOUT = SequenceLayout(VOCABULARY, SPEC)
IDS = torch.tensor([[4, 6, 0], [0, 1, 6]])
UNROLLED = ["semantic:4@0", "pixel:6@1", "pixel:0@2", "semantic:0@3", "pixel:1@4", "pixel:6@5"]


def spell(token: int, slot: int) -> str:
    """A token by name, found without the code under test."""
    if token < VOCABULARY.text_size:
        name = VOCABULARY.decode([token])
    elif token < VOCABULARY.text_size + 8:
        name = SPECIALS[token - VOCABULARY.text_size]
    else:
        visual = token - VOCABULARY.text_size - 8
        name = f"semantic:{visual}" if visual < 5 else f"pixel:{visual - 5}"
    return name if slot == TEXT else f"{name}@{slot}"


def spelled(example: Example) -> list[tuple[str, bool]]:
    names = [
        spell(token, slot) for token, slot in zip(example.tokens[:, 0].tolist(), example.slots.tolist(), strict=True)
    ]
    return list(zip(names, example.learned.tolist(), strict=True))


def marked(learned: bool, *names: str) -> list[tuple[str, bool]]:
    return [(name, learned) for name in names]


def test_text_to_image_learns_the_codes():
    assert spelled(LAYOUT.text_to_image("a red circle", IDS)) == [
        *marked(False, "<bos>", "a", "red", "circle", "<image>"),
        *marked(True, *UNROLLED),
        *marked(False, "</image>"),
    ]


def test_a_dropped_caption_leaves_nothing_behind():
    assert spelled(LAYOUT.text_to_image(None, IDS)) == [
        *marked(False, "<bos>", "<image>"),
        *marked(True, *UNROLLED),
        *marked(False, "</image>"),
    ]


def test_image_to_text_learns_answers_and_then_the_caption():
    questions = [("how many ?", "two"), ("what color ?", "red")]
    assert spelled(LAYOUT.image_to_text(IDS, "a circle", questions)) == [
        *marked(False, "<bos>", "<image>", *UNROLLED, "</image>", "<question>", "how", "many", "?", "<answer>"),
        *marked(True, "two", "<eos>"),
        *marked(False, "<question>", "what", "color", "?", "<answer>"),
        *marked(True, "red", "<eos>"),
        *marked(False, "<caption>"),
        *marked(True, "a", "circle", "<eos>"),
    ]


def test_image_without_text_learns_its_codes_where_asked():
    assert spelled(LAYOUT.image_to_text(IDS, None, learn_codes=True)) == [
        *marked(False, "<bos>", "<image>"),
        *marked(True, *UNROLLED),
        *marked(False, "</image>"),
    ]
    assert not LAYOUT.image_to_text(IDS, None).learned.any()


def test_generation_starts_from_the_rows_of_training():
    written = LAYOUT.text_to_image("a circle", IDS)
    read = LAYOUT.image_to_text(IDS, None, [("how many ?", "two")])
    prompt, image = LAYOUT.prompt("a circle"), torch.cat([LAYOUT.image(IDS), LAYOUT.question("how many ?")])
    for rows, example in ((prompt, written), (image, read)):
        assert torch.equal(rows, torch.cat([example.tokens, example.slots[:, None]], 1)[: len(rows)])
    assert bool(written.learned[len(prompt)])  # the next token is the first that is learned
    assert bool(read.learned[len(image)])


def test_collate_pads_on_the_right():
    short, long = LAYOUT.text_to_image(None, IDS), LAYOUT.text_to_image("a red circle", IDS)
    batch = LAYOUT.collate([short, long]).to("cpu")
    assert batch.tokens.shape == (2, 12, 1)
    assert batch.slots.shape == batch.learned.shape == (2, 12)
    assert batch.tokens[0, 9:].tolist() == [[VOCABULARY.special("<pad>")]] * 3
    assert batch.slots[0, 9:].tolist() == [TEXT] * 3
    assert batch.learned[0, 9:].tolist() == [False] * 3
    assert torch.equal(batch.tokens[0, :9], short.tokens)
    assert torch.equal(batch.slots[1], long.slots)
    assert (batch.tokens.dtype, batch.slots.dtype, batch.learned.dtype) == (torch.int64, torch.int64, torch.bool)


def test_a_step_may_write_a_whole_position():
    stacked = SequenceLayout(VOCABULARY, SPEC, 3)
    written, offset = stacked.text_to_image("circle", IDS), VOCABULARY.text_size + 8
    pixels = offset + 5
    words = [[VOCABULARY.special("<bos>"), NONE, NONE], [*VOCABULARY.encode("circle"), NONE, NONE]]
    codes = [[offset + 4, pixels + 6, pixels], [offset, pixels + 1, pixels + 6]]
    assert written.tokens[:2].tolist() == words
    assert written.tokens[3:5].tolist() == codes
    assert written.slots.tolist() == [TEXT, TEXT, TEXT, 0, 1, TEXT]
    assert written.learned.tolist() == [False, False, False, True, True, False]
    assert (LAYOUT.steps, stacked.steps) == (6, 2)
    padded = stacked.collate([stacked.text_to_image(None, IDS), written]).tokens
    assert padded[0, -1].tolist() == [VOCABULARY.special("<pad>"), NONE, NONE]


def test_vocabulary_without_the_blocks_is_an_error():
    with pytest.raises(ValueError, match=r"must have the blocks .*semantic.* of the tokenizer, got .*; make them with"):
        SequenceLayout(VOCABULARY.with_codebooks(BOOKS[:1]), SPEC)


def test_codes_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"codes must be \[2, 3\] \(N, D\), got \[1, 3\]; encode the images"):
        LAYOUT.codes(IDS[:1])


@pytest.mark.parametrize("wrong", [[-1, 0, 0], [5, 0, 0], [0, 0, 7]])
def test_ids_outside_their_codebook_are_an_error(wrong):
    with pytest.raises(ValueError, match=r"must lie in \[0, K\) with K = \[5, 7, 7\] by column, got .*; encode"):
        LAYOUT.codes(torch.tensor([[0, 0, 0], wrong]))
