"""Scan orders of grids."""

from __future__ import annotations

import numpy as np
import pytest

from smalti.eval.tokens.scan import SCANS, scan
from smalti.tokenizers.codes import CodeLayout


def test_written_out():
    grid = CodeLayout("grid", (2, 3))
    assert scan(grid, "raster").tolist() == [0, 1, 2, 3, 4, 5]
    assert scan(grid, "column").tolist() == [0, 3, 1, 4, 2, 5]
    assert scan(grid, "snake").tolist() == [0, 1, 2, 5, 4, 3]
    assert scan(CodeLayout("grid", (2, 2)), "hilbert").tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("order", ["snake", "hilbert"])
def test_every_cell_once_and_from_neighbour_to_neighbour(order):
    for height in range(1, 19):
        for width in range(1, 19):
            cells = scan(CodeLayout("grid", (height, width)), order)
            assert sorted(cells.tolist()) == list(range(height * width))
            steps = np.abs(np.diff(cells // width)) + np.abs(np.diff(cells % width))
            assert (steps == 1).all()


def test_each_quarter_of_hilberts_curve_fills_a_quadrant():
    for quarter in scan(CodeLayout("grid", (16, 16)), "hilbert").reshape(4, 64):
        assert np.ptp(quarter // 16) == 7
        assert np.ptp(quarter % 16) == 7


@pytest.mark.parametrize("order", SCANS)
def test_video_is_read_frame_by_frame(order):
    one, film = (scan(CodeLayout("grid", shape), order) for shape in ((4, 4), (3, 4, 4)))
    assert film.tolist() == np.concatenate([one, one + 16, one + 32]).tolist()


def test_other_layouts_have_only_their_own_order():
    assert scan(CodeLayout("sequence", (5,)), "raster").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"hilbert order needs codes laid out as grid, got a set of \(5,\)"):
        scan(CodeLayout("set", (5,)), "hilbert")


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="one of raster, column, snake, hilbert, got 'spiral'; choose one"):
        scan(CodeLayout("grid", (2, 2)), "spiral")
