"""VAR's quantizer: which convolution serves a scale, and its sums by slow loops."""

import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.blended import Blend, VARQuantizer, nearest_tick
from smalti.tokenizers.learned import GradientQuantizer
from smalti.tokenizers.scales import MultiScaleQuantizer

SIDES, CODES, POSITIONS = [1, 2, 4], 12, 21


def pyramid(**options):
    """A quantizer whose codes are far apart, in eval mode."""
    inner = GradientQuantizer(3, CODES)
    torch.nn.init.normal_(inner.table)
    return VARQuantizer(inner, SIDES, **options).eval()


def drawn_ids(count=2):
    return torch.randint(CODES, (count, POSITIONS, 1))


@pytest.mark.parametrize(
    ("scales", "ticks", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # the third and the eighth lie midway
        (3, 2, [0, 1, 1]),
        (1, 4, [0]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_which_convolution_serves_a_scale(scales, ticks, expected):
    assert [nearest_tick(scale, scales, ticks) for scale in range(scales)] == expected


def test_inputs_by_a_slow_loop():
    quantizer, ids = pyramid(convolutions=2, ratio=0.25), drawn_ids()
    found, total = quantizer.inputs(ids).split([4, 16], dim=1), 0
    for scale, (part, side) in enumerate([(ids[:, :1, 0], 1), (ids[:, 1:5, 0], 2)]):
        rows = quantizer.quantizer.table[part].transpose(1, 2).view(2, 3, side, side)
        enlarged = F.interpolate(rows, (4, 4), mode="bicubic")
        total = total + 0.75 * enlarged + 0.25 * quantizer.convolutions[scale].conv(enlarged)
        read = F.avg_pool2d(total, 4 // SIDES[scale + 1]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found[scale], read)
        torch.testing.assert_close(quantizer.shrunk(total, scale + 1), read)


def test_sums_of_what_is_added_are_the_values():
    quantizer = pyramid()
    quantized = quantizer(torch.randn(2, 16, 3))
    parts = [
        quantizer.added(quantized.ids[:, at], scale) for scale, at in enumerate((slice(1), slice(1, 5), slice(5, 21)))
    ]
    torch.testing.assert_close(sum(parts).flatten(2).transpose(1, 2), quantized.latents)
    assert torch.equal(quantizer.lookup(quantized.ids), quantized.latents)


def test_without_convolutions_it_is_the_plain_pyramid():
    plain = pyramid(convolutions=0)
    latents, other = torch.randn(2, 16, 3), MultiScaleQuantizer(plain.quantizer, SIDES).eval()
    assert torch.equal(plain(latents).latents, other(latents).latents)
    assert not torch.equal(plain(latents).latents, pyramid()(latents).latents)


def test_one_scale_has_no_inputs():
    assert VARQuantizer(GradientQuantizer(3, 4), [2]).inputs(torch.zeros(2, 4, 1, dtype=torch.int64)).shape == (2, 0, 3)


def test_convolutions_keep_float32_under_autocast():
    layer, features = Blend(3, 0.5), torch.randn(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(features), layer(features.float()))
        assert layer(features).dtype == torch.float32
