import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from smalti.tokenizers.projection import AttentionProjection

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "tokenizers" / "dualtoken_proj.safetensors"

#: Name in the DualToken release -> name here. Its key bias is a buffer of zeros.
NAMES = {
    "norm1": "norm_attention",
    "norm2": "norm_mlp",
    "norm3": "norm_skip",
    "attn.qkv": "qkv",
    "attn.q_bias": "query_bias",
    "attn.v_bias": "value_bias",
    "attn.proj": "out",
    "proj": "skip",
    "mlp.norm": "mlp.norm",
    "mlp.w0": "mlp.gate",
    "mlp.w1": "mlp.up",
    "mlp.w2": "mlp.down",
}


def renamed(weights):
    unused = weights.pop("attn.zero_k_bias")
    assert not unused.any()
    whole = {name: NAMES[name] for name in NAMES if name in weights}
    parts = {f"{old}.{kind}": f"{new}.{kind}" for old, new in NAMES.items() for kind in ("weight", "bias")}
    return {(whole | parts)[name]: weight for name, weight in weights.items()}


@pytest.mark.parametrize(("side", "config"), [("prequant", "pre"), ("postquant", "post")])
def test_parity_with_dualtoken(side, config):
    if not GOLDEN.is_file():
        pytest.skip(f"golden data expected beside the checkout, at {GOLDEN}")
    with safe_open(GOLDEN, "pt") as file:
        sizes = json.loads(file.metadata()["golden"])["config"][config]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    projection = AttentionProjection(
        sizes["in_dim"], sizes["out_dim"], sizes["num_heads"], causal=sizes["is_causal"], expansion=sizes["mlp_ratio"]
    )
    prefix = f"weights.{side}."
    weights = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    projection.load_state_dict(renamed(weights), strict=True)
    inputs = tensors[f"in.{side}"]
    branch = projection.attend(projection.norm_attention(inputs))
    torch.testing.assert_close(branch, tensors[f"out.{side}_attn"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(projection(inputs), tensors[f"out.{side}"], atol=2e-5, rtol=1e-4)


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
