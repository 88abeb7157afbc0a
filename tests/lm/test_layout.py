"""Sequences and labels, written out token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smalti.generation.orders import Grouped, Neighbouring, NextScale, raster_plan
from smalti.lm.layout import SequenceLayout
from smalti.lm.plans import Plan
from smalti.lm.sequences import (
    CLASS,
    EXTRA,
    NONE,
    TEXT,
    VECTOR,
    Caption,
    Example,
    Label,
    Picture,
    Question,
    Vectors,
    Words,
)
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
    if slot == VECTOR:
        return "vector"
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


def test_a_document_learns_text_pictures_and_where_they_begin():
    other = IDS.flip(0)
    found = LAYOUT.document([IDS, "a circle", other, "two"])
    again = ["semantic:0@0", "pixel:1@1", "pixel:6@2", "semantic:4@3", "pixel:6@4", "pixel:0@5"]
    assert spelled(found) == [
        *marked(False, "<bos>", "<image>"),
        *marked(True, *UNROLLED),
        *marked(False, "</image>"),
        *marked(True, "a", "circle", "<image>", *again),
        *marked(False, "</image>"),
        *marked(True, "two", "<eos>"),
    ]


def test_several_pictures_before_a_question():
    parts = [Picture(IDS, learned=False), Picture(IDS, learned=False), Question("how many ?", "two")]
    codes = ["<image>", *UNROLLED, "</image>"]
    assert spelled(LAYOUT.build(parts)) == [
        *marked(False, "<bos>", *codes, *codes, "<question>", "how", "many", "?", "<answer>"),
        *marked(True, "two", "<eos>"),
    ]


def test_a_class_stands_before_codes_without_brackets():
    books = (Codebook("pixel", 7, 2),)
    spec, codes = CodeSpec(SPEC.layout, books), torch.tensor([[6, 0], [1, 6]])
    layout = SequenceLayout(Vocabulary(None, books), spec, 1, classes=3)
    for number, token in ((2, 2), (None, 3)):  # the class after the last stands for none
        found = layout.class_to_image(number, codes)
        assert found.tokens[:, 0].tolist() == [token, 6, 0, 1, 6]
        assert found.slots.tolist() == [CLASS, 0, 1, 2, 3]
        assert found.learned.tolist() == [False, True, True, True, True]
    assert layout.parse(layout.class_to_image(1, codes)) == [Label(1), Picture(codes)]
    assert layout.prompt(2).rows.tolist() == [[2, CLASS]]
    assert layout.prompt(None).rows.tolist() == [[3, CLASS]]


@pytest.mark.parametrize("number", [-1, 4])
def test_classes_out_of_range_are_an_error(number):
    books = (Codebook("pixel", 7),)
    layout = SequenceLayout(Vocabulary(None, books), CodeSpec(SPEC.layout, books), 1, classes=3)
    with pytest.raises(ValueError, match=rf"classes must lie in \[0, 3\) or be 3 for none, got {number}; a model"):
        layout.prompt(number)


def test_a_model_with_text_takes_no_class():
    with pytest.raises(ValueError, match="takes captions, got class 3; describe the image in words"):
        LAYOUT.prompt(3)


def test_vectors_are_read_before_codes():
    values = torch.randn(2, 5)
    found = LAYOUT.build([Vectors(values), Question("what color ?", "red")])
    assert spelled(found) == [
        *marked(False, "<bos>", "vector", "vector", "<question>", "what", "color", "?", "<answer>"),
        *marked(True, "red", "<eos>"),
    ]
    assert torch.equal(found.vectors, values)
    batch = LAYOUT.collate([found, LAYOUT.text_to_image("a", IDS), LAYOUT.build([Vectors(values + 1), Words("a")])])
    assert torch.equal(batch.vectors, torch.cat([values, values + 1]))
    assert int((batch.slots == VECTOR).sum()) == 4
    prompt = LAYOUT.prompt(values)
    assert prompt.rows[:, -1].tolist() == [TEXT, VECTOR, VECTOR, TEXT]
    assert torch.equal(prompt.vectors, values)


DYNAMIC = CodeSpec(CodeLayout("sequence", (4,)), BOOKS, dynamic=True)


@pytest.mark.parametrize("per_step", [1, 3])
def test_dynamic_codes_end_where_they_end(per_step):
    layout = SequenceLayout(VOCABULARY, DYNAMIC, per_step)
    padded = torch.cat([IDS, torch.full((2, 3), -1)])
    found = layout.text_to_image("a", padded)
    assert len(found) == 3 + 6 // per_step + 1
    assert found.learned.tolist() == [False] * 3 + [True] * (6 // per_step + 1)  # and </image> too
    assert found.tokens[-1, 0] == VOCABULARY.special("</image>")
    assert layout.parse(found) == [Words("a", learned=False), Picture(padded)]
    assert not layout.image_to_text(padded, None).learned.any()
    assert len(layout.image(padded)) == 2 + 6 // per_step + 1


PARTS = [
    [],
    [Words("a red circle")],
    [Words("a red circle", learned=False), Picture(IDS)],
    [Picture(IDS, learned=False), Question("how many ?", "two"), Question("what color ?", "red"), Caption("a circle")],
    [
        Picture(IDS, opens=True),
        Words("two"),
        Picture(IDS.flip(0), opens=True),
        Picture(IDS),
        Words("red", learned=False),
    ],
    [Vectors(torch.arange(6.0).view(2, 3)), Words("a"), Vectors(torch.ones(1, 3)), Caption("red")],
]


@pytest.mark.parametrize("per_step", [1, 3])
@pytest.mark.parametrize("parts", PARTS)
def test_what_is_built_is_parsed(parts, per_step):
    layout = SequenceLayout(VOCABULARY, SPEC, per_step)
    assert layout.parse(layout.build(parts)) == parts


def test_pictures_keep_the_vectors_they_are_read_as():
    layout = SequenceLayout(VOCABULARY, SPEC, 3)
    parts = [Picture(IDS, read_as=torch.arange(4.0).view(2, 2)), Caption("a"), Picture(IDS, read_as=torch.ones(2, 2))]
    assert layout.parse(layout.build(parts)) == parts


def test_parts_differ_where_their_tensors_do():
    assert Picture(IDS) != Picture(IDS.flip(0))
    assert Picture(IDS) != Picture(IDS, read_as=torch.ones(2, 2))
    assert Picture(IDS) != Picture(IDS, learned=False)
    assert Vectors(torch.ones(1)) != Vectors(torch.zeros(1))
    assert Picture(IDS) != Words("a")


def test_words_after_words_are_an_error():
    with pytest.raises(ValueError, match="words must not follow words, got two in a row; join them"):
        LAYOUT.build([Words("a"), Words("circle")])


@pytest.mark.parametrize("name", ["<pad>", "</image>", "<eos>"])
def test_sequences_that_nobody_built_are_an_error(name):
    token = VOCABULARY.special(name)
    rows = torch.tensor([[VOCABULARY.special("<bos>")], [token]])
    with pytest.raises(ValueError, match=rf"one that build makes, got {name} at step 1; build it anew"):
        LAYOUT.parse(Example(rows, torch.tensor([TEXT, TEXT]), torch.tensor([False, False])))
    with pytest.raises(ValueError, match=r"got no <bos> at step 0; build it anew"):
        LAYOUT.parse(Example(rows[1:], torch.tensor([TEXT]), torch.tensor([False])))


def test_packing_fills_rows_with_the_longest_first():
    examples = [LAYOUT.build([Words(" ".join(["a"] * count))]) for count in (1, 5, 2, 3)]  # 3, 7, 4 and 5 steps
    packed = LAYOUT.pack(examples, 10)
    assert packed.tokens.shape == (2, 10, 1)
    assert packed.documents.tolist() == [[0] * 7 + [1] * 3, [0] * 5 + [1] * 4 + [2]]  # the last is padding
    assert torch.equal(packed.tokens[0, :7], examples[1].tokens)
    assert torch.equal(packed.tokens[1, 5:9], examples[2].tokens)
    assert packed.tokens[1, 9, 0] == VOCABULARY.special("<pad>")
    assert not packed.learned[1, 9]
    with pytest.raises(ValueError, match="a packed row holds 6 steps, got an example of 7; raise the length"):
        LAYOUT.pack(examples, 6)


def test_packed_vectors_keep_their_order():
    examples = [LAYOUT.build([Vectors(torch.full((count, 2), float(count))), Words("a")]) for count in (1, 3, 2)]
    packed = LAYOUT.pack(examples, 11)
    order = [int(value) for value in packed.vectors[:, 0]]
    assert order == [3, 3, 3, 2, 2, 1]


def test_generation_starts_from_the_rows_of_training():
    written = LAYOUT.text_to_image("a circle", IDS)
    read = LAYOUT.image_to_text(IDS, None, [("how many ?", "two")])
    prompt, image = LAYOUT.prompt("a circle").rows, torch.cat([LAYOUT.image(IDS), LAYOUT.question("how many ?")])
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


# ------------------------------------------------------------------------------- pictures in other orders than raster

WHOLE = SequenceLayout(VOCABULARY, CodeSpec(CodeLayout("grid", (2, 2)), BOOKS), 3)
FOUR = torch.tensor([[4, 6, 0], [0, 1, 6], [3, 2, 2], [1, 0, 5]])
STEP = Plan(torch.tensor([2, 0, 3, 1]), (1, 3), torch.empty(4, 0, dtype=torch.int64), asks="step")
REST = replace(STEP, sizes=(1, 1, 2), asks="rest", adaptive=True)
DIAGONALS = Neighbouring().plan(WHOLE.spec.layout)


def stepped(example: Example) -> list[tuple[str, bool, int, bool, list[int]]]:
    """Name, whether it is learned, rank, whether it is asked for, and sources of every step."""
    assert example.ordering is not None
    names = [f"extra {token}" if slot == EXTRA else spell(token, slot) for token, slot in pairs(example)]
    parts = (example.learned, example.ordering.ranks, example.ordering.asked, example.ordering.sources)
    return list(zip(names, *(part.tolist() for part in parts), strict=True))


def pairs(example: Example) -> list[tuple[int, int]]:
    return list(zip(example.tokens[:, 0].tolist(), example.slots.tolist(), strict=True))


def test_neighbouring_step_by_step():
    found = WHOLE.text_to_image("a", FOUR, rows=DIAGONALS.rows())
    assert stepped(found) == [
        ("<bos>", False, 0, False, [-1, -2]),
        ("a", False, 1, False, [0, -2]),
        ("<image>", False, 2, False, [1, -2]),
        ("semantic:4@0", True, 4, False, [2, 2]),
        ("semantic:0@1", True, 6, False, [3, -2]),  # right of the first
        ("semantic:3@2", True, 6, False, [-2, 3]),  # below it
        ("semantic:1@3", True, 8, False, [5, 4]),
        ("</image>", False, 13, False, [6, -2]),
    ]
    assert torch.equal(found.tokens, WHOLE.text_to_image("a", FOUR).tokens)  # the diagonals of 2 x 2 are raster


def test_grouped_step_by_step():
    spec = CodeSpec(CodeLayout("grid", (2, 4)), BOOKS)
    layout, ids = SequenceLayout(VOCABULARY, spec, 3), torch.tensor([[at % 5, at % 7, 0] for at in range(8)])
    found = layout.text_to_image(None, ids, rows=Grouped(2).plan(spec.layout).rows())
    assert stepped(found) == [
        ("<bos>", False, 0, False, [-1]),
        ("<image>", False, 1, False, [0]),
        ("semantic:0@0", True, 3, False, [1]),
        ("semantic:2@2", True, 5, False, [2]),
        ("semantic:4@4", True, 7, False, [3]),
        ("semantic:1@6", True, 9, False, [4]),
        *[(f"extra {number}", False, 9, False, [-2]) for number in range(3)],
        ("semantic:1@1", True, 11, False, [5]),
        ("semantic:3@3", True, 11, False, [6]),
        ("semantic:0@5", True, 11, False, [7]),
        ("semantic:2@7", True, 11, False, [8]),
        ("</image>", False, 23, False, [12]),
    ]
    assert found.tokens[6:9].tolist() == [[0, NONE, NONE], [1, NONE, NONE], [2, NONE, NONE]]
    assert torch.equal(found.tokens[9], layout.codes(ids)[1, :3])


def test_next_scale_step_by_step():
    spec = CodeSpec(CodeLayout("scales", (1, 2)), BOOKS)
    layout, ids = SequenceLayout(VOCABULARY, spec, 3), torch.tensor([[at, at, 0] for at in range(5)])
    found = layout.text_to_image(None, ids, rows=NextScale().plan(spec.layout).rows())
    assert stepped(found) == [
        ("<bos>", False, 0, False, [-1]),
        ("<image>", False, 1, False, [0]),
        ("semantic:0@0", False, 3, False, [-2]),
        *[(f"semantic:{at}@{at}", False, 5, False, [-2]) for at in range(1, 5)],
        ("semantic:0@0", True, 2, True, [7]),
        *[(f"semantic:{at}@{at}", True, 4, True, [7 + at]) for at in range(1, 5)],
        ("</image>", False, 16, False, [11]),
    ]


def test_random_step_by_step():
    found = WHOLE.text_to_image(None, FOUR, rows=STEP.rows())
    codes = ["semantic:3@2", "semantic:4@0", "semantic:1@3", "semantic:0@1"]
    assert stepped(found)[2:] == [
        *[(name, False, rank, False, [-2]) for name, rank in zip(codes, (3, 5, 5, 5), strict=True)],
        *[(name, True, rank, True, [at]) for at, name, rank in zip(range(6, 10), codes, (2, 4, 4, 4), strict=True)],
        ("</image>", False, 14, False, [9]),
    ]
    rows = torch.cat([found.tokens, found.slots[:, None]], 1)[2:6]
    assert torch.equal(rows, WHOLE.codes(FOUR)[[2, 0, 3, 1]])


def test_masked_step_by_step():
    found = WHOLE.text_to_image(None, FOUR, rows=REST.rows())
    codes = ["semantic:3@2", "semantic:4@0", "semantic:1@3", "semantic:0@1"]
    assert stepped(found)[2:] == [
        *[(name, False, rank, False, [-2]) for name, rank in zip(codes, (6, 11, 16, 16), strict=True)],
        *[(name, True, rank, True, [at]) for at, name, rank in zip(range(6, 10), codes, (2, 8, 14, 15), strict=True)],
        ("</image>", False, 25, False, [9]),
    ]


def test_classes_step_by_step():
    books = (Codebook("pixel", 7),)
    layout = SequenceLayout(Vocabulary(None, books), CodeSpec(WHOLE.spec.layout, books), 1, classes=3)
    found = layout.class_to_image(2, torch.tensor([[3], [4], [5], [6]]), DIAGONALS.rows())
    assert pairs(found) == [(2, CLASS), (3, 0), (4, 1), (5, 2), (6, 3)]
    assert found.ordering.ranks.tolist() == [0, 2, 4, 4, 6]
    assert found.ordering.sources.tolist() == [[-1, -2], [0, 0], [1, -2], [-2, 1], [3, 2]]


def test_raster_rows_see_what_plain_sequences_see():
    found = WHOLE.text_to_image("a", FOUR, rows=raster_plan(4).rows())
    plain = WHOLE.text_to_image("a", FOUR)
    assert plain.ordering is None
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.learned, plain.learned)
    batch = WHOLE.collate([found])
    assert torch.equal(batch.ordering.allowed()[0], torch.ones(8, 8).tril().bool())
    assert batch.ordering.sources[0, :, 0].tolist() == list(range(-1, 7))


def test_what_follows_a_picture_sees_its_codes_and_no_queries():
    second = Picture(FOUR, rows=DIAGONALS.rows(), opens=True)
    found = WHOLE.build([Picture(FOUR, rows=REST.rows()), Words("a"), second, Words("red")])
    allowed, asked = WHOLE.collate([found]).ordering.allowed()[0], found.ordering.asked
    order = torch.arange(len(found))
    assert asked.nonzero().flatten().tolist() == [6, 7, 8, 9]
    for step in range(len(found)):
        # A query sees what earlier passes wrote. The last pass and a diagonal of the second are written together.
        before = (order < {6: 2, 7: 3, 8: 4, 9: 4}.get(step, step)) & ~asked
        together = {4: [4, 5], 5: [4, 5], 14: [14, 15], 15: [14, 15]}.get(step, [step])
        expected = before.clone()
        expected[together] = True
        assert allowed[step].tolist() == expected.tolist()
    names = [name for name, *_ in stepped(found)]
    sources = {name + str(at): row[-1] for at, (name, row) in enumerate(zip(names, stepped(found), strict=True))}
    assert sources["a11"] == [10, -2]
    assert sources["semantic:4@013"] == [12, 12]
    assert sources["semantic:1@316"] == [15, 14]
    assert sources["red18"] == [17, -2]


def test_vectors_that_are_read_follow_the_codes_that_are_read():
    vectors = torch.arange(8.0).view(4, 2)
    parts = [Picture(FOUR, read_as=vectors, rows=REST.rows()), Words("a"), Picture(FOUR, read_as=vectors)]
    assert torch.equal(WHOLE.build(parts).read_as, torch.cat([vectors[[2, 0, 3, 1]], vectors]))
    turned = WHOLE.text_to_image("a", FOUR, vectors, STEP.rows())
    assert torch.equal(turned.read_as, vectors[[2, 0, 3, 1]])
    batch = WHOLE.collate([turned, WHOLE.build(parts)])
    assert int(batch.codes.sum()) == len(batch.read_as) == 12


def test_orders_are_padded_beside_plain_sequences():
    short, long = WHOLE.text_to_image(None, FOUR, rows=DIAGONALS.rows()), WHOLE.text_to_image("a red circle", FOUR)
    batch = WHOLE.collate([short, long]).to("cpu")
    assert batch.ordering.ranks.shape == (2, 10)
    assert batch.ordering.sources.shape == (2, 10, 2)
    assert torch.equal(batch.ordering.ranks[0, :7], short.ordering.ranks)
    assert torch.equal(batch.ordering.sources[0, :7], short.ordering.sources)
    assert batch.ordering.ranks[1].tolist() == list(range(10))
    allowed = batch.ordering.allowed()
    assert not allowed[0, :7, 7:].any()
    assert torch.equal(allowed[1], torch.ones(10, 10).tril().bool())
    assert WHOLE.collate([long]).ordering is None


def test_orders_are_packed_with_sources_of_their_own():
    one, two = WHOLE.text_to_image(None, FOUR, rows=DIAGONALS.rows()), WHOLE.text_to_image("a", FOUR, rows=STEP.rows())
    packed = WHOLE.pack([one, two, WHOLE.build([Words("a")])], 22)
    assert packed.documents.tolist() == [[0] * 12 + [1] * 7 + [2] * 3]
    ordering = packed.ordering
    assert torch.equal(ordering.ranks[0, :12], two.ordering.ranks)
    assert torch.equal(ordering.ranks[0, 12:19], one.ordering.ranks)
    assert torch.equal(ordering.asked[0, :12], two.ordering.asked)
    assert ordering.sources[0, :12, 0].tolist() == two.ordering.sources[:, 0].tolist()
    assert ordering.sources[0, 12:19].tolist() == [
        *[[-1, -2], [12, -2], [13, 13], [14, -2], [-2, 14], [16, 15], [17, -2]]
    ]
    assert ordering.sources[0, 19:].tolist() == [[-1, -2], [19, -2], [20, -2]]


def test_sequences_in_another_order_are_not_parsed():
    with pytest.raises(ValueError, match="are parsed in raster order, got one in another; build it without an order"):
        WHOLE.parse(WHOLE.text_to_image("a", FOUR, rows=DIAGONALS.rows()))


def test_pictures_in_one_order_are_the_same():
    rows = DIAGONALS.rows()
    assert Picture(FOUR, rows=rows) == Picture(FOUR, rows=rows)
    assert Picture(FOUR, rows=rows) != Picture(FOUR)


@pytest.mark.parametrize(
    ("layout", "plan", "message"),
    [
        (WHOLE, raster_plan(6), r"an order of 6 positions is for heads .* got 4 positions written 3 of 3 columns at a"),
        (WHOLE, raster_plan(3), r"an order of 3 positions is for heads .* got 4 positions written 3 of 3 columns at a"),
        (
            SequenceLayout(VOCABULARY, WHOLE.spec),
            raster_plan(4),
            r"got 4 positions written 1 of 3 columns at a time; use a depth or parallel head and an order of this",
        ),
    ],
)
def test_orders_of_other_layouts_are_an_error(layout, plan, message):
    with pytest.raises(ValueError, match=message):
        layout.text_to_image("a", FOUR, rows=plan.rows())
