from __future__ import annotations

import itertools
import pickle

import pytest

from smalti.data.order import Draw, ResumableOrder


def passes(order: ResumableOrder, count: int) -> list[tuple[int, int]]:
    drawn: list[tuple[int, int]] = []
    for epoch in range(count):
        order.set_epoch(epoch)
        drawn += [(draw.epoch, int(draw)) for draw in order]
    return drawn


@pytest.mark.parametrize("start", range(12))
def test_starting_anywhere_continues_the_same_stream(start: int):
    whole = passes(ResumableOrder(17, seed=3, batch_size=4), 5)
    order = ResumableOrder(17, seed=3, batch_size=4)
    order.start = start
    drawn = [(draw.epoch, int(draw)) for draw in order]
    assert len(drawn) == len(order) == 16
    assert drawn == whole[4 * start : 4 * start + 16]
    assert order.locate(start) == divmod(start, 4)


def test_epochs_are_different_permutations():
    drawn = passes(ResumableOrder(10, seed=0), 2)
    first, second = [i for e, i in drawn if e == 0], [i for e, i in drawn if e == 1]
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))
    assert passes(ResumableOrder(10, seed=1), 2) != drawn
    assert [i for _, i in passes(ResumableOrder(4, shuffle=False), 2)] == [0, 1, 2, 3] * 2


def test_start_is_read_when_an_iteration_begins():
    order = ResumableOrder(8, shuffle=False, batch_size=2)
    running = iter(order)
    order.start = 2
    assert [int(draw) for draw in running] == list(range(8))
    assert [int(draw) for draw in order] == [4, 5, 6, 7, 0, 1, 2, 3]


def test_ranks_share_the_batches_of_one_process():
    alone = [int(draw) for draw in ResumableOrder(23, seed=5, batch_size=6)]
    ranks = [[int(draw) for draw in ResumableOrder(23, 5, True, rank, 3, batch_size=2)] for rank in range(3)]
    assert [len(rank) for rank in ranks] == [6, 6, 6]
    joined = [index for batch in range(3) for rank in ranks for index in rank[2 * batch : 2 * batch + 2]]
    assert joined == alone
    assert len(set(joined)) == 18


def test_rows_stay_near_the_others_of_their_group():
    groups = [0, 5, 10, 15, 20, 22]
    order = ResumableOrder(22, seed=1, batch_size=2, groups=groups, near=2)
    epochs = [[int(draw) for draw in epoch] for epoch in (list(order), (order.set_epoch(1), list(order))[1])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(22))
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        found = [next(g for g, end in enumerate(groups[1:]) if row < end) for row in epoch]
        last = {group: max(at for at, other in enumerate(found) if other == group) for group in set(found)}
        first = {group: found.index(group) for group in set(found)}
        for row in range(22):  # never more than two groups are open
            assert sum(first[group] <= row <= last[group] for group in set(found)) <= 2
    assert epochs[0] != [row for group in itertools.pairwise(groups) for row in range(*group)]


def test_a_draw_is_an_index_that_knows_its_epoch():
    draw = pickle.loads(pickle.dumps(Draw(2, 7)))
    assert (["a", "b", "c"][draw], draw, draw.epoch) == ("c", 2, 7)


def test_errors():
    with pytest.raises(ValueError, match="expected a seed >= 0, got -1"):
        ResumableOrder(4, seed=-1)
    with pytest.raises(ValueError, match=r"expected a rank in \[0, 2\), got 2"):
        ResumableOrder(4, rank=2, world=2)
    with pytest.raises(ValueError, match="expected a batch size >= 1, got 0"):
        ResumableOrder(4, batch_size=0)
    with pytest.raises(ValueError, match="expected at least one batch of 3 x 2 processes, got 5 items"):
        ResumableOrder(5, world=2, batch_size=3)
    with pytest.raises(ValueError, match=r"expected near >= 1 and groups from 0 to 5, got 16 and groups from 0 to 4"):
        ResumableOrder(5, groups=[0, 4])
