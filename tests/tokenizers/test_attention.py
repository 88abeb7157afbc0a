import pytest
import torch

from smalti.tokenizers.attention import Attention, PostNorm, PreNormBlock, causal


def test_against_torch():
    attention = Attention(8, 2)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for place, part in enumerate((attention.query, attention.key, attention.value)):
            part.weight.copy_(theirs.in_proj_weight[8 * place : 8 * place + 8])
            part.bias.copy_(theirs.in_proj_bias[8 * place : 8 * place + 8])
        theirs.out_proj.weight.copy_(torch.eye(8))
        theirs.out_proj.bias.zero_()
    tokens, mask = torch.randn(2, 5, 8), causal(5)
    torch.testing.assert_close(attention(tokens), theirs(tokens, tokens, tokens)[0])
    torch.testing.assert_close(attention(tokens, None, mask), theirs(tokens, tokens, tokens, attn_mask=~mask[0])[0])


def test_memory_of_another_width():
    assert Attention(8, 2, memory_dim=3)(torch.randn(2, 5, 8), torch.randn(2, 7, 3)).shape == (2, 5, 8)


def test_who_sees_nothing_reads_nothing():
    attention, tokens = Attention(8, 2), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[1, 2, 0] = True
    read = attention(tokens, None, mask)
    assert read.any(-1).tolist() == [[False] * 4, [False, False, True, False]]
    torch.testing.assert_close(read[1, 2], attention.value(tokens[1, 0]))
    read.sum().backward()
    assert bool(tokens.grad.isfinite().all())


@pytest.mark.parametrize("mask", [None, causal(4)])
def test_a_vanishing_leak_is_no_leak(mask):
    exact, leaky, tokens = Attention(8, 2), Attention(8, 2, leak=1e-12), torch.randn(2, 4, 8)
    leaky.load_state_dict(exact.state_dict())
    torch.testing.assert_close(leaky(tokens, None, mask), exact(tokens, None, mask))


def test_blocks_keep_shapes():
    tokens = torch.randn(2, 4, 8)
    assert PreNormBlock(8, 2)(tokens).shape == tokens.shape
    assert PostNorm(Attention(8, 2), 8, 8)(tokens, None, causal(4)).shape == tokens.shape


def test_heads_must_divide():
    with pytest.raises(ValueError, match="heads must divide the width, got 3 heads and width 8"):
        Attention(8, 3)
