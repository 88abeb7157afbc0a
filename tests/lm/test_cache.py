"""Buffers of keys and values: filled in order, joined; what a cache does with them is in `tests/generation`."""

from __future__ import annotations

import torch

from smalti.lm.cache import KeyValues


def steps(count: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, count, 3)


def test_new_steps_stand_behind_those_before_in_the_same_buffer():
    memory, first, second = KeyValues(3), steps(1), steps(2)
    assert torch.equal(memory.append(first, -first)[0], first)
    before = memory.keys.data_ptr()
    keys, values = memory.append(second, -second)
    assert torch.equal(keys, torch.cat([first, second], dim=2))
    assert torch.equal(values, -keys)
    assert keys.data_ptr() == memory.keys.data_ptr() == before


def test_sequences_join_at_the_end():
    memory, other, first, short = KeyValues(4), KeyValues(1), steps(3), steps(1, batch=1)
    memory.append(first, first)
    other.append(short, -short)
    memory.join(other, 1)
    memory.join(KeyValues(1), 2)  # that have read nothing
    assert memory.keys.shape == (5, 1, 4, 3)
    assert torch.equal(memory.keys[2, :, 2], short[0, :, 0])
    assert torch.equal(memory.values[2, :, 2], -short[0, :, 0])
    assert torch.equal(memory.keys[:2, :, :3], first)
    assert not memory.keys[3:].any()
