import pytest
import torch

from smalti.tokenizers.soft import MapDecoder, MapEncoder, soft_rows


@pytest.mark.parametrize("stride", [2, 8, 16])
def test_shapes(stride):
    encoder, decoder = MapEncoder(5, 16, stride, 1), MapDecoder(5, 16, stride, 1, channels=1)
    features = encoder(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 5, 32 // stride, 32 // stride)
    assert decoder(features).shape == (2, 3, 32, 32)


def test_maps_of_one_channel_are_pictures_of_three_equal_ones_on_their_own_scale():
    maps = torch.rand(2, 1, 32, 32)
    picture = (2 * maps - 1).expand(-1, 3, -1, -1)
    encoder, metric = (MapEncoder(5, 16, 8, 1, channels=1, span=span) for span in ((-1.0, 1.0), (0.0, 10.0)))
    metric.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(metric(picture), encoder.layers(10 * maps))
    decoder, inverse = (MapDecoder(5, 16, 8, 1, channels=1, span=span) for span in ((-1.0, 1.0), (0.0, 10.0)))
    inverse.load_state_dict(decoder.state_dict())
    features = torch.randn(2, 5, 4, 4)
    assert torch.equal(decoder(features)[:, 0], decoder(features)[:, 2])
    torch.testing.assert_close(10 * (inverse(features) + 1) / 2, decoder(features))


def test_soft_rows_by_hand():
    table = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    found = soft_rows(torch.tensor([[0.0, torch.tensor(3.0).log() / 0.8]]), table)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.5]]))


def test_sure_logits_are_the_hard_choice():
    logits, table = torch.randn(3, 7), torch.randn(7, 4)
    torch.testing.assert_close(soft_rows(logits, table, tau=1e4), table[logits.argmax(-1)])


@pytest.mark.parametrize(("stride", "width"), [(1, 16), (6, 16), (16, 12)])
def test_strides(stride, width):
    with pytest.raises(ValueError, match=f"got stride {stride} and width {width}; change either"):
        MapEncoder(5, width, stride, 1)
