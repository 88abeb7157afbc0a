"""Keys and values in the order in which they come."""

from __future__ import annotations

import pytest
import torch

from smalti.generation.cache import PrefixCache, PrefixLayer


def new(steps: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, steps, 4), torch.randn(batch, 3, steps, 5)


def test_what_is_filled_is_read():
    layer, (keys, values), (more_keys, more_values) = PrefixLayer(8), new(3), new(2)
    for found, given in zip(layer.update(keys, values), (keys, values), strict=True):
        assert torch.equal(found, given)
    assert layer.get_seq_length() == 3
    found = layer.update(more_keys, more_values)
    assert torch.equal(found[0], torch.cat([keys, more_keys], 2))
    assert torch.equal(found[1], torch.cat([values, more_values], 2))
    assert layer.get_seq_length() == 5
    assert layer.get_mask_sizes(2) == (7, 0)
    assert layer.get_max_length() == -1


def test_what_is_read_is_a_view_of_one_buffer():
    layer = PrefixLayer(8)
    first, second = layer.update(*new(3))[0], layer.update(*new(2))[0]
    assert first.data_ptr() == second.data_ptr()
    assert layer.keys.shape == (2, 3, 8, 4)
    assert layer.values.shape == (2, 3, 8, 5)


def test_what_is_forgotten_is_written_over():
    layer, (keys, values), (again_keys, again_values) = PrefixLayer(6), new(5), new(3)
    layer.update(keys, values)
    layer.crop(-3)
    assert layer.get_seq_length() == 2
    found = layer.update(again_keys, again_values)
    assert torch.equal(found[0], torch.cat([keys[:, :, :2], again_keys], 2))
    assert torch.equal(found[1], torch.cat([values[:, :, :2], again_values], 2))
    assert layer.capacity == 6


def test_buffers_grow():
    layer, parts = PrefixLayer(2), [new(count) for count in (2, 1, 5, 1)]
    capacities = []
    for keys, values in parts:
        found = layer.update(keys, values)
        capacities.append(layer.capacity)
    assert capacities == [2, 3, 8, 12]  # by half, or as much as is needed
    assert torch.equal(found[0], torch.cat([keys for keys, _ in parts], 2))
    assert torch.equal(found[1], torch.cat([values for _, values in parts], 2))


def test_buffers_grow_for_the_first_steps():
    keys, values = new(5)
    found = PrefixLayer(2).update(keys, values)
    assert torch.equal(found[0], keys)
    assert torch.equal(found[1], values)


def test_some_sequences_go_on():
    layer, (keys, values), (more_keys, more_values) = PrefixLayer(4), new(2, batch=3), new(4, batch=2)
    layer.update(keys, values)
    layer.keep(2)
    found = layer.update(more_keys, more_values)  # beyond the capacity too
    assert torch.equal(found[0], torch.cat([keys[:2], more_keys], 2))
    assert torch.equal(found[1], torch.cat([values[:2], more_values], 2))


def test_buffers_have_the_type_of_what_comes():
    layer = PrefixLayer(4)
    keys, values = new(2)
    layer.update(keys.bfloat16(), values.double())
    assert (layer.keys.dtype, layer.values.dtype) == (torch.bfloat16, torch.float64)


def test_all_layers_forget_and_keep():
    cache, given = PrefixCache(2, 6), [new(4), new(4)]
    assert cache.get_seq_length() == 0
    for layer, (keys, values) in enumerate(given):
        cache.update(keys, values, layer)
    cache.forget(1)
    cache.keep(1)
    assert cache.get_seq_length() == 3
    for layer, (keys, values) in enumerate(given):
        more_keys, more_values = new(1, batch=1)
        found = cache.update(more_keys, more_values, layer)
        assert torch.equal(found[0], torch.cat([keys[:1, :, :3], more_keys], 2))
        assert torch.equal(found[1], torch.cat([values[:1, :, :3], more_values], 2))


def test_only_the_end_is_forgotten():
    with pytest.raises(ValueError, match="forgets a negative number of steps, got 3; count from its end"):
        PrefixLayer(4).crop(3)
