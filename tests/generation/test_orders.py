"""Every order is proved by the same tests: all positions once, each seeing only what was there."""

from __future__ import annotations

import pytest
import torch

from smalti.generation.orders import Raster
from smalti.tokenizers.codes import CodeLayout

CASES = [
    (Raster(), CodeLayout("grid", (2, 3))),
    (Raster(), CodeLayout("grid", (2, 2, 2))),
    (Raster(), CodeLayout("sequence", (5,))),
    (Raster(), CodeLayout("set", (4,))),
]


@pytest.mark.parametrize(("order", "layout"), CASES)
def test_every_position_exactly_once(order, layout):
    revealed = torch.cat(order.steps(layout))
    assert revealed.dtype == torch.int64
    assert sorted(revealed.tolist()) == list(range(layout.positions))


@pytest.mark.parametrize(("order", "layout"), CASES)
def test_a_position_sees_itself_and_what_was_revealed_up_to_its_step(order, layout):
    visible = order.visible(layout)
    assert (visible.shape, visible.dtype) == ((layout.positions, layout.positions), torch.bool)
    before: set[int] = set()
    for step in order.steps(layout):
        before |= set(step.tolist())
        for position in step.tolist():
            seen = set(visible[position].nonzero().flatten().tolist())
            assert position in seen
            assert seen <= before


@pytest.mark.parametrize(("order", "layout"), CASES)
def test_sources_were_revealed_in_earlier_steps(order, layout):
    sources, before = order.sources(layout), {-1}
    assert len(sources) == layout.positions
    for step in order.steps(layout):
        assert {source for position in step for source in sources[position].tolist()} <= before
        before |= set(step.tolist())


def test_raster_is_one_position_per_step_after_the_one_before():
    layout = CodeLayout("grid", (2, 2))
    assert [step.tolist() for step in Raster().steps(layout)] == [[0], [1], [2], [3]]
    assert Raster().sources(layout).tolist() == [[-1], [0], [1], [2]]
    assert Raster().visible(layout).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("method", ["steps", "sources", "visible"])
def test_raster_on_scales_names_the_legal_layouts(method):
    message = r"raster order needs codes laid out as grid or sequence or set, got a scales of \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        getattr(Raster(), method)(CodeLayout("scales", (1, 2)))
