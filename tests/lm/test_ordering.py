"""What steps see, written out."""

from __future__ import annotations

import pytest
import torch

from smalti.lm.ordering import Ordering, causal, chained, padded

NO, YES = False, True


def ordering(ranks, asked, sources) -> Ordering:
    return Ordering(torch.tensor(ranks), torch.tensor(asked), torch.tensor(sources))


#: A prompt of one, a code, two queries that see each other, and a code that does not see them.
ASKING = ordering([0, 1, 2, 2, 3], [NO, NO, YES, YES, NO], [[-1], [-2], [2], [3], [-2]])
TWO = ordering([0, 2, 2], [NO, NO, NO], [[-1, -2], [0, -2], [-2, 0]])


def table(text: str) -> list[list[int]]:
    return [[int(cell) for cell in row] for row in text.split()]


def rows(found: Ordering) -> Ordering:
    return Ordering(found.ranks[None], found.asked[None], found.sources[None])


def test_steps_see_those_of_no_higher_rank_and_queries_of_their_own_alone():
    assert rows(ASKING).allowed().int().tolist() == [table("10000 11000 11110 11110 11001")]
    assert rows(TWO).allowed().int().tolist() == [table("100 111 111")]


def test_causal_orderings():
    found = Ordering.causal(3, 2)
    assert found.sources.tolist() == [[-1, -2], [0, -2], [1, -2]]
    assert rows(found).allowed().int().tolist() == [table("100 110 111")]
    assert not found.asked.any()
    assert Ordering.causal(2).sources.tolist() == [[-1], [0]]


def test_padding_is_seen_by_nothing():
    found = padded([(5, ASKING), (3, TWO), (2, None)])
    assert found.ranks.tolist() == [[0, 1, 2, 2, 3], [0, 2, 2, 4, 4], [0, 1, 4, 4, 4]]
    assert found.asked.tolist()[1:] == [[NO] * 5] * 2
    assert found.sources.tolist() == [
        [[-1, -2], [-2, -2], [2, -2], [3, -2], [-2, -2]],
        [[-1, -2], [0, -2], [-2, 0], [-2, -2], [-2, -2]],
        [[-1, -2], [0, -2], [-2, -2], [-2, -2], [-2, -2]],
    ]
    assert found.allowed()[1].int().tolist() == table("10000 11100 11100 11111 11111")
    assert (found.ranks.dtype, found.asked.dtype, found.sources.dtype) == (torch.int64, torch.bool, torch.int64)


def test_sequences_behind_each_other():
    found = chained([(2, None), (3, TWO), (5, ASKING)])
    assert found.ranks.tolist() == [0, 1, 0, 2, 2, 0, 1, 2, 2, 3]
    assert found.asked.tolist() == [NO] * 7 + [YES, YES, NO]
    assert found.sources.tolist() == [
        *[[-1, -2], [0, -2]],
        *[[-1, -2], [2, -2], [-2, 2]],
        *[[-1, -2], [-2, -2], [7, -2], [8, -2], [-2, -2]],
    ]


def test_causal_sequences_need_no_ordering():
    assert padded([(2, None), (3, None)]) is None
    assert chained([(2, None), (3, None)]) is None


def test_new_steps_see_what_is_before_them():
    assert causal(torch.ones(2, 4).bool(), 1) is None
    assert causal(torch.ones(2, 4).bool(), 4) is None
    assert causal(torch.ones(2, 4).bool(), 2).int().tolist() == [[table("1110 1111")]]


@pytest.mark.parametrize(("new", "mask"), [(3, "100 010 011"), (2, "010 011"), (1, "011")])
def test_padding_in_front_sees_itself_alone(new, mask):
    present = torch.tensor([[NO, YES, YES], [YES, YES, YES]])
    found = causal(present, new)
    full = table("100 110 111")[-new:]
    assert (found.shape, found.dtype) == ((2, 1, new, 3), torch.bool)
    assert found.int().tolist() == [[table(mask)], [full]]


def test_orderings_move():
    moved = TWO.to("meta")
    assert {moved.ranks.device.type, moved.asked.device.type, moved.sources.device.type} == {"meta"}
