"""Intervals by hand and against the normal approximation."""

import pytest

from smalti.eval.bootstrap import bootstrap_intervals


def test_prompts_are_drawn_within_their_tasks():
    found = bootstrap_intervals(["a", "b", "b"], [4, 0, 0], [4, 4, 4])
    assert found.tasks == {"a": (1.0, 1.0), "b": (0.0, 0.0)}
    assert found.overall == (0.5, 0.5)


def test_two_prompts_one_right_and_one_wrong():
    """The mean of two draws is 0, 1/2 or 1 with probability 1/4, 1/2 and 1/4."""
    assert bootstrap_intervals(["a", "a"], [4, 0], [4, 4]).tasks["a"] == (0.0, 1.0)


def test_the_width_is_that_of_the_binomial():
    low, high = bootstrap_intervals(["a"] * 400, [1] * 200 + [0] * 200, [1] * 400, resamples=4000).overall
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 400) ** 0.5, rel=0.08)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.005)


def test_images_of_one_prompt_do_not_narrow_the_interval():
    once = bootstrap_intervals(["a"] * 50, [1] * 25 + [0] * 25, [1] * 50)
    often = bootstrap_intervals(["a"] * 50, [9] * 25 + [0] * 25, [9] * 50)
    assert once == often


def test_a_prompt_counts_by_its_images():
    low, high = bootstrap_intervals(["a", "a"], [1, 0], [1, 3]).tasks["a"]
    assert (low, high) == (0.0, 1.0)
    both = bootstrap_intervals(["a"] * 2000, [1, 0] * 1000, [1, 3] * 1000).overall
    assert sum(both) / 2 == pytest.approx(0.25, abs=0.01)


def test_the_seed_decides():
    numbers = [i % 3 for i in range(40)]
    first = bootstrap_intervals(["a"] * 40, numbers, [2] * 40, seed=1)
    assert first == bootstrap_intervals(["a"] * 40, numbers, [2] * 40, seed=1)
    assert first != bootstrap_intervals(["a"] * 40, numbers, [2] * 40, seed=2)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got 0 tasks, 0 and 0 numbers and 1000 resamples; give them all"):
        bootstrap_intervals([], [], [])
    with pytest.raises(ValueError, match="got 1 tasks, 2 and 1 numbers"):
        bootstrap_intervals(["a"], [1, 2], [3])
    with pytest.raises(ValueError, match="and 0 resamples"):
        bootstrap_intervals(["a"], [1], [3], resamples=0)
