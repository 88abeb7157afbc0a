"""Drawing ids against cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from smalti.generation.filters import draw, filtered


def drawn(probabilities: list[float], uniform: list[float], **filters) -> list[int]:
    logits = torch.tensor(probabilities).log().expand(len(uniform), -1)
    return draw(logits, torch.tensor(uniform, dtype=torch.float64), **filters).tolist()


def kept(probabilities: list[float], **filters) -> list[int]:
    return filtered(torch.tensor(probabilities).log(), **filters).isfinite().nonzero().flatten().tolist()


def test_draw_inverts_the_cumulative_distribution():  # 0.2, 0.7 and 1
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.19, 0.21, 0.69, 0.71, 0.999]) == [0, 0, 1, 1, 2, 2]


def test_top_k_renormalizes():  # 0.5 / 0.8 = 0.625
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.62, 0.63, 0.999], top_k=2) == [1, 1, 2, 2]
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999], top_k=1) == [1, 1]
    for every in (0, 3, 9):
        assert drawn([0.2, 0.5, 0.3], [0.19, 0.71], top_k=every) == [0, 2]


def test_edges_belong_to_the_next_id():  # exact in binary
    assert drawn([0.25] * 4, [0.0, 0.25, 0.5, 0.75]) == [0, 1, 2, 3]


def test_top_p_keeps_the_id_that_passes_p():
    quarters = [0.125, 0.5, 0.25, 0.125]
    assert kept(quarters, top_p=0.49) == [1]
    assert kept(quarters, top_p=0.5) == [1, 2]  # before the second there is one half, which is not above it
    assert kept(quarters, top_p=0.7) == [1, 2]
    assert kept(quarters, top_p=0.76) == [0, 1, 2]  # of equals the first
    assert kept(quarters, top_p=0.9) == [0, 1, 2, 3]
    assert kept(quarters, top_p=1.0) == [0, 1, 2, 3]
    assert kept(quarters, top_p=1e-9) == [1]
    assert kept([0.25] * 4, top_p=0.5) == [0, 1, 2]
    assert drawn(quarters, [0.66, 0.67, 0.999], top_p=0.7) == [1, 2, 2]  # 0.5 / 0.75


def test_top_p_counts_within_top_k():  # of 0.5 and 0.3 the first is 0.625
    assert kept([0.2, 0.5, 0.3], top_k=2, top_p=0.6) == [1]
    assert kept([0.2, 0.5, 0.3], top_k=2, top_p=0.65) == [1, 2]


def test_top_p_counts_after_temperature():  # 0.8 and 0.2 become 16 to 1, and 2 to 1
    assert kept([0.2, 0.8], top_p=0.9) == [0, 1]
    assert kept([0.2, 0.8], top_p=0.9, temperature=0.5) == [1]
    assert kept([0.2, 0.8], top_p=0.7) == [1]
    assert kept([0.2, 0.8], top_p=0.7, temperature=2.0) == [0, 1]


def test_temperature_sharpens_and_zero_takes_the_best():
    assert drawn([0.2, 0.8], [0.33, 0.34], temperature=2.0) == [0, 1]  # sqrt(0.2) against sqrt(0.8): 1 to 2
    assert drawn([0.2, 0.8], [0.058, 0.059], temperature=0.5) == [0, 1]  # 1 to 16
    assert drawn([0.2, 0.5, 0.3], [0.999], temperature=0.0) == [1]


def test_equals_stay_together_in_top_k():
    assert kept([0.25] * 4, top_k=2) == [0, 1, 2, 3]
    assert kept([0.1, 0.45, 0.45], top_k=1) == [1, 2]
    assert drawn([0.1, 0.45, 0.45], [0.49, 0.51], top_k=1) == [1, 2]
    assert drawn([0.25] * 4, [0.999], temperature=0.0) == [0]


def test_impossible_ids_are_never_drawn():
    assert drawn([0.0, 0.5, 0.5, 0.0], [0.0, math.nextafter(1, 0)]) == [1, 2]
    assert drawn([0.2, 0.5, 0.3], [0.0, math.nextafter(1, 0)], top_k=1) == [1, 1]
    assert drawn([0.3, 0.5, 0.2], [math.nextafter(1, 0)], top_k=2) == [1]
    assert drawn([0.0, 1.0], [0.0], top_k=2, top_p=0.999999) == [1]


def test_draws_follow_softmax():
    logits = torch.randn(6)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = draw(logits.expand(len(uniform), -1), uniform, temperature=0.7)
    expected = (logits / 0.7).softmax(0)
    found = torch.bincount(ids, minlength=6) / len(uniform)
    spread = (expected * (1 - expected) / len(uniform)).sqrt()
    assert bool(((found - expected).abs() < 4 * spread).all())


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.7, "temperature": 1.5}])
def test_rows_are_filtered_one_by_one(filters):
    logits = torch.randn(4, 5, 8)
    together, uniform = filtered(logits, **filters), torch.rand(20, dtype=torch.float64)
    assert together.shape == logits.shape
    flat = logits.view(20, 8)
    for row, alone in enumerate(flat):
        assert torch.equal(together.view(20, 8)[row], filtered(alone, **filters))
        assert draw(flat, uniform, **filters)[row] == draw(alone[None], uniform[row : row + 1], **filters)[0]
    temperature = filters.get("temperature", 1.0)
    stayed = together.isfinite()
    torch.testing.assert_close(together[stayed], (logits / temperature)[stayed])
    assert int((~stayed).sum()) > 0


def test_filters_leave_their_input_alone():
    logits = torch.randn(3, 6)
    before = logits.clone()
    filtered(logits, 0.5, 2, 0.5)
    draw(logits, torch.rand(3, dtype=torch.float64), 0.5, 2, 0.5)
    assert torch.equal(logits, before)


def test_draws_are_exact_over_many_ids():  # sums in float32 would lose the last of them
    logits, last = torch.zeros(1, 1 << 17), torch.tensor([1 - 2.0**-17], dtype=torch.float64)
    assert draw(logits, last).tolist() == [(1 << 17) - 1]
    assert draw(logits.bfloat16(), torch.tensor([0.5], dtype=torch.float64)).tolist() == [1 << 16]


def test_large_vocabularies_are_inverted_as_small_ones_are():
    logits = torch.randn(64, 3000, generator=torch.Generator().manual_seed(3)) * 3
    logits[0, 1:] = -torch.inf
    logits[1, :-1] = -torch.inf
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    uniform[2], uniform[3] = 0.0, math.nextafter(1.0, 0.0)
    edges = logits.softmax(-1).double().cumsum(-1)
    expected = [int((row <= value * row[-1]).sum()) for row, value in zip(edges, uniform, strict=True)]
    assert draw(logits, uniform).tolist() == expected
