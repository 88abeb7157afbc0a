import pytest
import torch

from smalti.tokenizers.convolutional import ConvDecoder, ConvEncoder, Downsample, SpatialAttention, Upsample


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2, 2, 4)])
def test_sides_follow_the_stride(multipliers):
    encoder, decoder = ConvEncoder(6, 4, multipliers, 1), ConvDecoder(6, 4, multipliers, 1)
    stride = 2 ** (len(multipliers) - 1)
    assert encoder.stride == decoder.stride == stride
    assert (encoder.grid, decoder.grid) == (None, None)
    features = encoder(torch.randn(2, 3, stride, 3 * stride))
    assert features.shape == (2, 6, 1, 3)
    assert decoder(features).shape == (2, 3, stride, 3 * stride)


def test_last_layer_is_where_pixel_losses_meet():
    decoder = ConvDecoder(6, 4, (1, 2), 1)
    decoder(torch.randn(1, 6, 2, 2)).sum().backward()
    assert decoder.last_layer.shape == (3, 4, 3, 3)
    assert decoder.last_layer.grad.any()


def test_downsample_pads_right_and_bottom():
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]


def test_upsample_repeats_pixels():
    layer = Upsample(1)
    torch.nn.init.dirac_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_attention_by_a_slow_loop():
    layer, features = SpatialAttention(4), torch.randn(1, 4, 2, 3)
    cells = layer.norm(features)[0].flatten(1).T
    weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias
    query, key, value = (cells @ weight.T + bias).chunk(3, dim=-1)
    rows = []
    for i in range(6):
        scores = torch.stack([query[i] @ key[j] / 2 for j in range(6)]).softmax(0)
        rows.append(sum(scores[j] * value[j] for j in range(6)))
    mixed = torch.stack(rows) @ layer.out.weight[:, :, 0, 0].T + layer.out.bias
    torch.testing.assert_close(layer(features)[0], features[0] + mixed.T.unflatten(1, (2, 3)))
