import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.codes import CodeLayout
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.scales import MultiScaleQuantizer
from smalti.tokenizers.tokenflow import SharedMappingQuantizer

TOKENFLOW = {
    561: (1, 2, 4, 6, 8, 10, 12, 14),
    817: (1, 2, 4, 6, 8, 10, 12, 14, 16),
    2227: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27),
}


@pytest.fixture
def quantizer():
    return MultiScaleQuantizer(SharedMappingQuantizer(4, 2, 32), [1, 2, 3]).eval()


@pytest.mark.parametrize("tokens", TOKENFLOW)
def test_tokenflow_counts(tokens):
    sides = TOKENFLOW[tokens]
    assert CodeLayout("scales", sides).positions == tokens
    quantizer = MultiScaleQuantizer(GradientQuantizer(2, 4), list(sides))
    assert quantizer(torch.randn(1, sides[-1] ** 2, 2)).ids.shape == (1, tokens, 1)


def test_by_a_slow_loop(quantizer):
    latents = torch.randn(2, 9, 6)
    quantized = quantizer(latents)
    left, found, ids = latents.transpose(1, 2).view(2, 6, 3, 3), 0, []
    for side in (1, 2, 3):
        step = 3 // side if 3 % side == 0 else None
        shrunk = F.adaptive_avg_pool2d(left, side) if step is None else F.avg_pool2d(left, step)
        part = quantizer.quantizer(shrunk.flatten(2).transpose(1, 2))
        ids.append(part.ids)
        grown = F.interpolate(part.latents.transpose(1, 2).view(2, 6, side, side), (3, 3), mode="bicubic")
        found, left = found + grown, left - grown
    assert torch.equal(quantized.ids, torch.cat(ids, dim=1))
    torch.testing.assert_close(quantized.latents, found.flatten(2).transpose(1, 2))
    assert torch.equal(quantizer.lookup(quantized.ids), quantized.latents)


def test_prefixes_of_scales(quantizer):
    ids = quantizer(torch.randn(1, 9, 6)).ids
    coarse = quantizer.lookup(ids[:, :1])
    torch.testing.assert_close(coarse, quantizer.quantizer.lookup(ids[:, :1]).expand(1, 9, 6))
    assert not torch.equal(quantizer.lookup(ids[:, :5]), coarse)
    with pytest.raises(ValueError, match=r"ids must end with a scale, at one of \[1, 5, 14\] positions, got 3"):
        quantizer.lookup(ids[:, :3])


def test_the_chain_is_not_the_sum(quantizer):
    quantizer = MultiScaleQuantizer(quantizer.quantizer, [1, 2, 3, 4]).eval()
    ids = quantizer(torch.randn(1, 16, 6)).ids
    chained = quantizer.chained(ids)
    assert chained.shape == (1, 29, 6)
    first = quantizer.quantizer.lookup(ids[:, :1])
    torch.testing.assert_close(chained[:, :4], first.expand(1, 4, 6))
    direct = quantizer.lookup(ids[:, :14])
    assert 0.01 < float((chained[:, 13:] - direct).detach().norm() / direct.detach().norm()) < 1


def test_a_dropped_scale_adds_nothing():
    inner = GradientQuantizer(3, 8)
    dropping, latents = MultiScaleQuantizer(inner, [1, 2], drop=1.0), torch.randn(2, 4, 3)
    quantized = dropping.train()(latents)
    torch.testing.assert_close(quantized.latents, inner.lookup(quantized.ids[:, :1]).expand(2, 4, 3))
    assert quantized.ids.shape == (2, 5, 1)
    whole = dropping.eval()(latents)
    assert torch.equal(whole.latents, dropping.lookup(whole.ids))


@pytest.mark.parametrize("sides", [[], [0, 2], [2, 2], [3, 1]])
def test_sides_must_rise(sides):
    with pytest.raises(ValueError, match="sides must rise from 1 or more, got"):
        MultiScaleQuantizer(GradientQuantizer(2, 4), sides)


def test_drop_is_a_probability():
    with pytest.raises(ValueError, match=r"drop must lie in \[0, 1\], got 2; TokenFlow drops with 0.1"):
        MultiScaleQuantizer(GradientQuantizer(2, 4), [1], drop=2)
