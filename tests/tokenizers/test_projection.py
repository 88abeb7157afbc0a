import pytest
import torch

from smalti.tokenizers.projection import AttentionProjection


@pytest.mark.parametrize(("dim", "out_dim", "heads"), [(16, 4, 4), (4, 16, 4), (8, 8, 1)])
def test_default_heads(dim, out_dim, heads):
    projection = AttentionProjection(dim, out_dim)
    assert projection.heads == heads
    assert projection(torch.randn(2, 5, dim)).shape == (2, 5, out_dim)


def test_causal_projection_looks_back_only():
    projection, tokens = AttentionProjection(4, 16, causal=True), torch.randn(1, 6, 4)
    changed = tokens.clone()
    changed[0, 3] += 1
    same = (projection(tokens) == projection(changed)).all(-1)[0]
    assert same.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(("dim", "out_dim", "heads"), [(16, 4, 2), (4, 18, 4), (10, 4, None)])
def test_heads_must_divide_the_widths(dim, out_dim, heads):
    with pytest.raises(
        ValueError, match=f"an attention projection from {dim} to {out_dim} cannot have . heads; use widths"
    ):
        AttentionProjection(dim, out_dim, heads)


@pytest.mark.parametrize(("dim", "out"), [(16, 4), (4, 16)])
def test_a_local_projection_sees_one_position(dim, out):
    block = AttentionProjection(dim, out, local=True)
    tokens = torch.randn(1, 5, dim)
    changed = tokens.clone()
    changed[:, 2] = torch.randn(dim)
    moved = (block(tokens) - block(changed)).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, False, False]
