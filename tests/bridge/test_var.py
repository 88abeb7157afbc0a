"""VAR: the published outputs, the released sizes, the names of its weights."""

from pathlib import Path

import pytest
import torch

from smalti.bridge.golden import Golden
from smalti.bridge.keymap import fill, translate
from smalti.bridge.var import VAR_D16, model, replay, rules

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden"

TINY = {"patch_nums": (1, 2), "vocab_size": 6, "code_channels": 3, "dim": 8, "heads": 2, "depth": 1, "num_classes": 4}


@pytest.fixture
def tiny():
    return model({**VAR_D16, **TINY})


def reference_weights():
    """A state dict with the release's names and tiny shapes, of the network and its quantizer."""
    shapes = {
        "class_emb.weight": (5, 8),
        "pos_start": (1, 1, 8),
        "pos_1LC": (1, 5, 8),
        "lvl_embed.weight": (2, 8),
        "lvl_1L": (1, 5),
        "attn_bias_for_masking": (1, 1, 5, 5),
        "word_embed.weight": (8, 3),
        "word_embed.bias": (8,),
        "blocks.0.attn.mat_qkv.weight": (24, 8),
        "blocks.0.attn.q_bias": (8,),
        "blocks.0.attn.v_bias": (8,),
        "blocks.0.attn.scale_mul_1H11": (1, 2, 1, 1),
        "blocks.0.attn.proj.weight": (8, 8),
        "blocks.0.attn.proj.bias": (8,),
        "blocks.0.ffn.fc1.weight": (32, 8),
        "blocks.0.ffn.fc1.bias": (32,),
        "blocks.0.ffn.fc2.weight": (8, 32),
        "blocks.0.ffn.fc2.bias": (8,),
        "blocks.0.ada_lin.1.weight": (48, 8),
        "blocks.0.ada_lin.1.bias": (48,),
        "head_nm.ada_lin.1.weight": (16, 8),
        "head_nm.ada_lin.1.bias": (16,),
        "head.weight": (6, 8),
        "head.bias": (6,),
        "quantize.embedding.weight": (6, 3),
        "quantize.ema_vocab_hit_SV": (2, 6),
    }
    shapes |= {f"quantize.quant_resi.qresi_ls.{number}.weight": (3, 3, 3, 3) for number in range(4)}
    shapes |= {f"quantize.quant_resi.qresi_ls.{number}.bias": (3,) for number in range(4)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    return weights | {"blocks.0.attn.zero_k_bias": torch.zeros(8)}


def test_published_outputs():
    """Every output within the tolerance of the file."""
    path = GOLDEN / "generation" / "var.safetensors"
    if not path.is_file():
        pytest.skip(f"golden data of var expected beside the checkout, at {path}")
    golden = Golden.load(path)
    found = replay(golden)
    assert set(found) == set(golden.outputs)
    assert torch.equal(found["greedy_cfg.tokens"], golden.outputs["greedy_cfg.tokens"])
    for name in ("input_features", "logits", "logits_null", "greedy_cfg.logits", "greedy_cfg.f_hat"):
        limits = golden.tolerance[name.removeprefix("greedy_cfg.").removesuffix("_null")]
        torch.testing.assert_close(found[name], golden.outputs[name], **limits)


def test_the_released_size_is_the_published_one():
    with torch.device("meta"):
        released = model(VAR_D16)
    counts = {name: weight.numel() for name, weight in released.named_parameters()}
    frozen = sum(count for name, count in counts.items() if name.startswith("quantizer."))
    assert round((sum(counts.values()) - frozen) / 1e6, 2) == 310.28  # 310 M in the paper
    assert frozen == 4096 * 32 + 4 * (32 * 32 * 9 + 32)
    assert released.spec.positions == 680


def test_every_weight_has_its_place(tiny):
    weights = reference_weights()
    fill(tiny, weights, rules(tiny), "var")
    block = tiny.blocks[0]
    qkv = weights["blocks.0.attn.mat_qkv.weight"]
    assert torch.equal(block.attention.key.weight, qkv[8:16])
    assert torch.equal(block.attention.value.bias, weights["blocks.0.attn.v_bias"])
    assert torch.equal(block.gates.bias, weights["blocks.0.ada_lin.1.bias"][:16])
    assert torch.equal(block.affine.weight, weights["blocks.0.ada_lin.1.weight"][16:])
    assert torch.equal(tiny.quantizer.convolutions[2].conv.bias, weights["quantize.quant_resi.qresi_ls.2.bias"])
    assert torch.equal(tiny.places, weights["pos_1LC"][0])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("quantize.embedding.weight", None, "got missing: quantizer.quantizer.table;"),
        ("head.weight", torch.zeros(5, 8), r"of another shape: head.weight \[5, 8\] for \[6, 8\]"),
        ("blocks.0.attn.zero_k_bias", torch.ones(8), "not used: blocks.0.attn.zero_k_bias;"),
        ("blocks.0.ada_gss", torch.zeros(1, 1, 6, 8), "not used: blocks.0.ada_gss;"),
    ],
)
def test_weights_that_do_not_match_are_named(tiny, name, change, said):
    weights = reference_weights() | {name: change}
    with pytest.raises(ValueError, match=said):
        translate({key: value for key, value in weights.items() if value is not None}, rules(tiny), tiny, "var")
