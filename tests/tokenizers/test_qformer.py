import pytest
import torch

from smalti.tokenizers.qformer import GRUSlotAttention, MorphSlotAttention, QFormer

SIZES = {"dim": 16, "layers": 3, "heads": 4, "hidden": 32, "memory_dim": 12}


def changed_queries(module, at, memory):
    """Which outputs move when one query does."""
    before = module(memory)
    with torch.no_grad():
        module.query[0, at] = torch.randn(16)  # a uniform shift would be undone by the norm
    return (module(memory) - before).abs().amax((0, 2)) > 1e-6


@pytest.mark.parametrize("reading", ["attention", "morph"])
@pytest.mark.parametrize("queries", [7, 16, 32, 64])
def test_causal_at_any_number_of_queries(queries, reading):
    module, memory = QFormer(queries, **SIZES, reading=reading, read_every=4).eval(), torch.randn(2, 9, 12)
    at = queries // 3
    moved = changed_queries(module, at, memory)
    if reading == "attention":
        assert moved.tolist() == [place >= at for place in range(queries)]
    else:  # slots compete, so that a slot is felt by all that read with it
        assert bool(moved.all())


@pytest.mark.parametrize("queries", [16, 32])
def test_bidirectional_by_name(queries):
    module = QFormer(queries, **SIZES, causal=False).eval()
    assert bool(changed_queries(module, 5, torch.randn(2, 9, 12)).all())


@pytest.mark.parametrize("reading", ["attention", "morph", "gru"])
def test_hidden_features_are_not_read(reading):
    module, memory = QFormer(6, **SIZES, reading=reading).eval(), torch.randn(2, 9, 12)
    visible = torch.ones(2, 9, dtype=torch.bool)
    visible[:, 5:] = False
    other = memory.clone()
    other[:, 5:] = 7
    assert torch.equal(module(memory, visible), module(other, visible))
    assert not torch.equal(module(memory), module(other))
    torch.testing.assert_close(module(memory, visible), module(memory[:, :5]))


def test_only_some_layers_read():
    module = QFormer(4, **SIZES, read_every=2)
    assert [layer.reading is not None for layer in module.layers] == [True, False, True]
    assert [state.shape for state in module.eval().states(torch.randn(2, 9, 12))] == [(2, 4, 16)] * 4


def test_morph_shares_every_feature_among_the_slots():
    attention = MorphSlotAttention(16, 4, 12, epsilon=0.0)
    shares = attention.attend(torch.randn(2, 6, 16), torch.randn(2, 9, 12))
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 4, 6))
    assert bool((MorphSlotAttention(16, 4, 12).attend(torch.randn(2, 6, 16), torch.randn(2, 9, 12)).sum(-1) < 1).all())


def test_gru_shares_sum_over_heads_and_slots():
    attention = GRUSlotAttention(16, 4, 12, rounds=2)
    slots, shares = attention.attend(torch.randn(2, 6, 16), torch.randn(2, 9, 12))
    assert slots.shape == (2, 6, 16)
    torch.testing.assert_close(shares.sum((1, 3)), torch.ones(2, 9))


def test_half_of_the_slots_is_kept():
    attention, slots = GRUSlotAttention(16, 4, 12, half=True), torch.randn(2, 6, 16)
    updated = attention(slots, torch.randn(2, 9, 12))
    assert torch.equal(updated[:, 3:], slots[:, 3:])
    assert bool((updated[:, :3] != slots[:, :3]).all())
