import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.stylegan import StyleDiscriminator, _Blur


def test_blur_by_hand():
    """One bright pixel is spread as the squares of (1, 3, 3, 1) / 8 say; sides grow by one with padding 2."""
    pixel = torch.zeros(1, 1, 4, 4)
    pixel[0, 0, 2, 2] = 64.0
    spread = [[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]
    found = _Blur()(pixel, padding=2)[0, 0]
    assert found.shape == (5, 5)
    assert found[1:, 1:].tolist() == spread
    assert not found[0].any()
    assert not found[:, 0].any()


def test_blur_leaves_channels_apart_and_flat_areas_as_they_are():
    features = torch.tensor([2.0, -3.0])[:, None, None].expand(1, 2, 8, 8)
    torch.testing.assert_close(_Blur()(features, padding=1, stride=2)[:, :, 1:-1, 1:-1], features[..., 1:3, 1:3])


def test_forward_by_a_slow_path():
    """Written from the paper with plain functions and explicit scales: a block, the last convolution, two linears."""
    discriminator, images = StyleDiscriminator(3, 1), torch.randn(2, 3, 8, 8)
    weights = {
        name.replace("parametrizations.weight.original", "weight"): w for name, w in discriminator.named_parameters()
    }
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith("bias"):
                weight.normal_()

    def conv(name, x, stride=1, padding=0):
        weight = weights[f"{name}.weight"]
        scaled = weight / (weight.shape[1] * weight.shape[2] * weight.shape[3]) ** 0.5
        return F.conv2d(x, scaled, weights.get(f"{name}.bias"), stride, padding)

    def linear(name, x):
        weight = weights[f"{name}.weight"]
        return x @ (weight / weight.shape[1] ** 0.5).T + weights[f"{name}.bias"]

    def active(x):
        return torch.where(x > 0, x, 0.2 * x) * 2**0.5

    def blur(x, padding):
        x = F.pad(x, (padding,) * 4)
        for dim in (2, 3):
            size = x.shape[dim] - 3
            x = sum(tap / 8 * x.narrow(dim, at, size) for at, tap in enumerate((1, 3, 3, 1)))
        return x

    x = active(conv("first", images))
    main = active(conv("blocks.0.second", blur(active(conv("blocks.0.first", x, padding=1)), 2), stride=2))
    x = (main + conv("blocks.0.skip", blur(x, 1)[:, :, ::2, ::2])) / 2**0.5
    x = active(conv("last", x, padding=1))
    assert x.shape == (2, 6, 4, 4)
    expected = linear("logit", active(linear("hidden", x.flatten(1))))[:, 0]
    torch.testing.assert_close(discriminator(images)[0], expected)


def test_equalised_weights():
    """Stored with variance one, used with variance one over the inputs: activations keep their scale."""
    discriminator = StyleDiscriminator(16, 2)
    stored = [w for name, w in discriminator.named_parameters() if name.endswith("original")]
    assert torch.cat([weight.flatten() for weight in stored]).std().item() == pytest.approx(1, abs=0.05)
    logits = torch.stack([StyleDiscriminator(16, 2)(torch.randn(4, 3, 16, 16))[0] for _ in range(20)])
    assert 0.3 < logits.square().mean().sqrt() < 3


def test_deviation_sees_the_batch():
    """Equal images give a deviation of zero, whatever they are; others change the logits of all."""
    torch.manual_seed(3)
    discriminator = StyleDiscriminator(4, 1, deviation=True)
    seen = []
    discriminator.last.register_forward_pre_hook(lambda _module, given: seen.append(given[0][:, -1]))
    image, other = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    (alone,) = discriminator(image)
    (twice,) = discriminator(image.expand(2, -1, -1, -1))
    (mixed,) = discriminator(torch.cat([image, other]))
    torch.testing.assert_close(twice, alone.expand(2))
    assert not torch.allclose(mixed[:1], alone, atol=1e-4)
    torch.testing.assert_close(seen[1], torch.full((2, 4, 4), 1e-4))
    block = discriminator.blocks(F.leaky_relu(discriminator.first(torch.cat([image, other])), 0.2) * 2**0.5)
    by_hand = ((block[0] - block[1]).abs() / 2).mean().item()  # the deviation of two numbers is half their distance
    assert seen[2].flatten().tolist() == pytest.approx([by_hand] * 32, rel=1e-3)


@pytest.mark.parametrize(("layers", "side", "minimum"), [(1, 8, 4), (3, 32, 16), (4, 64, 32)])
def test_four_cells_are_read_as_they_are(layers, side, minimum):
    discriminator = StyleDiscriminator(2, layers)
    maps = []
    discriminator.last.register_forward_hook(lambda _module, _given, found: maps.append(found.shape[2:]))
    for size in (side, side + 2**layers, minimum):
        assert discriminator(torch.randn(2, 3, size, size))[0].shape == (2,)
    assert maps == [(4, 4), (5, 5), (2, 2)]
    assert discriminator.minimum == minimum
