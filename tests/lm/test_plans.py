"""Plans of tiny grids, written out."""

from __future__ import annotations

import torch

from smalti.generation.orders import Grouped, Neighbouring, NextScale
from smalti.lm.plans import ABSENT, PROMPT, Plan, PlanRows
from smalti.tokenizers.codes import CodeLayout

NONE = torch.empty(4, 0, dtype=torch.int64)
POSITIONS = torch.tensor([2, 0, 3, 1])
RASTER = Plan(torch.arange(3), (1, 1, 1), torch.tensor([[PROMPT], [0], [1]]))
NEIGHBOURING = Neighbouring().plan(CodeLayout("grid", (2, 2)))
GROUPED = Grouped(2).plan(CodeLayout("grid", (2, 4)))
STEP = Plan(POSITIONS, (1, 3), NONE, asks="step")
REST = Plan(POSITIONS, (1, 1, 2), NONE, asks="rest", adaptive=True)


def written(rows: PlanRows) -> list[tuple[int, str, int, list[int]]]:
    """Position, what a row is (a code, a code that is learned, a query that is, an extra), rank and sources."""
    names = {(False, False): "read", (False, True): "learned", (True, True): "asked", (True, False): "wrong"}
    kinds = zip(rows.asked.tolist(), rows.learned.tolist(), strict=True)
    found = [names[kind] if at >= 0 else "extra" for at, kind in zip(rows.positions.tolist(), kinds, strict=True)]
    return list(zip(rows.positions.tolist(), found, rows.ranks.tolist(), rows.sources.tolist(), strict=True))


def test_raster():
    assert (RASTER.count, RASTER.starts, RASTER.directions, RASTER.queries) == (3, [0, 1, 2, 3], 1, 0)
    assert [RASTER.inputs(step) for step in range(3)] == [[], [0], [1]]
    assert [RASTER.read_from(step).tolist() for step in range(3)] == [[[-1]], [[0]], [[0]]]
    rows = [(0, "learned", 2, [-1]), (1, "learned", 4, [0]), (2, "learned", 6, [1])]
    assert written(RASTER.rows()) == rows


def test_neighbouring():
    plan = NEIGHBOURING  # 0 1 over 2 3
    assert plan.positions.tolist() == [0, 1, 2, 3]
    assert (plan.sizes, plan.starts, plan.directions, plan.queries) == ((1, 2, 1), [0, 1, 3, 4], 2, 0)
    assert plan.passes.tolist() == [0, 1, 1, 2]
    assert plan.sources.tolist() == [[-1, -1], [0, -2], [-2, 0], [2, 1]]  # right of, below
    assert [plan.inputs(step) for step in range(3)] == [[], [0], [1, 2]]
    assert [plan.read_from(step).tolist() for step in range(3)] == [[[-1, -1]], [[0, -2], [-2, 0]], [[1, 0]]]
    assert written(plan.rows()) == [
        (0, "learned", 2, [-1, -1]),
        (1, "learned", 4, [0, -2]),
        (2, "learned", 4, [-2, 0]),
        (3, "learned", 6, [2, 1]),
    ]


def test_grouped():
    plan = GROUPED  # 0 1 | 2 3 over 4 5 | 6 7
    assert plan.positions.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert (plan.sizes, plan.extras, plan.extras_pass, plan.queries) == ((1, 1, 1, 1, 4), 3, 4, 3)
    assert [plan.inputs(step) for step in range(5)] == [[], [0], [1], [2], [3, 8, 9, 10]]
    assert plan.read_from(4).tolist() == [[0], [1], [2], [3]]
    assert plan.sources_of_positions().flatten().tolist() == [-1, 6, 0, 8, 2, 9, 4, 10]
    assert written(plan.rows()) == [
        (0, "learned", 2, [-1]),
        (2, "learned", 4, [0]),
        (4, "learned", 6, [1]),
        (6, "learned", 8, [2]),
        (-1, "extra", 8, [-2]),
        (-1, "extra", 8, [-2]),
        (-1, "extra", 8, [-2]),
        (1, "learned", 10, [3]),
        (3, "learned", 10, [4]),
        (5, "learned", 10, [5]),
        (7, "learned", 10, [6]),
    ]


def test_extras_may_have_codes_behind_them_that_are_read_later():
    plan = Grouped(2).plan(CodeLayout("grid", (2, 6)))
    assert plan.inputs(5) == [4, 5, 6, 7]  # the first that were written together
    assert plan.read_from(5).tolist() == [[0], [1], [2], [3]]
    ranks = plan.rows().ranks.tolist()
    assert ranks == [2, 4, 6, 8, 8, 8, 8, 10, 10, 10, 10, 12, 12, 12, 12]


def test_next_scale():
    plan = NextScale().plan(CodeLayout("scales", (1, 2)))
    assert (plan.sizes, plan.directions, plan.queries, plan.asks) == ((1, 4), 1, 1, "step")
    assert [plan.inputs(step) for step in range(2)] == [[], [0]]
    codes = [(0, "read", 2, [-2]), *[(at, "read", 4, [-2]) for at in range(1, 5)]]
    queries = [(0, "asked", 1, [5]), *[(at, "asked", 3, [5 + at]) for at in range(1, 5)]]
    assert written(plan.rows()) == codes + queries


def test_asking_for_what_a_step_writes():
    assert (STEP.count, STEP.starts, STEP.directions, STEP.queries) == (4, [0, 1, 4], 1, 1)
    assert [step.tolist() for step in STEP.steps()] == [[2], [0, 3, 1]]
    assert [STEP.inputs(step) for step in range(2)] == [[], [0]]
    assert written(STEP.rows()) == [
        *[(2, "read", 2, [-2]), (0, "read", 4, [-2]), (3, "read", 4, [-2]), (1, "read", 4, [-2])],
        *[(2, "asked", 1, [4]), (0, "asked", 3, [5]), (3, "asked", 3, [6]), (1, "asked", 3, [7])],
    ]


def test_asking_for_the_rest():
    assert written(REST.rows()) == [
        *[(2, "read", 5, [-2]), (0, "read", 10, [-2]), (3, "read", 15, [-2]), (1, "read", 15, [-2])],
        *[(2, "asked", 1, [4]), (0, "asked", 7, [5]), (3, "asked", 13, [6]), (1, "asked", 14, [7])],
    ]


def test_codes_see_those_of_their_own_pass_and_of_earlier_ones():
    assert NEIGHBOURING.visible().int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert STEP.visible().int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]
    assert REST.visible().int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]


def test_sources_by_position():
    assert NEIGHBOURING.sources_of_positions().tolist() == [[-1, -1], [0, -2], [-2, 0], [2, 1]]
    turned = Plan(POSITIONS, (1, 1, 1, 1), torch.tensor([[PROMPT, 4], [0, ABSENT], [1, 0], [2, 5]]), extras=2)
    assert turned.sources_of_positions().tolist() == [[2, -2], [3, 5], [-1, 4], [0, 2]]
    for plan in (STEP, REST):
        assert plan.sources_of_positions().tolist() == [[0], [1], [2], [3]]
