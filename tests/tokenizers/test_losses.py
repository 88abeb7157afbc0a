import pytest
import torch

from smalti.tokenizers.losses import PixelLoss, hinge_discriminator, hinge_generator, leaky_hinge_discriminator
from smalti.tokenizers.perceptual import Perceptual


class Brightness(Perceptual):
    """The squared difference of mean pixels."""

    def __init__(self):
        super().__init__(torch.nn.Identity())

    def features(self, images):
        return [images.mean((1, 2, 3))]

    def compare(self, layer, first, second):
        return (first - second).square()


IMAGES = torch.zeros(2, 3, 4, 4)


def test_terms_by_hand():
    losses = PixelLoss(l1=2.0, l2=3.0, perceptual=Brightness(), perceptual_weight=4.0)(IMAGES + 0.5, IMAGES)
    assert {name: loss.item() for name, loss in losses.items()} == {"l1": 1.0, "l2": 0.75, "perceptual": 1.0}


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({}, {"l1"}),
        ({"l1": 0.0, "l2": 1.0}, {"l2"}),
        ({"perceptual": Brightness()}, {"l1", "perceptual"}),
        ({"perceptual": Brightness(), "perceptual_weight": 0.0}, {"l1"}),
    ],
)
def test_terms_without_weight_are_absent(weights, names):
    assert set(PixelLoss(**weights)(IMAGES, IMAGES)) == names


def test_half_precision_is_summed_in_float32():
    losses = PixelLoss(l2=1.0)((IMAGES + 1 / 3).bfloat16(), IMAGES.bfloat16())
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_gradients_reach_the_reconstruction():
    reconstruction = torch.full_like(IMAGES, 0.5, requires_grad=True)
    torch.stack([*PixelLoss(perceptual=Brightness())(reconstruction, IMAGES).values()]).sum().backward()
    torch.testing.assert_close(reconstruction.grad, torch.full_like(IMAGES, 1 / 96 + 2 * 0.5 / 2 / 48))


@pytest.mark.parametrize("weights", [{"l1": -1.0}, {"l1": 0.0}, {"l1": 0.0, "perceptual_weight": 1.0}])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match=r"weights of pixel losses must be >= 0 and one of them above zero, got l1"):
        PixelLoss(**weights)


def test_shapes_must_agree():
    with pytest.raises(
        ValueError, match=r"must have the shape of its images, \[2, 3, 4, 4\], got \[2, 3, 8, 8\]; resize"
    ):
        PixelLoss()(torch.zeros(2, 3, 8, 8), IMAGES)


REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])


def test_hinges_by_hand():
    assert hinge_discriminator(REAL, FAKE).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))
    assert leaky_hinge_discriminator(REAL, FAKE).item() == pytest.approx(0.5 * (2.49 / 3 + 2.99 / 3))
    assert leaky_hinge_discriminator(REAL, FAKE, slope=0.0) == hinge_discriminator(REAL, FAKE)
    assert hinge_generator(FAKE).item() == pytest.approx(1 / 3)


def test_hinge_lets_met_margins_go():
    real, fake = (torch.full((4,), value, requires_grad=True) for value in (2.0, -2.0))
    hinge_discriminator(real, fake).backward()
    assert not real.grad.any()
    assert not fake.grad.any()
    leaky_hinge_discriminator(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.full((4,), -0.01 / 8))


def test_generator_climbs():
    fake = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    loss = hinge_generator(fake)
    loss.backward()
    assert loss.dtype == torch.float32
    assert fake.grad.tolist() == [-0.25] * 4
