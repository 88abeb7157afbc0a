"""Packed matrices: the same products, the same state, and no way to train or move them by accident."""

from __future__ import annotations

from copy import deepcopy
from shutil import which

import pytest
import torch
from torch import nn

from smalti.generation.orders import Neighbouring, order_parts
from smalti.generation.sampler import sample_codes
from smalti.generation.sampling import Sampling
from smalti.lm.model import SharedLM
from smalti.lm.packing import PackedBlock, PackedLinear, packed
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (3, 4)), (Codebook("pixel", 32),))
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def model(**changed) -> SharedLM:
    parts = {"classes": 3, "rotary": "axial", **order_parts(Neighbouring(), SPEC)}
    backbone = {**LLAMA, "num_attention_heads": 2, **changed}
    torch.manual_seed(0)
    return SharedLM.build(backbone, Vocabulary(None), SPEC, "f00d", {"kind": "flat"}, **parts).eval()


def drawn(lm: SharedLM) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    return sample_codes(lm, [0, 1, 2], generators, Sampling(guidance=2.0)).ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_plain_layer(dtype, bias):
    plain = nn.Linear(24, 40, bias=bias).to(dtype)
    product = PackedLinear(plain.weight, plain.bias)
    for states in (torch.randn(1, 24), torch.randn(2, 3, 24), torch.randn(70, 24)):
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(product(states.to(dtype)), plain(states.to(dtype)), **close)
    assert torch.equal(product.weight, plain.weight)


def test_the_state_is_that_of_the_plain_module():
    plain = nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2, bias=False))
    found = packed(deepcopy(plain))
    assert [type(part) for part in found] == [PackedLinear, nn.GELU, PackedLinear]
    before, after = plain.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_product_is_added_to_what_there_is():
    product = PackedLinear(torch.randn(40, 24), torch.randn(40))
    states, onto = torch.randn(2, 3, 24), torch.randn(2, 3, 40)
    kept = onto.clone()
    torch.testing.assert_close(product(states, onto), product(states) + kept)
    assert torch.equal(onto, kept)


@pytest.mark.parametrize(
    ("changed", "lean"),
    [
        ({}, True),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, True),
        ({"model_type": "qwen2", "num_key_value_heads": 2}, True),  # whose queries, keys and values have biases
        ({"model_type": "mistral", "num_key_value_heads": 1}, True),
        ({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}, False),  # which norms queries and keys
        ({"hidden_act": "gelu"}, False),
    ],
)
def test_a_packed_model_draws_the_same_and_is_saved_the_same(tmp_path, changed, lean):
    lm = model(**changed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # zero at first
            parameter.mul_(3)  # as large as what is trained
    fast = deepcopy(lm).pack()
    blocks = [*fast.backbone.base_model.layers, fast.directions.beyond[0].block]
    assert [isinstance(block, PackedBlock) for block in blocks] == [lean] * 3
    assert not any(type(module) is nn.Linear for module in fast.backbone.base_model.modules())
    steps = [lm.layout.class_to_image(1, torch.arange(12)[:, None], Neighbouring().plan(SPEC.layout).rows())]
    batch = lm.layout.collate(steps)
    with torch.no_grad():
        torch.testing.assert_close(fast.directed(batch), lm.directed(batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(drawn(fast), drawn(lm))
    fast.save_pretrained(tmp_path)
    again = SharedLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in lm.state_dict().items())


def test_a_backbone_of_another_kind_is_packed_where_it_has_linear_layers():
    shape = {"model_type": "gpt_neox", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    lm = SharedLM.build(shape, Vocabulary(None), SPEC, "f00d", {"kind": "flat"}, classes=3).eval()
    fast = deepcopy(lm).pack()
    assert any(type(module) is PackedLinear for module in fast.backbone.base_model.modules())
    assert torch.equal(drawn(fast), drawn(lm))


def test_output_rows_of_every_direction_are_packed():
    fast, seen = model().pack(), []
    for _, table in fast.heads:
        (ids,) = table.packed
        assert torch.equal(table.packed[ids].weight, torch.cat(table.parts(ids)))
        table.packed[ids].register_forward_hook(lambda *_: seen.append(1))
    drawn(fast)
    assert len(seen) == 2 * len(Neighbouring().plan(SPEC.layout).sizes)


def test_blocks_are_packed_or_compiled():
    with pytest.raises(ValueError, match="packed blocks cannot be compiled, got a packed model; load it again"):
        model().pack().compile_blocks()
    with pytest.raises(ValueError, match="compiled blocks cannot be packed, got a compiled model; load it again"):
        model().compile_blocks().pack()


def test_rows_that_no_head_reads_are_not_packed():
    parts = {"classes": 3, **order_parts(Neighbouring(), SPEC)}
    backbone = {**LLAMA, "num_attention_heads": 2}
    lm = SharedLM.build(backbone, Vocabulary(None), SPEC, "f00d", {"kind": "parallel"}, **parts).pack()
    assert [table.packed for _, table in lm.heads] == [{}, {}]


@pytest.mark.parametrize(
    "shape", [LLAMA | {"num_attention_heads": 2}, {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}]
)
def test_packed_rows_stay_where_they_are(shape):
    lm = SharedLM.build(shape, Vocabulary(None), SPEC, "f00d", classes=3).pack()
    with pytest.raises(RuntimeError, match=r"packed weights stay on the CPU in torch\.float32, got torch\.bfloat16"):
        lm.to(torch.bfloat16)


@pytest.mark.skipif(which("g++") is None and which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_write_the_same_codes():
    lm = model(num_hidden_layers=1)
    plain = drawn(lm)
    compiled = lm.compile_blocks()
    assert all(block.mlp._compiled_call_impl is not None for block in compiled.backbone.base_model.layers)
    assert torch.equal(drawn(compiled), plain)
    alone = sample_codes(compiled, [1], [torch.Generator().manual_seed(1)], Sampling(guidance=2.0)).ids
    assert torch.equal(alone[0], plain[1])


def test_packed_weights_stay_where_they_are():
    fast = model().pack()
    fast.to(torch.float32)
    with pytest.raises(
        RuntimeError, match=r"stay on the CPU in torch.float32, got torch.bfloat16 on cpu; load the model"
    ):
        fast.to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"in float32 or bfloat16, got torch.float64 on cpu; move the model there first"
    ):
        model().double().pack()


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = nn.Sequential(nn.Linear(8, 4))
    assert packed(plain) is plain
    assert type(plain[0]) is nn.Linear
