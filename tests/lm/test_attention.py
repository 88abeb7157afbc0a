"""The attention of backbones against sums written out, and masks as backbones take them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from smalti.lm.attention import ATTENTION, attend, attention_mask, use_attention
from smalti.lm.model import SharedLM
from smalti.lm.vocabulary import Vocabulary
from smalti.tokenizers.codes import Codebook, CodeLayout, CodeSpec

SPEC = CodeSpec(CodeLayout("grid", (2, 3)), (Codebook("pixel", 7),))
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def model(**parts) -> SharedLM:
    torch.manual_seed(0)
    lm = SharedLM.build({**LLAMA, **parts}, Vocabulary(None), SPEC, "f00d", classes=2).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return lm


def slow(query, key, value, allowed) -> torch.Tensor:
    """``[B, T, H, D]``, head by head and step by step."""
    batch, heads, steps, width = query.shape
    found = torch.zeros(batch, steps, heads, width)
    for head in range(heads):
        own = head // (heads // key.shape[1])
        for row in range(batch):
            for step in range(steps):
                products = key[row, own] @ query[row, head, step] * width**-0.5
                weights = products.masked_fill(~allowed[row, step], -torch.inf).softmax(0)
                found[row, step, head] = weights @ value[row, own]
    return found


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("new", "every"), [(4, 4), (3, 5), (1, 5), (1, 1)])
def test_without_a_mask_a_first_pass_is_causal_and_a_later_one_sees_everything(new, every, groups):
    query, key, value = torch.randn(2, 4, new, 8), torch.randn(2, groups, every, 8), torch.randn(2, groups, every, 8)
    found, weights = attend(nn.Module(), query, key, value, None)
    allowed = torch.ones(2, new, every).bool()
    torch.testing.assert_close(found, slow(query, key, value, allowed.tril() if new == every else allowed))
    assert weights is None
    assert found.is_contiguous()


def test_a_mask_is_obeyed():
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    allowed = torch.rand(2, 3, 5) > 0.5
    allowed[..., 0] = True
    found, _ = attend(nn.Module(), query, key, value, allowed[:, None], scaling=8**-0.5)
    torch.testing.assert_close(found, slow(query, key, value, allowed))
    other, _ = attend(nn.Module(), query, key, value, allowed[:, None], scaling=1.0)
    torch.testing.assert_close(other, slow(query * 8**0.5, key, value, allowed))


def test_backbones_with_plain_attention_get_it():
    assert model().backbone.config._attn_implementation == ATTENTION
    lm = model()
    lm.backbone.set_attn_implementation("eager")
    use_attention(lm.backbone)
    assert lm.backbone.config._attn_implementation == "eager"


def test_masks_as_backbones_take_them():
    allowed = torch.tensor([[[[True, False], [True, True]]]])
    lm = model()
    assert attention_mask(allowed, lm.backbone) is allowed
    lm.backbone.set_attn_implementation("sdpa")
    assert attention_mask(allowed, lm.backbone) is allowed
    lm.backbone.set_attn_implementation("eager")
    lowest = torch.finfo(torch.float32).min
    assert attention_mask(allowed, lm.backbone).tolist() == [[[[0.0, lowest], [0.0, 0.0]]]]
    lm.backbone.bfloat16()
    assert attention_mask(allowed, lm.backbone).dtype == torch.bfloat16


def test_attention_without_masks_is_an_error():
    flash = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    message = "padded prompts need attention sdpa or eager, got flash_attention_2; set attn_implementation to sdpa"
    with pytest.raises(ValueError, match=message):
        attention_mask(torch.ones(1, 1, 2, 2).bool(), flash)


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa", "eager"])
def test_passes_are_causal_first_and_then_together(attention):
    """Two passes over a cache are one pass with the mask of blocks, whatever the attention."""
    lm, places = model(), torch.arange(6)[None].expand(2, -1)
    lm.backbone.set_attn_implementation(attention)
    embedded = torch.randn(2, 6, 16)
    allowed = torch.ones(6, 6).tril().bool()
    allowed[3:, 3:] = True
    cache = DynamicCache()
    with torch.no_grad():
        whole = lm.through(embedded, places, allowed[None, None])
        first = lm.through(embedded[:, :3], places[:, :3], cache=cache)
        then = lm.through(embedded[:, 3:], places[:, 3:], cache=cache)
        plain = lm.through(embedded, places)
        triangle = lm.through(embedded, places, torch.ones(1, 1, 6, 6).tril().bool())
    torch.testing.assert_close(torch.cat([first, then], 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, triangle, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[:, 3], whole[:, 3], atol=1e-2)
