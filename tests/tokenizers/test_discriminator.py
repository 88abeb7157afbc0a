import pytest
import torch
from torch.nn import functional as F

from smalti.tokenizers.discriminator import PatchDiscriminator
from smalti.tokenizers.losses import hinge_discriminator


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_minimum_size_is_exact(layers):
    discriminator = PatchDiscriminator(4, layers)
    side = discriminator.minimum
    assert discriminator(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(
        ValueError, match=rf"{layers} layers needs sides of at least {side} pixels, got {side - 1}x{side};"
    ):
        discriminator(torch.zeros(1, 3, side - 1, side))


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, field):
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = PatchDiscriminator(4, layers).eval()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert int(images.grad.abs().sum((0, 1, 2)).gt(0).sum()) == field


def test_images_of_a_batch_do_not_mix():
    discriminator, images = PatchDiscriminator(8, 2).eval(), torch.randn(4, 3, 24, 24)
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    assert not discriminator.training
    brighter = images + 1
    assert not torch.allclose(discriminator(brighter), together, atol=1e-3)


def test_slopes_are_bounded():
    """Every convolution, as a matrix, has spectral norm one."""
    discriminator = PatchDiscriminator(8, 2)
    for _ in range(50):
        discriminator(torch.randn(1, 3, 24, 24))
    convolutions = [module for module in discriminator.eval().modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 4
    for layer in convolutions:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        torch.testing.assert_close(norm, torch.ones(()), atol=0.02, rtol=0)


def test_learns_to_tell_apart():
    discriminator = PatchDiscriminator(8, 1)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, (0.5, 0.9))
    noise = torch.rand(8, 3, 16, 16) * 2 - 1
    smooth = F.interpolate(F.avg_pool2d(noise, 4), scale_factor=4.0)
    losses = []
    for _ in range(40):
        loss = hinge_discriminator(discriminator(smooth), discriminator(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(("width", "layers"), [(0, 3), (8, 0)])
def test_impossible_sizes(width, layers):
    with pytest.raises(ValueError, match=rf"needs width >= 1 and layers >= 1, got {width} and {layers}"):
        PatchDiscriminator(width, layers)


def test_other_shapes():
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got \[1, 1, 32, 32\]"):
        PatchDiscriminator(8, 1)(torch.zeros(1, 1, 32, 32))
