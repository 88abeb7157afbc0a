"""What a batch draws: the same for every sample, however the samples of a step are dealt out."""

from __future__ import annotations

import pytest
import torch

from smalti.training.enat import _hidden_share
from smalti.training.seeding import Draws, Place, step_draws, validation_draws


def all_draws(count: int, world: int, parts: int, seed: int = 0, step: int = 7) -> list[Draws]:
    """Those of all batches of a step."""
    return [
        step_draws(seed, Place(step, part, parts), count, rank, world) for part in range(parts) for rank in range(world)
    ]


def numbers(batches: list[Draws]) -> torch.Tensor:
    return torch.cat([torch.cat([draws.uniform()[:, None], draws.normal(2)], dim=1) for draws in batches])


@pytest.mark.parametrize("shape", [(4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)])
def test_samples_draw_alike_however_they_are_dealt_out(shape):
    assert torch.equal(numbers(all_draws(*shape)), numbers(all_draws(8, 1, 1)))


def test_samples_steps_and_seeds_draw_differently():
    first = numbers(all_draws(8, 1, 1))
    assert len(set(first[:, 0].tolist())) == 8
    assert not torch.equal(first, numbers(all_draws(8, 1, 1, step=8)))
    assert not torch.equal(first, numbers(all_draws(8, 1, 1, seed=1)))


def test_a_step_draws_one_thing_for_all_its_batches():
    drawn = [draws.own(torch.randperm(draws.total, generator=draws.step)) for draws in all_draws(2, 2, 2)]
    assert sorted(torch.cat(drawn).tolist()) == list(range(8))


def test_a_share_is_chosen():
    draws = step_draws(0, Place(0, 0, 1), 4000, 0, 1)
    assert sum(draws.chosen(0.25)) == pytest.approx(1000, abs=100)
    assert not any(draws.chosen(0.0))
    assert all(draws.chosen(1.0))


def test_validation_draws_by_the_number_of_the_item():
    first, second = validation_draws(0, 0, range(0, 6, 2)), validation_draws(0, 0, range(1, 6, 2))
    both = validation_draws(0, 5, range(6))
    assert torch.equal(torch.stack([first.uniform(), second.uniform()], 1).flatten(), both.uniform())
    assert not torch.equal(validation_draws(1, 0, range(6)).uniform(), validation_draws(0, 0, range(6)).uniform())


def test_times_of_validation_are_spread_evenly():
    times = validation_draws(0, 0, range(100)).spread()
    gaps = times.sort().values.diff()
    assert 0 <= times.min() < 0.02 < 0.98 < times.max() < 1
    assert gaps.max() < 0.02
    assert torch.equal(validation_draws(0, 0, range(1, 100, 2)).spread(), times[1::2])


def test_the_hidden_share_is_a_draw_from_its_beta_distribution():
    draws = torch.tensor([_hidden_share(torch.Generator().manual_seed(seed)) for seed in range(2000)])
    expected = torch.distributions.Beta(12.0, 3.0)
    assert draws.mean().item() == pytest.approx(expected.mean.item(), abs=0.01)
    assert draws.var().item() == pytest.approx(expected.variance.item(), rel=0.1)
